"""The plugin protocol as a suite of checks for plugins in any language: ``moorage test``."""

"""Packages of plugins from directories, without an engine and without Docker: ``moorage build``."""

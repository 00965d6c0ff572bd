"""The plugin proxy: the process that listens for the consumers of published plugins, and what it decides."""

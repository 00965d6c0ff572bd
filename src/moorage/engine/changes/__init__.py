"""Changes of plugins that are tried out, and rolled back where they do not work."""

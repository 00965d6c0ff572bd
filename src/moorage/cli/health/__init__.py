"""Health checks on the command line."""

"""The HTTP client of registries."""

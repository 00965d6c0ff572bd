"""The kinds of drivers that dockerd and podman know: one file for each, with its requests and answers."""

"""One run of a plugin on this host: directories, root, plan, readiness, calls, stop; for engine and foreground."""

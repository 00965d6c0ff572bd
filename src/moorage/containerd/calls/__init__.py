"""The calls of containerd by service, each a base of ``Client`` or ``Storage``; ``wire`` translates their values."""

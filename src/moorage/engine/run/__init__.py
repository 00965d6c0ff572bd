"""One run of a plugin: its container and how it exited, and the processes that callers add to it."""

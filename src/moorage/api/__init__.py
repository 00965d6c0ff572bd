"""The Docker Engine API for plugins, and our additions, over a unix socket."""

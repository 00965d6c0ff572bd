"""Who uses the plugins of an engine: published sockets, mounts, holders."""

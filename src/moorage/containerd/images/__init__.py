"""Images in containerd: pulled from registries, unpacked, measured, and turned into OCI specs."""

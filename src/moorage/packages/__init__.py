"""Packages of plugins: between registries, archives, images, directories and containerd's store."""

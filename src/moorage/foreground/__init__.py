"""What ``moorage run`` does: one plugin, private directories, a private containerd, until the command ends."""

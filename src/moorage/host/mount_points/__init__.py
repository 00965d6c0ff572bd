"""What is done at the mount points of consumers, in directories that plugins control."""

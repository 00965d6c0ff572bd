"""Values of events and of metrics; ``moorage.containerd.types`` has all of them under one name."""

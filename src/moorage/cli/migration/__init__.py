"""What ``moorage migrate`` reads of a Docker daemon's data directory."""

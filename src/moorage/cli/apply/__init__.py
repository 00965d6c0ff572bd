"""What ``moorage apply`` does with the desired state of a file."""

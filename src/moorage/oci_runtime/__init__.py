"""The program that runs containers for the shim of containerd, such as runc: which one, and does it work here."""

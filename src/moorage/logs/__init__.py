"""Output of plugins: stamped lines in rotated files, tail and follow."""

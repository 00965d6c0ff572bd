"""Shims of tasks: finding them, their scheduling, groups that share one, the exit that only they know, leftovers."""

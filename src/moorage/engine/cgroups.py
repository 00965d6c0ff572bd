"""The control group above the plugins' own. The runtime makes it, and leaves it."""

import os

__all__ = ("remove_empty_parent",)


def remove_empty_parent(name: str = "moorage") -> None:
    """Remove the group above all plugins from every hierarchy, version 1 and 2, where it is empty (blocking)."""
    for mount_point in _hierarchies():
        try:
            os.rmdir(os.path.join(mount_point, name))
        except OSError:
            pass  # not there, or another plugin lives in it


def _hierarchies() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        fields = [line.split(" ") for line in lines]
    return [each[4] for each in fields if each[each.index("-") + 1] in ("cgroup", "cgroup2")]

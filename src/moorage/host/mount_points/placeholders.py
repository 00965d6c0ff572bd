"""Remove what covers the mount points of consumers, in directories that a running plugin controls (row P11a).

The plugin can replace any directory above such a mount point by a symbolic link. So the directory that has it is opened
beneath one that only root controls, and the mount is named by that descriptor and not by its path.
"""

import os
from pathlib import Path

from moorage.host import proc
from moorage.host.directory_tree import open_beneath
from moorage.host.mounts import detach, is_placeholder, mount_state

__all__ = ("remove_placeholders",)

_STACKED = 1000  # mounts on one mount point that are unmounted before this gives up
_ROOT = Path("/")


def remove_placeholders(point: Path, *, base: Path = _ROOT, retains_last: bool = False) -> None:
    """Unmount placeholders and dead mounts at exactly this path, until something else is uppermost. May be repeated.

    ``base`` is a directory above it that only root controls; between them, no symbolic link is followed.
    ``retains_last`` is for dead mounts over a placeholder only, until that one is uppermost.

    Raises: OSError for what cannot be detached, and for a link in the way.
    """
    try:
        parent = _open_parent(point, base)
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing is mounted where nothing is
    try:
        for _ in range(_STACKED):
            present = Path(os.readlink(proc.descriptor_path(parent))) / point.name
            if mount_state(present) not in (("dead",) if retains_last else ("placeholder", "dead")):
                return
            if retains_last and not any(is_placeholder(each) for each in proc.mounts() if each.point == str(present)):
                return
            detach(present, point, parent)
    finally:
        os.close(parent)


def _open_parent(point: Path, base: Path) -> int:
    """Raises: OSError."""
    top = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(top, str(point.parent.relative_to(base)), os.O_PATH | os.O_DIRECTORY, crosses_mounts=True)
    finally:
        os.close(top)

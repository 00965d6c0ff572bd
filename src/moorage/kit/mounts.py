"""Mounts that may be repeated: what a driver does in ``attach`` and ``detach``."""

import os
import re
from pathlib import Path

__all__ = ("bind_mount", "is_mounted", "unmount")

_MS_BIND, _MNT_DETACH, _UMOUNT_NOFOLLOW = 4096, 2, 8  # linux/mount.h
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def is_mounted(target: Path) -> bool:
    """Whether something is mounted at a path in this mount namespace. ``os.path.ismount`` does not see a bind mount
    within one file system."""
    path = os.fsencode(os.path.abspath(target))
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = line.split(b" ")[4]
        if _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), point) == path:
            return True
    return False


def bind_mount(source: Path, target: Path) -> None:
    """Show a directory at another path, which is made; nothing is done where something is mounted already.

    Raises:
        OSError: the kernel refuses
    """
    target.mkdir(parents=True, exist_ok=True)
    if is_mounted(target):
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None) != 0:
        _fail(ctypes.get_errno(), target)


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount whatever is mounted at a path, and remove the directory if it is empty then; may be repeated.

    ``lazy`` detaches it also while files of it are open.

    Raises:
        OSError: EBUSY while it is in use
    """
    while is_mounted(target):
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) != 0:
            _fail(ctypes.get_errno(), target)
    try:
        target.rmdir()
    except OSError:
        pass  # it does not exist, or has files of its own


def _fail(number: int, target: Path) -> None:
    raise OSError(number, os.strerror(number), str(target))

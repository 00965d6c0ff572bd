"""Device nodes of this host. Nothing is opened. Everything here blocks. Source: stat(2), makedev(3)."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from msgspec import Struct

__all__ = ("Device", "find_devices")

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class Device(Struct, frozen=True):
    """One device node."""

    path: str
    type: str
    """"c" for a character device, "b" for a block device."""
    major: int
    minor: int
    mode: int
    """Permission bits."""
    uid: int
    gid: int


def find_devices(path: str) -> Sequence[Device]:
    """The device at ``path``, or every device below it if it is a directory, by name; empty if nothing exists.

    Links are followed for ``path`` itself, and the device has the path that was requested. Links and FIFOs inside a
    directory are ignored, as dockerd does.

    Raises: OSError if a path cannot be examined.
    """
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
        if stat.S_ISDIR(status.st_mode):
            return tuple(_below(real, path))
    except OSError as error:
        if error.errno in _ABSENT:
            return ()
        raise
    device = _device(status, path)
    return (device,) if device is not None else ()


def _below(directory: str, path: str) -> Iterator[Device]:
    for entry in sorted(os.scandir(directory), key=lambda each: each.name):
        inner = os.path.join(path, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, inner)
            continue
        try:
            device = _device(entry.stat(follow_symlinks=False), inner)
        except FileNotFoundError:  # unplugged meanwhile
            continue
        if device is not None:
            yield device


def _device(status: os.stat_result, path: str) -> Device | None:
    if stat.S_ISCHR(status.st_mode):
        type = "c"
    elif stat.S_ISBLK(status.st_mode):
        type = "b"
    else:
        return None
    number = status.st_rdev
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return Device(path, type, os.major(number), os.minor(number), mode, status.st_uid, status.st_gid)

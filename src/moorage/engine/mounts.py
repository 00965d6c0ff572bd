"""The only mount(2) and umount2(2) calls. All of them block: call them in a worker thread.

The standard library has no binding for them, and the ``mount`` command reports no error number.
Source: mount(2), umount(2), Linux ``include/uapi/linux/mount.h``.
"""

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from moorage import errors
from moorage._lib.threads import mount_points_below
from moorage.containerd.types import Mount

__all__ = (
    "bind",
    "bind_shared",
    "drop_dead_mounts",
    "is_mount_point",
    "mount_all",
    "mount_overlay",
    "unmount_all_below",
)

_FLAGS = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "bind": 0x1000, "rbind": 0x5000, "rw": 0}
_PAGE = 4096  # bytes of options that mount(2) takes
_DEAD = frozenset({errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.EHOSTDOWN})

_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def bind_shared(directory: Path) -> None:
    """Make a directory a shared mount of its own, so that what is mounted inside shows on both sides of a container.

    The root mount of small machines and of containers is private; without this a mount made inside stays there.
    """
    _mount(str(directory), directory, "none", _MS_BIND | _MS_REC)
    _mount("none", directory, "none", _MS_SHARED | _MS_REC)


def bind(directory: Path, target: Path) -> None:
    """Show a directory at ``target``, without what is mounted below it."""
    _mount(str(directory), target, "none", _MS_BIND)


def mount_overlay(lower: Path, scratch: Path, target: Path) -> None:
    """Show ``lower`` at ``target``, which exists, with every change kept in ``scratch/upper``. Makes what it needs.

    Raises: Unsupported where the kernel or the file system of ``scratch`` cannot do it.
    """
    upper, work = scratch / "upper", scratch / "work"
    for directory in (upper, work):
        directory.mkdir(exist_ok=True)
    lower_status = os.stat(lower)
    os.chmod(upper, lower_status.st_mode & 0o7777)
    os.chown(upper, lower_status.st_uid, lower_status.st_gid)
    # Colons, commas and backslashes have a meaning in the options, so descriptors stand for the paths.
    descriptors: list[int] = []
    try:
        descriptors.extend(os.open(each, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for each in (lower, upper, work))
        names = [f"/proc/self/fd/{descriptor}" for descriptor in descriptors]
        _mount("overlay", target, "overlay", 0, f"lowerdir={names[0]},upperdir={names[1]},workdir={names[2]}")
    except OSError as error:
        raise errors.Unsupported(f"cannot lay an overlay over {lower} in {scratch}: {error.strerror}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def mount_all(mounts: Sequence[Mount], target: Path) -> None:
    """Make the mounts that containerd gives for a snapshot, at ``target``, which exists.

    Raises: Unsupported where the kernel refuses one.
    """
    for mount in mounts:
        flags = 0
        for option in mount.options:
            flags |= _FLAGS.get(option, 0)
        data = ",".join(option for option in mount.options if option not in _FLAGS)
        if len(data) >= _PAGE:
            raise errors.Unsupported(f"cannot mount a root of so many layers: its options have {len(data)} bytes")
        kind = "none" if mount.type == "bind" else mount.type
        try:
            _mount(mount.source, target, kind, flags, data)
        except OSError as error:
            raise errors.Unsupported(f"cannot mount {mount.type} on {target}: {error.strerror}") from error


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted exactly there."""
    return Path(os.path.realpath(path)) in mount_points_below(path)


def drop_dead_mounts(directory: Path) -> list[Path]:
    """Unmount what is mounted below a directory and whose server is gone (FUSE); which ones. Live ones stay."""
    dropped = []
    for point in mount_points_below(directory):
        try:
            os.stat(point)
        except OSError as error:
            if error.errno in _DEAD:
                _unmount(point, _MNT_DETACH)
                dropped.append(point)
    return dropped


def unmount_all_below(directory: Path) -> None:
    """Unmount everything at or below a directory, deepest first, stacked mounts included.

    What is busy is detached: it goes when its last user does. Raises: OSError for what cannot even be detached.
    """
    for point in mount_points_below(directory):
        try:
            _unmount(point, 0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                _unmount(point, _MNT_DETACH)
            elif error.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted any more, with what it stood on
                raise


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data) or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _unmount(target: Path, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))

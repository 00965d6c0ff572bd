"""Looks up on the host what ``plugins.spec`` has to know: devices, and flags that must stay. Opens nothing."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator

from moorage import errors
from moorage.plugins.spec import DeviceNode

__all__ = ("is_in_user_namespace", "locked_flags", "resolve_device", "resolve_devices")

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})

_WHOLE_ID_RANGE = ["0", "0", str(2**32 - 1)]
_FLAGS = {
    "ro": os.ST_RDONLY,
    "nosuid": os.ST_NOSUID,
    "nodev": os.ST_NODEV,
    "noexec": os.ST_NOEXEC,
    "noatime": os.ST_NOATIME,
    "nodiratime": os.ST_NODIRATIME,
    "relatime": os.ST_RELATIME,
}


def is_in_user_namespace() -> bool:
    """Whether this process is not in the first user namespace (user_namespaces(7))."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as map:
            return map.read().split() != _WHOLE_ID_RANGE
    except FileNotFoundError:  # a kernel without user namespaces
        return False


def locked_flags(sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The mount options that each source has now, for ``Places.locked_flags`` (blocking).

    Inside a user namespace the kernel refuses a remount that would lose one (mount_namespaces(7)).

    Raises: Unavailable if a source cannot be looked at.
    """
    found = {}
    for source in dict.fromkeys(sources):
        try:
            flags = os.statvfs(source).f_flag
        except OSError as error:
            raise errors.Unavailable(f"cannot look at mount source {source}: {error.strerror}") from error
        found[source] = tuple(name for name, bit in _FLAGS.items() if flags & bit)
    return found


def resolve_devices(paths: Iterable[str]) -> dict[str, tuple[DeviceNode, ...]]:
    """The device nodes at each path (blocking); a path with none is left out, and ``build_spec`` then says why not.

    Raises: Unavailable if a path cannot be looked at.
    """
    found = {path: resolve_device(path) for path in dict.fromkeys(paths)}
    return {path: nodes for path, nodes in found.items() if nodes}


def resolve_device(path: str) -> tuple[DeviceNode, ...]:
    """The device at ``path``, or every device below it if it is a directory, by name.

    Links are followed for ``path`` itself, and the node keeps the path that was asked for. Links and FIFOs inside a
    directory are passed over, as dockerd does.
    """
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
        if stat.S_ISDIR(status.st_mode):
            return tuple(_below(real, path))
        node = _node(status, path)
        return (node,) if node is not None else ()
    except OSError as error:
        if error.errno in _ABSENT:
            return ()
        raise errors.Unavailable(f"cannot look at device {path}: {error.strerror}") from error


def _below(directory: str, shown: str) -> Iterator[DeviceNode]:
    for entry in sorted(os.scandir(directory), key=lambda each: each.name):
        inner = os.path.join(shown, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, inner)
            continue
        try:
            node = _node(entry.stat(follow_symlinks=False), inner)
        except FileNotFoundError:  # unplugged meanwhile
            continue
        if node is not None:
            yield node


def _node(status: os.stat_result, path: str) -> DeviceNode | None:
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    number = status.st_rdev
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return DeviceNode(path, kind, os.major(number), os.minor(number), mode, status.st_uid, status.st_gid)

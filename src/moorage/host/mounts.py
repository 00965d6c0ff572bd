"""The only mount(2) and umount2(2) calls. All of them block: call them in a worker thread.

The standard library has no binding for them, and the ``mount`` command reports no error number.
Source: mount(2), umount(2), Linux ``include/uapi/linux/mount.h``.
"""

import ctypes
import errno
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

from moorage import errors
from moorage._lib.time_limit import call_bounded
from moorage.host import proc
from moorage.timeouts import DEFAULT

__all__ = (
    "MountRequest",
    "MountState",
    "bind",
    "bind_descriptor",
    "bind_shared",
    "detach",
    "drop_dead_mounts",
    "is_in_placeholder",
    "is_mount_point",
    "is_placeholder",
    "mount_all",
    "mount_options",
    "mount_overlay",
    "mount_placeholder",
    "mount_points_below",
    "mount_state",
    "open_view",
    "resolved_by_parent",
    "restrict",
    "unmount_all_below",
    "unmount_views",
)

MountState = Literal["none", "live", "dead", "hung", "placeholder"]
"""What the uppermost mount of a mount point is: ``dead`` where its server (FUSE) is gone."""


class MountRequest(Protocol):
    """What mount(2) is called with."""

    @property
    def type(self) -> str:
        """Of the file system; "bind" for a bind mount."""
        ...

    @property
    def source(self) -> str:
        """A device, a directory, or any text, depending on the type."""
        ...

    @property
    def options(self) -> Sequence[str]:
        """As mount(8) has them."""
        ...


_FLAGS = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "bind": 0x1000, "rbind": 0x5000, "rw": 0}
_OPTIONS = {
    "ro": os.ST_RDONLY,
    "nosuid": os.ST_NOSUID,
    "nodev": os.ST_NODEV,
    "noexec": os.ST_NOEXEC,
    "noatime": os.ST_NOATIME,
    "nodiratime": os.ST_NODIRATIME,
    "relatime": os.ST_RELATIME,
}
_PAGE = 4096  # bytes of options that mount(2) takes
_DEAD = frozenset({errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.EHOSTDOWN})

_PLACEHOLDER, _PLACEHOLDER_INODES = "moorage-placeholder", 2
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SHARED, _MS_SLAVE = 0x20, 0x1000, 0x4000, 1 << 18, 1 << 20, 1 << 19
_STATVFS_FLAGS = 0xF  # ro, nosuid, nodev, noexec: the same bits in statvfs(3) as in mount(2)
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PIN = re.compile(r"/p/[0-9a-f]{12}/m/[^/]+$")  # what ``bind_descriptor`` made: see runs/pins.py

_RESPONSE = DEFAULT.mount_answer
"""Seconds until a mounted file system must have answered; one that has not counts as hung."""
_LEAST_RESPONSE = DEFAULT.mount_least_answer  # seconds, for each after others have taken all the time
_STACKED = 1000  # mounts on one mount point that are unmounted before this fails

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def bind_shared(directory: Path) -> None:
    """Make a directory a shared mount of its own, so that mounts below it propagate between a container and the host.

    The root mount of small machines and of containers is private; without this, a mount in a container stays there.
    """
    _mount(str(directory), directory, "none", _MS_BIND | _MS_REC)
    _mount("none", directory, "none", _MS_SHARED | _MS_REC)


def bind(directory: Path, target: Path) -> None:
    """Bind a directory to ``target``, without what is mounted below it. Raises: OSError."""
    _mount(str(directory), target, "none", _MS_BIND)


def bind_descriptor(descriptor: int, target: Path, *, is_recursive: bool, is_shared: bool) -> None:
    """Bind what a descriptor refers to, with what is mounted below it if ``is_recursive``, to ``target``.

    Later mounts propagate in both directions if ``is_shared``, else only from the source; not recursive and not shared,
    they do not propagate. Raises: OSError.
    """
    _mount(proc.descriptor_path(descriptor), target, "none", _MS_BIND | (_MS_REC if is_recursive else 0))
    if not is_shared:
        _mount("none", target, "none", (_MS_SLAVE if is_recursive else _MS_PRIVATE) | _MS_REC)


def mount_overlay(lower: Path, scratch: Path, target: Path) -> None:
    """Mount ``lower`` at ``target``, which exists, with every change stored in ``scratch/upper``.

    Raises: Unsupported if the kernel or the file system of ``scratch`` does not support it.
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
        names = [proc.descriptor_path(descriptor) for descriptor in descriptors]
        _mount("overlay", target, "overlay", 0, f"lowerdir={names[0]},upperdir={names[1]},workdir={names[2]}")
    except OSError as error:
        raise errors.Unsupported(f"cannot lay an overlay over {lower} in {scratch}: {error.strerror}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def mount_all(mounts: Sequence[MountRequest], target: Path) -> None:
    """Make the mounts that containerd returns for a snapshot, at ``target``, which exists.

    Raises: Unsupported if the kernel refuses one.
    """
    for mount in mounts:
        flags = 0
        for option in mount.options:
            flags |= _FLAGS.get(option, 0)
        options = [option for option in mount.options if option not in _FLAGS]
        kind = "none" if mount.type == "bind" else mount.type
        try:
            with _within_a_page(options) as data:
                _mount(mount.source, target, kind, flags, data)
        except OSError as error:
            raise errors.Unsupported(f"cannot mount {mount.type} on {target}: {error.strerror}") from error


@contextmanager
def _within_a_page(options: Sequence[str]) -> Iterator[str]:
    """The options as text that mount(2) takes, for the length of the block.

    The kernel takes a page of it, and 127 layers in a long directory have several. Where it is too long, descriptors
    stand for the directories of an overlay, as in ``mount_overlay``. Raises: OSError; Unsupported for too many layers.
    """
    text = ",".join(options)
    if len(os.fsencode(text)) < _PAGE:
        yield text
        return
    with ExitStack() as opened:

        def shorten(path: str) -> str:
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            return proc.descriptor_path(descriptor)

        text = ",".join(_shortened(option, shorten) for option in options)
        if len(text) >= _PAGE:
            raise errors.Unsupported(f"cannot mount a root of so many layers: its options have {len(text)} bytes")
        yield text


def _shortened(option: str, shorten: Callable[[str], str]) -> str:
    key, _, value = option.partition("=")
    if key not in ("lowerdir", "upperdir", "workdir"):
        return option
    paths = value.split(":") if key == "lowerdir" else [value]
    return f"{key}={':'.join(map(shorten, paths))}"


def mount_options(path: str) -> tuple[str, ...]:
    """The options of the mount that has a path, without those of its file system. Raises: OSError."""
    flags = os.statvfs(path).f_flag
    return tuple(name for name, bit in _OPTIONS.items() if flags & bit)


def restrict(target: Path) -> None:
    """Forbid set-uid programs and devices in what is mounted at ``target``, in this mount only. Raises: OSError.

    Other mounts of the same files, a container's, are not affected.
    """
    flags = os.statvfs(target).f_flag & _STATVFS_FLAGS
    _mount("none", target, "none", _MS_REMOUNT | _MS_BIND | flags | _MS_NOSUID | _MS_NODEV)


def open_view(source: Path, target: Path, *, recursive: bool = False) -> None:
    """Bind a directory to ``target`` with set-uid programs and devices allowed, for a runtime to bind from.

    A bind inherits the flags of what it binds, so what a container gets cannot be bound from the restricted mount.
    ``recursive`` includes what is mounted below it. ``unmount_views`` unmounts it. Raises: OSError.
    """
    _mount(str(source), target, "none", _MS_BIND | (_MS_REC if recursive else 0))
    flags = os.statvfs(target).f_flag & _STATVFS_FLAGS & ~(_MS_NOSUID | _MS_NODEV)
    _mount("none", target, "none", _MS_REMOUNT | _MS_BIND | flags)


def unmount_views(targets: Collection[Path]) -> None:
    """Unmount what ``open_view`` has mounted at any of these, if anything. Raises: OSError.

    Each is made private first: unmounting one of several shared mounts unmounts what is below it from all of them.
    """
    for target in _mount_points_among(targets):
        _mount("none", target, "none", _MS_PRIVATE | _MS_REC)
        _unmount(target)


def mount_points_below(path: Path) -> list[Path]:
    """The mount points at or below a directory of this mount namespace, deepest first; each as often as it is mounted.

    What is mounted there is not touched, also where it covers the directory itself: it may hang.
    """
    top = resolved_by_parent(path)
    below = top.rstrip("/") + "/"
    found = [Path(point) for point in proc.mount_points() if point == top or point.startswith(below)]
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


def resolved_by_parent(path: Path) -> str:
    """The path with the symbolic links above its last component resolved, without touching what is mounted at the path.

    A file system that is mounted there may hang, and another user may have put a link there.
    """
    return os.path.join(os.path.realpath(path.parent), path.name)


def _mount_points_among(paths: Collection[Path]) -> list[Path]:
    """Those of the paths that are mount points themselves, as often as they are. What is mounted is not touched."""
    resolved = {resolved_by_parent(each): each for each in paths}
    return [resolved[point] for point in proc.mount_points() if point in resolved]


def is_mount_point(path: Path) -> bool:
    """Whether this very path is a mount point. What is mounted is not touched: it may hang."""
    return path in _mount_points_among([path])


def mount_placeholder(directory: int) -> None:
    """Mount an empty file system that cannot be written over an open directory. Raises: OSError.

    Also over a dead mount: what is mounted there next is mounted over the placeholder.
    """
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(
        _PLACEHOLDER,
        Path(proc.descriptor_path(directory)),
        "tmpfs",
        flags,
        f"mode=0555,size=4k,nr_inodes={_PLACEHOLDER_INODES}",
    )


def is_in_placeholder(directory: int, point: str) -> bool:
    """Whether an open directory is in one of ``mount_placeholder`` at this mount point. Raises: OSError.

    The list of all mounts, which takes milliseconds where there are many, is read only where it looks like one.
    """
    found = os.fstatvfs(directory)
    if not found.f_flag & os.ST_RDONLY or found.f_files != _PLACEHOLDER_INODES:
        return False
    return any(map(is_placeholder, [each for each in proc.mounts() if each.point == point][-1:]))


def is_placeholder(mount: proc.MountInfo) -> bool:
    """Whether a mount is one of ``mount_placeholder``."""
    return (mount.type, mount.source) == ("tmpfs", _PLACEHOLDER)


def mount_state(point: Path) -> MountState:
    """What is mounted at exactly this path, uppermost; a file system that does not respond in time is ``hung``."""
    resolved = resolved_by_parent(point)
    found = [each for each in proc.mounts() if each.point == resolved]
    if not found:
        return "none"
    if is_placeholder(found[-1]):
        return "placeholder"
    try:
        call_bounded(lambda: os.stat(resolved), _RESPONSE, f"query {point}", owner=resolved)
    except OSError as error:
        return "dead" if error.errno in _DEAD else "live"
    except errors.Unavailable:
        return "hung"
    return "live"


def drop_dead_mounts(directory: Path, retained: Collection[Path] = ()) -> tuple[list[Path], list[Path]]:
    """Unmount what is mounted below a directory and whose server is gone (FUSE); live mounts stay, and the retained.

    Returns the mount points that were unmounted, and those that do not respond. The latter may be in use and respond
    again, so they stay, but for one that covers the directory itself: nothing could reach the directory.
    """
    dropped, hung = [], []
    until = time.monotonic() + _RESPONSE  # all of them together, however many hang
    for point in mount_points_below(directory):
        if point in retained:
            continue
        within = max(until - time.monotonic(), _LEAST_RESPONSE)
        try:
            call_bounded(lambda point=point: os.stat(point), within, f"query {point}", owner=str(directory))  # type: ignore[misc]
        except OSError as error:
            if error.errno in _DEAD:
                detach(point, directory)
                dropped.append(point)
        except errors.Unavailable:
            if point == Path(resolved_by_parent(directory)):
                detach(point, directory)
                dropped.append(point)
            else:
                hung.append(point)
    return dropped, hung


def unmount_all_below(directory: Path) -> None:
    """Unmount everything at or below a directory, stacked mounts included.

    Everything is detached: what is in use is unmounted when its last user exits, and a file system that hangs delays no
    caller. The uppermost mounts go first, because the path of a mount below one that hangs could not be resolved.

    Raises: OSError for what cannot even be detached.
    """
    for point in (points := mount_points_below(directory)):
        if _PIN.search(str(point)):  # it may be a peer of a mount of the host, which would be unmounted with it
            call_bounded(lambda point=point: _make_private(point), _RESPONSE, f"unmount {point}", owner=str(directory))  # type: ignore[misc]
    for _ in range(_STACKED):
        if not points:
            return
        upper = [each for each in points if not any(other in each.parents for other in points)]
        for point in dict.fromkeys(upper):
            detach(point, directory)
        points = mount_points_below(directory)
    raise OSError(errno.EBUSY, "is still a mount point after unmounting", str(directory))


def detach(point: Path, owner: Path, parent: int | None = None) -> None:
    """Detach a mount; in a thread of its own, because the kernel may wait for its server after it is detached.

    ``parent`` is its open directory where others could replace a part of the path. ``owner`` is whose hang it would be.

    Raises: OSError for what cannot be detached.
    """
    own = os.dup(parent) if parent is not None else -1

    def unmount() -> None:
        try:
            _unmount(Path(proc.descriptor_path(own), point.name) if own >= 0 else point)
        finally:
            if own >= 0:
                os.close(own)

    try:
        call_bounded(unmount, _RESPONSE, f"unmount {point}", owner=str(owner))
    except errors.Unavailable as error:
        if point in mount_points_below(point):
            raise OSError(errno.EBUSY, "cannot be unmounted: it does not answer", str(point)) from error
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted any more, as what was below it
            raise


def _make_private(point: Path) -> None:
    with suppress(OSError):
        _mount("none", point, "none", _MS_PRIVATE | _MS_REC)


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data) or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _unmount(target: Path) -> None:
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))

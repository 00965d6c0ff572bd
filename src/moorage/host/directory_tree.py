"""Directory trees that a plugin or another user controls: everything below a directory is opened by its descriptor.

A user who may write below a directory can replace any part of a path between a check and its use, put a symbolic link
there, or mount something over it. So such a path is never resolved from the root: the directory is opened once, by a
path that only root controls, and the kernel resolves the rest beneath it, without symbolic links and without crossing
a mount point. A mount point is refused before the file system mounted there is queried, so one that hangs (FUSE, NFS)
cannot hang the caller.

This is the only module that resolves such paths; ``tests/unit/test_directory_tree_only.py`` keeps it so.
Source: openat2(2), Linux 5.6.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from moorage._lib.threads import run_blocking
from moorage.host import proc
from moorage.host.mounts import mount_points_below

__all__ = (
    "Directory",
    "FileIdentity",
    "file_identity",
    "open_beneath",
    "read_below",
    "remove_directories",
    "remove_tree",
    "remove_tree_now",
    "tree_bytes",
)

_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_BLOCK = 512  # bytes of st_blocks, whatever the file system's own are

_AT_EMPTY_PATH = 0x1000
_STATX_INO, _STATX_MNT_ID = 0x100, 0x1000
_STATX = struct.Struct("I28xQ96xIIQ104x")  # mask, inode, major and minor number of the device, mount

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]  # type: ignore[mutable-override]  # ctypes reads a list


def open_beneath(directory: int, path: str, flags: int, mode: int = 0, *, crosses_mounts: bool = False) -> int:
    """Open a path relative to an open directory; a descriptor that the caller closes, not inherited by programs.

    No symbolic link is followed, also not in the middle; one at the end can be opened with O_PATH | O_NOFOLLOW.

    Raises: OSError: EXDEV for a path that leads out of the directory or over a mount point (allowed with
    ``crosses_mounts``), ELOOP for a symbolic link, ENOSYS for a kernel older than 5.6.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | (0 if crosses_mounts else _RESOLVE_NO_XDEV)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        descriptor: int = _libc.syscall(
            _OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):  # EAGAIN: something was renamed while the kernel resolved it
            raise OSError(number, os.strerror(number), path)


class FileIdentity(NamedTuple):
    """Which file an open descriptor refers to, and through which mount."""

    device: tuple[int, int]
    """Major and minor number."""
    inode: int
    mount: int
    """The kernel's id."""


def file_identity(descriptor: int) -> FileIdentity:
    """Of an open file; a file system that hangs hangs this. Raises: OSError. Source: statx(2), Linux 5.8."""
    found = ctypes.create_string_buffer(_STATX.size)
    if _libc.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_INO | _STATX_MNT_ID, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    mask, inode, major, minor, mount = _STATX.unpack(found.raw)
    return FileIdentity((major, minor), inode, mount if mask & _STATX_MNT_ID else proc.mount_id(descriptor))


class Directory:
    """An open directory. It owns its descriptor: close it, or use it in a ``with`` statement."""

    def __init__(self, descriptor: int) -> None:
        """Takes over the descriptor of a directory."""
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, *, may_be_link: bool = False) -> Self:
        """The directory at a path whose every component only root can change.

        ``may_be_link`` is for a directory that an operator chose, perhaps through a symbolic link.

        Raises: OSError if it does not exist, or is a symbolic link.
        """
        return cls(os.open(path, _DIRECTORY | os.O_CLOEXEC | (0 if may_be_link else os.O_NOFOLLOW)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The descriptor, which stays this object's."""
        return self._descriptor

    def open_directory(self, name: str) -> "Directory":
        """A directory beneath this one. Raises: OSError as ``open_beneath``."""
        return Directory(open_beneath(self._descriptor, name, _DIRECTORY))

    def make_directory(
        self, name: str, *, mode: int, uid: int = 0, gid: int = 0, exist_ok: bool = False
    ) -> "Directory":
        """Create a directory, with exactly this mode whatever the umask is; the caller closes it.

        The owner changes last, on the descriptor, so that no other user can replace it in between. ``exist_ok`` accepts
        an existing one, and sets its mode and owner.

        Raises: OSError, also if something else has the name.
        """
        try:
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
        except FileExistsError:
            if not exist_ok:
                raise
        made = self.open_directory(name)
        try:
            os.fchmod(made.fileno(), mode)
            os.fchown(made.fileno(), uid, gid)
        except BaseException:
            made.close()
            raise
        return made

    def status(self, path: str) -> os.stat_result | None:
        """What is at a path beneath, a symbolic link as itself; None where nothing is, or what may not be reached."""
        try:
            descriptor = open_beneath(self._descriptor, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def walk(self) -> Iterator[tuple[int, str, bool]]:
        """Every entry below: the descriptor of its directory, its name, whether it is a directory; those come last.

        Raises: OSError: EBUSY for a mount point.
        """
        yield from _walk(self._descriptor, skips_mounts=False)

    def remove(self, name: str) -> None:
        """Remove an entry with all below it. One that is gone already is fine.

        Works for any depth and length of path. Never deletes across a mount point.

        Raises: OSError naming what could not be removed (EBUSY for a mount point).
        """
        _remove(self._descriptor, name)


async def remove_tree(path: Path) -> None:
    """As ``remove_tree_now``, in a worker thread."""
    await run_blocking(lambda: remove_tree_now(path))


def remove_tree_now(path: Path) -> None:
    """Remove a directory with all below it (blocking). One that is gone already is fine.

    Only the path of its parent is resolved. Never deletes across a mount point: where one is below, nothing is removed.

    Raises: OSError naming what could not be removed (EBUSY for a mount point).
    """
    if points := mount_points_below(path):
        raise _is_mount_point(str(points[0]))
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove(parent, path.name, needs_directory=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path.parent / (error.filename or path.name))) from error
    finally:
        os.close(parent)


def tree_bytes(path: Path) -> int:
    """Bytes that files take below a directory, each once, without what is mounted there (blocking).

    0 for a directory that does not exist. Raises: OSError if the directory itself cannot be read.
    """
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    seen: set[tuple[int, int]] = set()
    total = 0
    try:
        # It may be a mount point of the engine itself, so the first step may cross one.
        with Directory(open_beneath(parent, path.name, _DIRECTORY, crosses_mounts=True)) as top:
            for directory, name, _ in _walk(top.fileno(), skips_mounts=True):
                try:
                    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed while this counted
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * _BLOCK
    except (FileNotFoundError, NotADirectoryError):
        return total
    finally:
        os.close(parent)
    return total


def read_below(path: Path, name: str) -> Iterator[bytes]:
    """What the files of this name say, in a directory and in all below it, of any depth; without those that are gone.

    For control groups, whose tree a plugin that was granted them can make as deep as it likes.
    """
    try:
        top = os.open(path, _DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for directory, entry, is_directory in _walk(top, skips_mounts=True):
            if not is_directory and entry == name:
                with suppress(OSError), open(open_beneath(directory, entry, os.O_RDONLY), "rb") as file:
                    yield file.read()
    except OSError:
        return  # a group was removed while this read
    finally:
        os.close(top)


def remove_directories(path: Path) -> None:
    """Remove a directory and all directories below it, of any depth, as far as that can be done; files are left alone.

    For control groups, whose files go with their directory.
    """
    with suppress(OSError):
        top = os.open(path, _DIRECTORY | os.O_CLOEXEC)
        try:
            for directory, entry, is_directory in _walk(top, skips_mounts=True):
                if is_directory:
                    with suppress(OSError):
                        os.rmdir(entry, dir_fd=directory)
        finally:
            os.close(top)
    with suppress(OSError):
        os.rmdir(path)


def _remove(parent: int, name: str, *, needs_directory: bool = False) -> None:
    try:
        top = open_beneath(parent, name, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _is_mount_point(name) from error
        if needs_directory or error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        _unlink(parent, name, is_directory=False)
        return
    try:
        for directory, entry, is_directory in _walk(top, skips_mounts=False):
            _unlink(directory, entry, is_directory=is_directory)
    finally:
        os.close(top)
    _unlink(parent, name, is_directory=True)


def _unlink(directory: int, name: str, *, is_directory: bool) -> None:
    try:
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)
    except FileNotFoundError:
        pass  # another process was quicker


class _Level:
    """One directory on the way down: its name, what it is, and the directories in it that are still to be visited."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.identity = _identity(descriptor)
        self.waiting: list[str] = []


def _walk(top: int, *, skips_mounts: bool) -> Iterator[tuple[int, str, bool]]:
    """Every entry below an open directory: the descriptor of its directory, its name, whether it is a directory.

    A directory comes after all in it. Two descriptors are open at a time, however deep the tree is: it goes
    up by "..", checked against the identity that was read on the way down.

    Raises: OSError, EBUSY for a mount point unless ``skips_mounts``, ESTALE for a directory that was moved meanwhile.
    """
    current = os.dup(top)
    levels = [_Level("", current)]
    try:
        yield from _files(current, levels[-1])
        while True:
            level = levels[-1]
            if level.waiting:
                child = _descend(current, level.waiting.pop(), levels, skips_mounts=skips_mounts)
                if child is not None:
                    os.close(current)
                    current = child
                    yield from _files(current, levels[-1])
            elif len(levels) > 1:
                levels.pop()
                above = os.open("..", _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = above
                if _identity(current) != levels[-1].identity:
                    raise OSError(errno.ESTALE, "was moved while its directory was read", level.name)
                yield current, level.name, True
            else:
                return
    finally:
        os.close(current)


def _files(directory: int, level: _Level) -> Iterator[tuple[int, str, bool]]:
    """The entries that are no directories; the others are put on the list of those to visit."""
    with os.scandir(directory) as entries:
        found = [(each.name, each.is_dir(follow_symlinks=False)) for each in entries]
    level.waiting = [name for name, is_directory in found if is_directory]
    for name, is_directory in found:
        if not is_directory:
            yield directory, name, False


def _descend(current: int, name: str, levels: list[_Level], *, skips_mounts: bool) -> int | None:
    """Open a directory and note it as the lowest level; None for one that is gone or is not to be visited."""
    try:
        child = open_beneath(current, name, _DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if skips_mounts:
            return None
        raise _is_mount_point(name) from error
    levels.append(_Level(name, child))
    return child


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _is_mount_point(path: str) -> OSError:
    return OSError(errno.EBUSY, "is a mount point and keeps the directory from being removed", path)

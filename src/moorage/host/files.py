"""Files and directories of the engine: replaced atomically, read with a bound, locked, private whatever the umask.

For paths that only root controls; ``host/directory_tree.py`` is for others.
"""

import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio

__all__ = (
    "file_lock",
    "keep_new_files_private",
    "last_line",
    "make_directory",
    "read_regular",
    "remove_empty_parents",
    "replace_file",
    "sync_directory",
    "try_lock",
    "write_atomically",
)

log = logging.getLogger(__name__)

_RETRY = 0.01  # seconds; polling keeps the wait cancellable, which a blocking flock in a thread is not
_ACL_VERSION = 2
_ACL_ENTRIES = ((0x01, 7), (0x04, 0), (0x20, 0))  # owner rwx, group nothing, others nothing
_NO_ID = 0xFFFFFFFF


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file, complete and on the disk when this returns (blocking). On failure the old one stays.

    One writer at a time: the name of the temporary file is fixed, so that the next writer replaces a leftover one.

    Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file of a run-time directory, complete for every other process and after SIGKILL of this one.

    Not after a crash of the machine, which empties such directories: nothing waits for a disk.

    One writer at a time. Raises: OSError; the old file stays.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, memoryview(data)[written:])
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync_directory(path: Path) -> None:
    """Write the names in a directory to the disk (blocking). Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """At most ``most_bytes`` of a file (blocking). Never waits, as opening a named pipe would.

    Raises: OSError, also if it is not a regular file.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        return file.read(most_bytes)


def last_line(path: Path, start: int = 0) -> str:
    """The last line with text that a program wrote to a file after its first ``start`` bytes (blocking).

    Without white space around it; empty where there is none, also for a file that does not exist.

    Raises: OSError.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def make_directory(path: Path, mode: int) -> None:
    """Create a directory with exactly this mode, and missing ones above it with 0755, whatever the umask is.

    An existing one keeps its mode, but for the right of others to write: they could replace what is in it.

    Raises: OSError; PermissionError for one that belongs to another user.
    """
    if not path.parent.exists():
        make_directory(path.parent, 0o755)
    try:
        path.mkdir()
    except FileExistsError:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(
                1, f"it belongs to user {found.st_uid}, who could replace what is in it", str(path)
            ) from None
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            log.warning("%s could be written to by other users (mode %o); now it cannot", path, found.st_mode & 0o7777)
            path.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    else:
        path.chmod(mode)


def remove_empty_parents(path: str, directory: str) -> None:
    """Remove the directories between this directory, which stays, and a file that was removed; those in use stay."""
    parent = os.path.dirname(path)
    with suppress(OSError):
        while directory and parent.startswith(f"{directory}/"):
            os.rmdir(parent)
            parent = os.path.dirname(parent)


def keep_new_files_private(directory: Path) -> None:
    """Make everything that any program creates below a directory from now on readable by its owner only.

    By a default access control list, which overrides the creator's umask. Nothing happens on a file system without such
    lists: the directory itself must be private, too. Source: acl(5), linux/posix_acl_xattr.h.
    """
    entries = b"".join(struct.pack("<HHI", tag, rights, _NO_ID) for tag, rights in _ACL_ENTRIES)
    with suppress(OSError):
        os.setxattr(directory, "system.posix_acl_default", struct.pack("<I", _ACL_VERSION) + entries)


def try_lock(path: Path) -> int | None:
    """Lock a file; its descriptor, which the caller closes to unlock it, or None if another process has the lock.

    The file is created if it is missing. The kernel releases the lock when the process exits.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@asynccontextmanager
async def file_lock(path: Path) -> AsyncIterator[None]:
    """Lock a file until the block ends, waiting for the lock without bound. Raises: OSError."""
    while (descriptor := try_lock(path)) is None:  # noqa: ASYNC110 - the kernel notifies no waiter
        await anyio.sleep(_RETRY)
    try:
        yield
    finally:
        os.close(descriptor)

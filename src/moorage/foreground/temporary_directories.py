"""Directories that exist as long as one command, and orphans of commands that were killed.

A run has two: ``state`` (sockets, FIFOs, mounts; short, because paths of unix sockets are) and ``data`` (what may
grow). ``state`` itself is locked while the command runs, so that the next one can distinguish orphans of a killed
command from directories in use. Two links in it say where ``data`` is and which plugin runs.
"""

import errno
import fcntl
import os
import secrets
import stat
import time
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host.directory_tree import remove_tree
from moorage.host.mounts import unmount_all_below
from moorage.host.proc import is_in_user_namespace

__all__ = ("TemporaryDirectories", "any_exist", "choose_paths", "create", "lock_orphans", "new_name")

_PREFIX = "moorage-run-"
_STATE_BASE = Path("/run")
_CHANGES = "upper"
_DATA_LINK = "data"
_ID_LINK = "id"
_TRIES, _PAUSE = 1000, 0.01  # seconds; a command that took the directory for an orphan removes it in a moment
_LEAST_FREE_BYTES = 1024 * 1024  # a little more than containerd needs for itself


class TemporaryDirectories(Struct, frozen=True):
    """The two directories of one run."""

    state: Path
    data: Path
    id: str
    """Of the plugin; empty where the command was killed before it recorded it."""
    descriptor: int
    """Holds the lock until ``unlock``."""

    @property
    def changes(self) -> Path:
        """What the plugin has written to its root file system."""
        return self.data / _CHANGES

    async def remove(self, *, keep_changes: bool = False) -> None:
        """Unmount and remove both, except ``changes`` with ``keep_changes``.

        Raises: Unavailable naming what cannot be removed; it stays, with its directory, for the next command.
        """
        try:
            await run_blocking(lambda: unmount_all_below(self.data))
            await run_blocking(lambda: unmount_all_below(self.state))
            if keep_changes and self.changes.is_dir():
                for entry in self.data.iterdir():
                    if entry.is_symlink() or not entry.is_dir():
                        entry.unlink()
                    elif entry != self.changes:
                        await remove_tree(entry)
            else:
                await remove_tree(self.data)
            await remove_tree(self.state)
        except OSError as error:
            raise errors.Unavailable(f"cannot remove {error.filename or self.state}: {error.strerror}") from error

    def unlock(self) -> None:
        """Release the lock: what still exists is an orphan, for the next command to remove."""
        os.close(self.descriptor)


def new_name() -> str:
    """A name that no other run has."""
    return secrets.token_hex(4)


def choose_paths(name: str) -> tuple[Path, Path]:
    """The paths of the state and the data of a run: /run, and TMPDIR or /var/tmp, because a plugin may write much.

    Raises: Invalid for a relative TMPDIR.
    """
    base = Path(os.environ.get("TMPDIR") or "/var/tmp")
    if not base.is_absolute():
        raise errors.Invalid(f"cannot make directories for this run: TMPDIR must be an absolute path, not {base}")
    return _STATE_BASE / f"{_PREFIX}{name}", base / f"{_PREFIX}{name}"


def create(state: Path, data: Path, id: str) -> TemporaryDirectories:
    """Make both directories, owned by and open to root only (blocking); both or none.

    All users can write to the directory above ``data``, so an existing directory is never used.

    Raises: Invalid where one of them cannot be made.
    """
    try:
        descriptor = _make_locked(state)
        try:
            _check_owner(data.parent)
            _check_free_space(data.parent)
            # from here on the next command finds both, wherever this one is killed
            (state / _DATA_LINK).symlink_to(data)
            (state / _ID_LINK).symlink_to(id)
            data.mkdir(mode=0o700)
        except BaseException:
            for path in (state / _DATA_LINK, state / _ID_LINK):
                path.unlink(missing_ok=True)
            state.rmdir()
            os.close(descriptor)
            raise
    except OSError as error:
        path = error.filename2 or error.filename
        is_data = path in (str(data), str(data.parent))
        advice = "; set TMPDIR to a directory that can be written to" if is_data else ""
        raise errors.Invalid(f"cannot use {path} for this run: {error.strerror}{advice}") from error
    return TemporaryDirectories(state, data, id, descriptor)


def _check_owner(directory: Path) -> None:
    """Refuse a directory in which another user could replace the directory of this run by a link. Raises: OSError."""
    if is_in_user_namespace():
        return  # where the owners of the host's directories are not mapped
    for path in (directory, *directory.parents):
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"it is below a directory of user {found.st_uid} ({path})", str(directory))
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise OSError(errno.EPERM, f"other users can write to {path}, which is not sticky", str(directory))


def _check_free_space(directory: Path) -> None:
    # With less than it needs, containerd starts all the same, and then answers that it has no services.
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < _LEAST_FREE_BYTES:  # some file systems report no sizes
        raise OSError(errno.ENOSPC, f"there is no room, it has only {free // 1024} KiB left", str(directory))


def _make_locked(state: Path) -> int:
    """Make the directory and take its lock; the descriptor of it.

    Another command that sees it before it is locked takes it for an orphan and removes it; then it is made again.

    Raises: OSError.
    """
    for _ in range(_TRIES):
        state.mkdir(mode=0o700, exist_ok=True)
        descriptor = _try_lock(state)
        if descriptor is not None:
            return descriptor
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(state))


def _try_lock(directory: Path) -> int | None:
    """The lock on a directory; None where it is locked or the directory does not exist any more. Raises: OSError."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(directory)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock_orphans() -> list[TemporaryDirectories]:
    """The directories of commands that were killed, locked (blocking). What another user could have made is ignored."""
    orphans = []
    for state in sorted(_STATE_BASE.glob(f"{_PREFIX}*")):
        if not _is_own(state):
            continue
        descriptor = _try_lock(state)
        if descriptor is not None:
            data, id = _read_link(state / _DATA_LINK), _read_link(state / _ID_LINK)
            # without a data directory, or with one of another user at its path, there is only the state
            is_whole = Path(data).name == state.name and _is_own(Path(data))
            orphans.append(TemporaryDirectories(state, Path(data) if is_whole else state / "lost", id, descriptor))
    return orphans


def any_exist() -> bool:
    """Whether there are directories of any run on this machine, in use or orphaned (blocking)."""
    return any(_STATE_BASE.glob(f"{_PREFIX}*"))


def _is_own(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

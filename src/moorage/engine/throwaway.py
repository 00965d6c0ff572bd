"""Directories that live as long as one command, and what is left of ones whose command was killed.

A pair: ``state`` (sockets, FIFOs, mounts; short, because paths of unix sockets are) and ``data`` (what may grow). The
directory ``state`` itself is locked as long as the command lives, so that the next one can tell a killed one's
leftovers from a live pair. It says in two links where ``data`` is and which plugin runs.
"""

import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from pathlib import Path

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.devices import is_in_user_namespace
from moorage.engine.foreground import Plan
from moorage.engine.mounts import bind, bind_shared, mount_overlay, unmount_all_below
from moorage.host.beneath import remove_tree

__all__ = ("Pair", "is_any_here", "make_pair", "new_name", "pair_paths", "prepare", "take_abandoned")

log = logging.getLogger(__name__)

_PREFIX = "moorage-run-"
_STATE_BASE = Path("/run")
_CHANGES = "upper"
_DATA_LINK = "data"
_ID_LINK = "id"
_TRIES, _PAUSE = 1000, 0.01  # seconds; a sweep that took the directory for a leftover needs a moment for it
_ROOM = 1024 * 1024  # bytes that containerd needs for itself, and some more


class Pair(Struct, frozen=True):
    """The two directories of one command. ``descriptor`` holds the lock."""

    state: Path
    data: Path
    id: str
    """Of the plugin; empty where the command was killed before it said so."""
    descriptor: int

    @property
    def changes(self) -> Path:
        """What the plugin has written to its root file system."""
        return self.data / _CHANGES

    async def remove(self, *, keep_changes: bool = False) -> None:
        """Unmount and remove both, but for ``changes`` if those are to be kept.

        Raises: Unavailable naming what is in the way; it stays, with its directory, for the next command to try again.
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

    def let_go(self) -> None:
        """Let the lock go: whatever is left is for the next command."""
        os.close(self.descriptor)


def new_name() -> str:
    """A name that no other run has."""
    return secrets.token_hex(4)


def pair_paths(name: str) -> tuple[Path, Path]:
    """Where the state and the data of a run go: /run, and TMPDIR or /var/tmp, because a plugin may write much.

    Raises: Invalid for a relative TMPDIR.
    """
    base = Path(os.environ.get("TMPDIR") or "/var/tmp")
    if not base.is_absolute():
        raise errors.Invalid(f"cannot make directories for this run: TMPDIR must be an absolute path, not {base}")
    return _STATE_BASE / f"{_PREFIX}{name}", base / f"{_PREFIX}{name}"


def make_pair(state: Path, data: Path, id: str) -> Pair:
    """Make both directories, owned by and open to root only (blocking); both or none.

    The base of ``data`` is everybody's, so a directory that is there already is never taken.

    Raises: Invalid where one of them cannot be made.
    """
    try:
        descriptor = _make_locked(state)
        try:
            _check_owner(data.parent)
            _check_room(data.parent)
            # From here on a sweep after us finds both, however far we come.
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
    return Pair(state, data, id, descriptor)


def _check_owner(directory: Path) -> None:
    """Refuse a directory in which another user could put a link in the place of ours. Raises: OSError."""
    if is_in_user_namespace():
        return  # where the owners of the host's directories have no number
    for path in (directory, *directory.parents):
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"it is below a directory of user {found.st_uid} ({path})", str(directory))
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise OSError(errno.EPERM, f"other users can write to {path}, which is not sticky", str(directory))


def _check_room(directory: Path) -> None:
    # With less than it needs, containerd starts all the same, and then answers that it has no services.
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < _ROOM:  # some file systems tell no sizes
        raise OSError(errno.ENOSPC, f"there is no room, it has only {free // 1024} KiB left", str(directory))


def _make_locked(state: Path) -> int:
    """Make the directory and take its lock.

    A sweep that sees it before it is locked takes it for what a killed command has left, and removes it: then again.
    """
    for _ in range(_TRIES):
        state.mkdir(mode=0o700, exist_ok=True)
        descriptor = _try_lock(state)
        if descriptor is not None:
            return descriptor
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(state))


def _try_lock(directory: Path) -> int | None:
    """The lock on a directory; None where somebody else holds it or the directory is gone."""
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


def take_abandoned() -> list[Pair]:
    """The pairs whose command is dead, locked for us (blocking). Whatever does not look like ours is left alone."""
    pairs = []
    for state in sorted(_STATE_BASE.glob(f"{_PREFIX}*")):
        if not _is_ours(state):
            continue
        descriptor = _try_lock(state)
        if descriptor is not None:
            data, id = _read_link(state / _DATA_LINK), _read_link(state / _ID_LINK)
            # Without its data directory, or with somebody else's in its place, a pair is only what is in the state.
            is_whole = Path(data).name == state.name and _is_ours(Path(data))
            pairs.append(Pair(state, Path(data) if is_whole else state / "lost", id, descriptor))
    return pairs


def is_any_here() -> bool:
    """Whether there is a run on this machine, alive or killed (blocking)."""
    return any(_STATE_BASE.glob(f"{_PREFIX}*"))


def _is_ours(directory: Path) -> bool:
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


async def prepare(plan: Plan, rootfs: Path, pair: Pair) -> None:
    """Make what the plan names: the root with every change kept apart, socket and propagated directory.

    The plugin's own directory is never written to. Where overlay cannot be used its files are copied.

    Raises: Unsupported where they could not be run from the copy; Unavailable where there is no room for them.
    """
    try:
        await run_blocking(lambda: _make_directories(plan))
        if plan.network_files is not None:
            for problem in await run_blocking(plan.network_files.refresh):
                log.warning("%s", problem)
        try:
            await run_blocking(lambda: mount_overlay(rootfs, pair.data, plan.root))
        except errors.Unsupported as error:
            await _copy_instead(error, rootfs, pair, plan.root)
    except OSError as error:
        raise errors.Unavailable(f"cannot prepare {error.filename or pair.data}: {error.strerror}") from error


def _make_directories(plan: Plan) -> None:
    user = plan.spec["process"]["user"]
    plan.root.mkdir(mode=0o755, parents=True)
    plan.socket_directory.mkdir(mode=0o700)
    os.chown(plan.socket_directory, user["uid"], user["gid"])
    if plan.propagated_mount is not None:
        plan.propagated_mount.mkdir(mode=0o755)
        bind_shared(plan.propagated_mount)


async def _copy_instead(reason: errors.Unsupported, rootfs: Path, pair: Pair, root: Path) -> None:
    if os.statvfs(pair.data).f_flag & os.ST_NOEXEC:
        raise errors.Unsupported(
            f"cannot run the plugin from {pair.data.parent}: it is mounted noexec, and overlay, which would not "
            "mind, cannot be used there; set TMPDIR to a directory on another file system"
        ) from reason
    log.warning("%s; using a copy", reason)
    pair.changes.mkdir(exist_ok=True)
    # cp, because the standard library's copy keeps neither owners nor hard links nor devices
    done = await anyio.run_process(["cp", "-a", f"{rootfs}/.", str(pair.changes)], check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise errors.Unavailable(f"cannot copy {rootfs} to {pair.changes}: {why}")
    await run_blocking(lambda: bind(pair.changes, root))

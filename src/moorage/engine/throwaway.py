"""Directories that live as long as one command, and what is left of ones whose command was killed.

A pair: ``state`` (sockets, FIFOs, mounts; short, because paths of unix sockets are) and ``data`` (what may grow). A
lock in ``state`` is held as long as the command lives, so that the next one can tell a killed one's leftovers from a
live pair.
"""

import logging
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from moorage import errors
from moorage._lib.filelock import try_lock
from moorage._lib.threads import remove_tree, run_blocking
from moorage.engine.foreground import Plan
from moorage.engine.mounts import bind_copy, bind_shared, mount_overlay, unmount_all_below

__all__ = ("Pair", "make_pair", "new_name", "pair_paths", "prepare", "take_abandoned")

log = logging.getLogger(__name__)

_PREFIX = "moorage-run-"
_STATE_BASE = Path("/run")
_CHANGES = "upper"
_DATA_LINK = "data"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Pair:
    """The two directories of one command. ``descriptor`` holds the lock."""

    state: Path
    data: Path
    descriptor: int

    @property
    def changes(self) -> Path:
        """What the plugin has written to its root file system."""
        return self.data / _CHANGES

    async def remove(self, *, keep_changes: bool = False) -> None:
        """Unmount and remove both, but for ``changes`` if those are to be kept, and let the lock go.

        Raises: OSError naming what is in the way; it stays, with its directory, for the next command to try again.
        """
        try:
            await run_blocking(lambda: unmount_all_below(self.data))
            await run_blocking(lambda: unmount_all_below(self.state))
            if keep_changes:
                for entry in self.data.iterdir():
                    if entry.is_symlink() or not entry.is_dir():
                        entry.unlink()
                    elif entry != self.changes:
                        await remove_tree(entry)
            else:
                await remove_tree(self.data)
            await remove_tree(self.state)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let the lock go and leave the rest to the next command."""
        os.close(self.descriptor)


def new_name() -> str:
    """A name that no other run has."""
    return secrets.token_hex(4)


def pair_paths(name: str) -> tuple[Path, Path]:
    """Where the state and the data of a run go: /run, and TMPDIR or /var/tmp, because a plugin may write much."""
    return _STATE_BASE / f"{_PREFIX}{name}", Path(os.environ.get("TMPDIR") or "/var/tmp") / f"{_PREFIX}{name}"


def make_pair(state: Path, data: Path) -> Pair:
    """Make both directories, owned by and open to root only (blocking)."""
    try:
        data.mkdir(mode=0o700)
        state.mkdir(mode=0o700)
    except OSError as error:
        raise errors.Invalid(f"cannot make {error.filename} for this run: {error.strerror}") from error
    descriptor = try_lock(state / _LOCK)
    assert descriptor is not None, "nobody else knows the name yet"
    (state / _DATA_LINK).symlink_to(data)
    return Pair(state, data, descriptor)


def take_abandoned() -> list[Pair]:
    """The pairs whose command is dead, locked for us (blocking). Whatever does not look like ours is left alone."""
    pairs = []
    for state in sorted(_STATE_BASE.glob(f"{_PREFIX}*")):
        status = state.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            continue
        try:
            data = Path(os.readlink(state / _DATA_LINK))
            descriptor = try_lock(state / _LOCK)
        except OSError:
            continue  # being made or removed right now
        if descriptor is not None and data.name == state.name:
            pairs.append(Pair(state, data, descriptor))
    return pairs


def prepare(plan: Plan, rootfs: Path, pair: Pair) -> None:
    """Make what the plan names: the root with every change kept apart, socket and propagated directory (blocking).

    The plugin's own directory is never written to. Where overlay cannot be used its files are copied.

    Raises: Unsupported where they could not be run from the copy.
    """
    user = plan.spec["process"]["user"]
    plan.socket_directory.mkdir(mode=0o700, parents=True)
    os.chown(plan.socket_directory, user["uid"], user["gid"])
    try:
        mount_overlay(rootfs, pair.data, plan.root)
    except errors.Unsupported as error:
        if os.statvfs(pair.data).f_flag & os.ST_NOEXEC:
            raise errors.Unsupported(
                f"cannot run the plugin from {pair.data.parent}: it is mounted noexec, and overlay, which would not "
                "mind, cannot be used there; set TMPDIR to a directory on another file system"
            ) from error
        log.warning("%s; using a copy", error)
        bind_copy(rootfs, pair.changes, plan.root)
    if plan.propagated_mount is not None:
        plan.propagated_mount.mkdir(mode=0o755)
        bind_shared(plan.propagated_mount)

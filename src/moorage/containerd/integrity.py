"""Content and snapshots across a power cut: written to the disk before they are used, and verified after a start.

containerd 1.6 does not write the layers that it unpacks to the disk; ``sync_storage`` does. And containerd says that a
blob exists from its database and never reads the file again, so after a power cut a blob may be empty, cut or missing.
A blob is hashed when it is used for the first time after a start, and again when its file has changed since. The file
is read at the path that containerd reports, which is faster than through gRPC; a blob is called damaged only by what
containerd itself reads. Source: docs/adr/0022-content-is-trusted-by-digest.md.
"""

import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from moorage import errors
from moorage._lib.key_locks import KeyedLocks
from moorage._lib.threads import run_blocking
from moorage.containerd.types import Mount
from moorage.host.file_systems import sync_file_systems
from moorage.host.proc import root_path
from moorage.host.processes import find_listener

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = (
    "DamagedContent",
    "Verification",
    "snapshot_directory",
    "sync_storage",
)

log = logging.getLogger(__name__)


class DamagedContent(errors.Conflict):
    """A blob in containerd's content store whose bytes do not match its digest, or are missing."""

    def __init__(self, digest: str, damage: str) -> None:
        super().__init__(f"blob {digest} in containerd's content store is damaged: {damage}")
        self.digest = digest
        self.damage = damage
        """The damage, as text."""


# ------------------------------------------------------------------------------------------------------ verification


Read = Callable[[str], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Reads a blob through containerd."""

_Identity = tuple[int, ...]
"""Device, inode, size, times of modification and change of a blob's file; empty if the file is not visible."""


class Verification:
    """The verified blobs of one containerd. They are the same in all of its namespaces."""

    def __init__(self, find_directory: Callable[[], Awaitable[str]]) -> None:
        """``find_directory`` returns the directory of containerd's content store, empty if it is unknown."""
        self._find_directory = find_directory
        self._directory: str | None = None
        self._verified: dict[str, _Identity] = {}
        self._locks: KeyedLocks[str] = KeyedLocks()

    async def check(self, digest: str, size_bytes: int, read: Read) -> None:
        """Return if the bytes of the blob match its digest; ``size_bytes`` is the size that containerd reports.

        Raises:
            DamagedContent: they do not, or cannot be read
            errors.Unavailable: containerd does not answer
        """
        async with self._locks.lock(digest):
            path = await self._path(digest)
            identity = await run_blocking(lambda: _identity(path))
            if self._verified.get(digest) == identity:
                return
            self._verified.pop(digest, None)
            if not identity or not await run_blocking(lambda: _has_digest(path, digest)):
                await _read_through(digest, size_bytes, read)
            self._verified[digest] = identity

    async def mark_verified(self, digest: str) -> None:
        """Record that containerd has just hashed the blob itself, as it does for bytes that are sent to it."""
        path = await self._path(digest)
        self._verified[digest] = await run_blocking(lambda: _identity(path))

    async def _path(self, digest: str) -> Path | None:
        if self._directory is None:
            self._directory = await self._find_directory()
        return Path(self._directory, "blobs", *digest.split(":", 1)) if self._directory else None


def _identity(path: Path | None) -> _Identity:
    if path is None:
        return ()
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _has_digest(path: Path | None, digest: str) -> bool:
    assert path is not None
    algorithm, _, digits = digest.partition(":")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == digits
    except OSError:
        return False


async def _read_through(digest: str, size_bytes: int, read: Read) -> None:
    """Hash a blob as containerd reads it. Raises: DamagedContent; Unavailable."""
    algorithm, _, digits = digest.partition(":")
    hasher, read_bytes = hashlib.new(algorithm), 0
    try:
        async with read(digest) as pieces:
            async for piece in pieces:
                hasher.update(piece)
                read_bytes += len(piece)
    except errors.Unavailable:
        raise
    except errors.NotFound as error:
        raise DamagedContent(digest, "its file is missing") from error
    except errors.MoorageError as error:
        raise DamagedContent(digest, f"its file cannot be read ({error})") from error
    if hasher.hexdigest() != digits:
        cut = f"it has {read_bytes} bytes instead of {size_bytes}"
        raise DamagedContent(digest, cut if read_bytes != size_bytes else "its bytes do not match its digest")


# -------------------------------------------------------------------------------------------------------- durability


_CONTENT, _SNAPSHOTS = "io.containerd.content.v1", "io.containerd.snapshotter.v1"
_WITH_DIRECTORY = ("overlay", "bind")
"""Types of mounts whose files are in a directory of another file system; of others the source is a device."""


async def sync_storage(client: "Client", snapshotter: str, mounts: Sequence[Mount]) -> None:
    """Return when the file systems with containerd's content and with this snapshot are on their disks.

    No other file system is touched: one that does not answer must not stop an installation. Where containerd runs in
    another mount namespace, its directories are reached through its process.

    Raises:
        errors.Unavailable: they cannot be written, or containerd does not answer
    """
    parts = await client.plugins(f"type=={_CONTENT}", f"type=={_SNAPSHOTS},id=={snapshotter}")
    directories = {root for part in parts if (root := part.exports.get("root"))}
    if mounts and mounts[0].type in _WITH_DIRECTORY:
        directories.add(snapshot_directory(mounts))
    await run_blocking(lambda: _sync(client.address, sorted(directories)))


def snapshot_directory(mounts: Sequence[Mount]) -> str:
    """The directory that a snapshot with these mounts writes to: overlay's upper directory, or the source of a bind."""
    options = [option for mount in mounts for option in mount.options]
    uppers = [option.partition("=")[2] for option in options if option.startswith("upperdir=")]
    return next(iter(uppers or [mount.source for mount in mounts]), "")


def _sync(address: str, directories: Sequence[str]) -> None:
    seen = [path for each in directories if (path := _visible(address, each))]
    try:
        sync_file_systems(seen)
    except OSError as error:
        raise errors.Unavailable(f"cannot write {error.filename} to disk: {error.strerror}") from error


def _visible(address: str, directory: str) -> str:
    if os.path.isdir(directory):
        return directory
    pid = find_listener(Path(address))
    path = f"{root_path(pid)}{directory}" if pid is not None else ""
    if path and os.path.isdir(path):
        return path
    log.warning(
        "cannot write %s to disk: it is not visible in this mount namespace; after a power cut it may be damaged",
        directory,
    )
    return ""

"""Which blobs of containerd's content store were found to have the bytes of their digest, since this process started.

containerd says that a blob exists from its database and never reads the file again, so after a power cut a blob may be
empty, cut or missing. A blob is hashed when it is used for the first time after a start, and again when its file has
changed since. The file is read where containerd says that it is, which is faster than through gRPC; a blob is called
damaged only by what containerd itself reads. Source: docs/adr/0022-content-is-trusted-by-digest.md.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from moorage import errors
from moorage._lib.keylocks import KeyedLocks
from moorage._lib.threads import run_blocking
from moorage.containerd.damage import DamagedContent

__all__ = ("Verification",)

Read = Callable[[str], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Reads a blob through containerd."""

_Identity = tuple[int, ...]
"""Device, inode, size, times of modification and change of a blob's file; empty where the file cannot be seen."""


class Verification:
    """The verified blobs of one containerd. They are the same in all of its namespaces."""

    def __init__(self, find_directory: Callable[[], Awaitable[str]]) -> None:
        """``find_directory`` returns where containerd has its content store, empty where it does not say."""
        self._find_directory = find_directory
        self._directory: str | None = None
        self._verified: dict[str, _Identity] = {}
        self._locks: KeyedLocks[str] = KeyedLocks()

    async def check(self, digest: str, size_bytes: int, read: Read) -> None:
        """Return if the blob has the bytes of its digest; ``size_bytes`` is what containerd says that it has.

        Raises: DamagedContent; Unavailable where containerd cannot be asked.
        """
        async with self._locks.hold(digest):
            path = await self._path(digest)
            identity = await run_blocking(lambda: _identity(path))
            if self._verified.get(digest) == identity:
                return
            self._verified.pop(digest, None)
            if not identity or not await run_blocking(lambda: _has_digest(path, digest)):
                await _read_through(digest, size_bytes, read)
            self._verified[digest] = identity

    async def note(self, digest: str) -> None:
        """Note that containerd has just hashed the blob itself, as it does for bytes that are sent to it."""
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
    hasher, taken = hashlib.new(algorithm), 0
    try:
        async with read(digest) as pieces:
            async for piece in pieces:
                hasher.update(piece)
                taken += len(piece)
    except errors.Unavailable:
        raise
    except errors.NotFound as error:
        raise DamagedContent(digest, "its file is missing") from error
    except errors.MoorageError as error:
        raise DamagedContent(digest, f"its file cannot be read ({error})") from error
    if hasher.hexdigest() != digits:
        cut = f"it has {taken} bytes instead of {size_bytes}"
        raise DamagedContent(digest, cut if taken != size_bytes else "its bytes are not those of its digest")

"""Downloads of blobs straight into containerd's content store, continued where an earlier try has stopped."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import anyio

from moorage import errors
from moorage._lib.key_locks import KeyedLocks
from moorage.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("UPLOAD_PREFIX", "BlobDownloads", "BlobSource", "PullLocks")

log = logging.getLogger(__name__)

UPLOAD_PREFIX = "moorage-layer-"
"""Prefix of the refs of uploads."""

_CHUNK_BYTES = 1 << 20  # of one write to containerd; larger ones cost less for each byte
_ATTEMPTS = 3  # for a blob that a mirror sent whole and wrong, after which that mirror is not used

ReportBlob = Callable[[str, Descriptor, int], None]
"""Called with a status, the blob, and how many bytes of it were received."""


class BlobSource(Protocol):
    """Where blobs are read from: a repository of a registry, or an archive."""

    def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on; to be closed if it is not read to the end."""


class PullLocks:
    """Locks that all pulls into one containerd share, so that each layer is downloaded and unpacked once."""

    def __init__(self) -> None:
        self.downloads: KeyedLocks[str] = KeyedLocks()
        """By digest."""
        self.unpacking: KeyedLocks[str] = KeyedLocks()


class BlobDownloads:
    """Downloads from one source; ``locks`` are by digest, and the caller of ``fetch`` has that of the blob."""

    def __init__(self, storage: "Storage", source: BlobSource, locks: KeyedLocks[str], report: ReportBlob) -> None:
        self._storage = storage
        self._source = source
        self._locks = locks
        self._report = report

    async def fetch(self, layer: Descriptor) -> None:
        """Download a blob unless it is stored; what another pull has begun is continued."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            download = _Download(self._source, layer, lambda status, offset: self._report(status, layer, offset))
            try:
                await self._store(layer, download)
            except errors.Unavailable:
                # whole and wrong: the source does not use that mirror again
                if not attempts_left or not download.is_whole:
                    raise
                await self._abort(layer)
            else:
                self._report("Download complete" if download.is_started else "Already exists", layer, 0)
                return

    async def _store(self, layer: Descriptor, download: "_Download") -> None:
        try:
            await self._storage.write_content(
                _upload_ref(layer), download.chunks_from, digest=layer.digest, size_bytes=layer.size_bytes
            )
        except BaseException:
            await download.close()
            if not self._locks.is_awaited(layer.digest):  # the pull that waits for it continues here
                await self._abort(layer)
            raise
        await download.close()

    async def _abort(self, layer: Descriptor) -> None:
        """Delete what was written: containerd 1.6 keeps it otherwise until the first collection of a whole blob."""
        with anyio.CancelScope(shield=True):
            try:
                await self._storage.abort_ingest(_upload_ref(layer))
            except errors.NotFound:
                pass
            except errors.MoorageError as error:
                log.info("cannot delete upload %s, the next start does: %s", _upload_ref(layer), error)


class _Download:
    """The bytes of one layer, in chunks of the size that suits containerd; to be closed."""

    def __init__(self, source: BlobSource, layer: Descriptor, report: Callable[[str, int], None]) -> None:
        self.is_started = False
        """Whether bytes were requested: it was not stored already."""
        self.is_whole = False
        """As many bytes were received as it has; whether they are correct is not known."""
        self._source = source
        self._layer = layer
        self._report = report
        self._open: list[AsyncGenerator[bytes, None]] = []

    def chunks_from(self, offset: int) -> AsyncIterator[bytes]:
        """The chunks from an offset on, for ``Storage.write_content``."""
        made = self._chunks(offset)
        self._open.append(made)
        return made

    async def close(self) -> None:
        """Release the connection."""
        with anyio.CancelScope(shield=True):
            for each in self._open:
                await each.aclose()

    async def _chunks(self, offset: int) -> AsyncGenerator[bytes, None]:
        self.is_started = True
        self._report("Pulling fs layer", 0)
        size_bytes, position, chunk, chunk_bytes = self._layer.size_bytes, offset, list[bytes](), 0
        async with aclosing(self._source.read_blob(self._layer.digest, size_bytes, offset)) as pieces:
            async for piece in pieces:
                chunk.append(piece)
                chunk_bytes += len(piece)
                position += len(piece)
                self.is_whole = position >= size_bytes
                self._report("Downloading", position)
                if chunk_bytes >= _CHUNK_BYTES:
                    yield b"".join(chunk)
                    chunk, chunk_bytes = [], 0
        if chunk:
            yield b"".join(chunk)


def _upload_ref(layer: Descriptor) -> str:
    return f"{UPLOAD_PREFIX}{layer.digest}"

"""The blobs of a package that is built, as files of an OCI layout."""

import hashlib
import os
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import encoded
from moorage.packages.byte_stream import GzipWriter

__all__ = ("BlobStore", "LayerWriter")

_READ_BYTES = 1 << 20


class BlobStore:
    """A directory ``blobs/sha256``."""

    def __init__(self, layout: Path) -> None:
        """``layout``: the directory of the OCI layout, which exists."""
        self.layout = layout
        self._directory = layout / "blobs" / "sha256"
        self._directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """The file of a blob."""
        return self._directory / encoded(digest)

    def add(self, media_type: str, data: bytes) -> Descriptor:
        """Store a small blob (blocking)."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.path(digest).write_bytes(data)
        return Descriptor(media_type, digest, len(data))

    def temporary(self) -> Path:
        """A new path in the directory, for a blob whose digest is not known yet."""
        return self._directory / f".{secrets.token_hex(8)}"

    async def read(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob. Raises: errors.NotFound if it is not in the store."""
        try:
            with await run_blocking(lambda: self.path(blob.digest).open("rb")) as file:
                while piece := await run_blocking(lambda: file.read(_READ_BYTES)):
                    yield piece
        except FileNotFoundError as error:
            raise errors.NotFound(f"cannot read {blob.digest}: it is not in {self.layout}") from error


class LayerWriter:
    """A gzipped layer: a file for tarfile. The same contents always give the same bytes. Used with ``with``."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._path = store.temporary()
        self._file = self._path.open("xb")
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self._size_bytes = 0
        self._gzip = GzipWriter(self._put)

    def __enter__(self) -> "LayerWriter":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        """Add bytes of the tar; how many there were."""
        self._plain.update(data)
        return self._gzip.write(data)

    def tell(self) -> int:
        """The number of bytes so far, before compression."""
        return self._gzip.tell()

    def finish(self, media_type: str) -> tuple[Descriptor, str]:
        """Store the layer; its descriptor, and the digest of its tar."""
        self._gzip.close()
        self._file.close()
        digest = f"sha256:{self._packed.hexdigest()}"
        os.replace(self._path, self._store.path(digest))
        return Descriptor(media_type, digest, self._size_bytes), f"sha256:{self._plain.hexdigest()}"

    def _put(self, data: bytes) -> None:
        self._packed.update(data)
        self._size_bytes += len(data)
        self._file.write(data)

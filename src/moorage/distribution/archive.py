"""Packages as an OCI archive: a tar of ``oci-layout``, ``index.json`` and ``blobs/``, written as it is read.

Manifests stay as they are, Docker's among them, so that digests do. Source: the OCI image layout specification 1.1, and
containerd's annotation for whole names.
"""

import json
import tarfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import Struct

from moorage import errors
from moorage.containerd.types import Descriptor
from moorage.distribution.stored import Contents, bytes_of
from moorage.plugins import parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("LAYOUT", "NAME_NOTE", "REFERENCE_NOTE", "TAG_NOTE", "Packed", "write_archive")

NAME_NOTE = "io.containerd.image.name"
TAG_NOTE = "org.opencontainers.image.ref.name"
REFERENCE_NOTE = "moorage.reference"
"""Where a plugin came from, where that is not its name."""

LAYOUT = {"imageLayoutVersion": "1.0.0"}

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_BLOCK = tarfile.BLOCKSIZE


class Packed(Struct, frozen=True):
    """One plugin for an archive: its name here, in full, where it came from, and its package."""

    name: str
    reference: str
    contents: Contents


async def write_archive(storage: "Storage", packed: Sequence[Packed]) -> AsyncGenerator[bytes, None]:
    """The archive, each blob once. The same plugins always give the same bytes.

    Raises: NotFound for a blob that is gone meanwhile; Invalid for one of another size than promised. What came before
    is to be thrown away then.
    """
    yield _file("oci-layout", json.dumps(LAYOUT).encode())
    yield _file("index.json", json.dumps(_index(packed)).encode())
    yield _folder("blobs/") + _folder("blobs/sha256/")
    manifests = [each.contents.manifest for each in packed]
    rest = [blob for each in packed for blob in each.contents.blobs]
    for blob in {each.digest: each for each in (*manifests, *rest)}.values():
        yield _head(_path(blob.digest), blob.size_bytes)
        sent = 0
        async with aclosing(bytes_of(storage, blob)()) as pieces:
            async for piece in pieces:
                sent += len(piece)
                yield piece
        if sent != blob.size_bytes:
            raise errors.Invalid(
                f"cannot save {blob.digest}: it has {sent} bytes where {blob.size_bytes} were promised"
            )
        yield bytes(-sent % _BLOCK)
    yield bytes(2 * _BLOCK)


def _index(packed: Sequence[Packed]) -> dict[str, object]:
    return {
        "schemaVersion": 2,
        "mediaType": _INDEX_TYPE,
        "manifests": [_entry(each.contents.manifest, _notes(each)) for each in packed],
    }


def _notes(packed: Packed) -> dict[str, str]:
    notes = {NAME_NOTE: packed.name, TAG_NOTE: parse_reference(packed.name).tag or ""}
    return notes if packed.reference in ("", packed.name) else {**notes, REFERENCE_NOTE: packed.reference}


def _entry(manifest: Descriptor, notes: dict[str, str]) -> dict[str, object]:
    fields = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size_bytes}
    return {**fields, "annotations": notes}


def _path(digest: str) -> str:
    return "/".join(("blobs", *digest.split(":")))


def _file(name: str, data: bytes) -> bytes:
    return _head(name, len(data)) + data + bytes(-len(data) % _BLOCK)


def _folder(name: str) -> bytes:
    return _head(name, 0, tarfile.DIRTYPE, 0o755)


def _head(name: str, size_bytes: int, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mode = size_bytes, kind, mode
    return entry.tobuf(tarfile.PAX_FORMAT)

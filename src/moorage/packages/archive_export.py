"""Exports packages as an OCI archive: a tar of ``oci-layout``, ``index.json`` and ``blobs/``, written while it is read.

Manifests are unchanged, Docker's among them, so that digests are. Source: the OCI image layout specification 1.1, and
containerd's annotation for whole names.
"""

import json
import tarfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage.oci.index import build_index
from moorage.oci.manifest import Manifest
from moorage.packages.content import blob_reader
from moorage.plugins import parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("LAYOUT", "NAME_ANNOTATION", "REFERENCE_ANNOTATION", "TAG_ANNOTATION", "ExportedPackage", "export_archive")

NAME_ANNOTATION = "io.containerd.image.name"
TAG_ANNOTATION = "org.opencontainers.image.ref.name"
REFERENCE_ANNOTATION = "moorage.reference"
"""The reference that a plugin was pulled from, if that is not its name."""

LAYOUT = {"imageLayoutVersion": "1.0.0"}

_BLOCK = tarfile.BLOCKSIZE


class ExportedPackage(Struct, frozen=True):
    """One plugin for an archive."""

    name: str
    """Its name on this host, in full."""
    reference: str
    """The reference that it was pulled from."""
    manifest: Manifest


async def export_archive(storage: "Storage", packages: Sequence[ExportedPackage]) -> AsyncGenerator[bytes, None]:
    """The bytes of the archive, each blob once. The same plugins always give the same bytes.

    Raises:
        errors.NotFound: a blob was removed meanwhile; the bytes so far are not an archive
        errors.Invalid: a blob has another size than the manifest states; likewise
    """
    yield _file("oci-layout", json.dumps(LAYOUT).encode())
    yield _file("index.json", _index(packages))
    yield _directory("blobs/") + _directory("blobs/sha256/")
    manifests = [each.manifest.descriptor for each in packages]
    rest = [blob for each in packages for blob in each.manifest.blobs]
    for blob in {each.digest: each for each in (*manifests, *rest)}.values():
        yield _header(_path(blob.digest), blob.size_bytes)
        sent = 0
        async with aclosing(blob_reader(storage, blob)()) as pieces:
            async for piece in pieces:
                sent += len(piece)
                yield piece
        if sent != blob.size_bytes:
            raise errors.Invalid(
                f"cannot save {blob.digest}: it has {sent} bytes where {blob.size_bytes} were promised"
            )
        yield bytes(-sent % _BLOCK)
    yield bytes(2 * _BLOCK)


def _index(packages: Sequence[ExportedPackage]) -> bytes:
    return build_index(replace(each.manifest.descriptor, annotations=_annotations(each)) for each in packages).data


def _annotations(package: ExportedPackage) -> dict[str, str]:
    annotations = {NAME_ANNOTATION: package.name, TAG_ANNOTATION: parse_reference(package.name).tag or ""}
    return (
        annotations
        if package.reference in ("", package.name)
        else {**annotations, REFERENCE_ANNOTATION: package.reference}
    )


def _path(digest: str) -> str:
    return "/".join(("blobs", *digest.split(":")))


def _file(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % _BLOCK)


def _directory(name: str) -> bytes:
    return _header(name, 0, tarfile.DIRTYPE, 0o755)


def _header(name: str, size_bytes: int, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mode = size_bytes, kind, mode
    return entry.tobuf(tarfile.PAX_FORMAT)

"""Where a built package goes: an archive, or a registry."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from moorage.oci.descriptor import Descriptor
from moorage.package_build.blob_store import BlobStore
from moorage.package_build.build import BuiltPackage
from moorage.plugins import Reference
from moorage.registry.registry import Registry

__all__ = ("archive", "push_built_package")

_READ_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


def archive(store: BlobStore, package: BuiltPackage) -> Iterator[bytes]:
    """The layout as a tar, the same bytes each time (blocking)."""
    for name in ("oci-layout", "index.json"):
        yield from _file(name, store.layout / name)
    for name in ("blobs/", "blobs/sha256/"):
        yield _header(name, 0, tarfile.DIRTYPE, 0o755)
    every = {each.digest: each for each in (package.root, *package.manifests, *package.blobs)}
    for digest in every:
        yield from _file("/".join(("blobs", *digest.split(":"))), store.path(digest))
    yield bytes(2 * _BLOCK)


def _file(name: str, path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        yield _header(name, size)
        while piece := file.read(_READ_BYTES):
            yield piece
    yield bytes(-size % _BLOCK)


def _header(name: str, size_bytes: int, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mode = size_bytes, kind, mode
    return entry.tobuf(tarfile.PAX_FORMAT)


async def push_built_package(registry: Registry, store: BlobStore, package: BuiltPackage, target: Reference) -> str:
    """Push blobs that the registry does not have, the manifests, and the index as the tag; its digest.

    Raises:
        errors.MoorageError: what the registry's client raises
    """
    for blob in package.blobs:
        if not await registry.may_omit_blob(blob.digest):
            await registry.push_blob(blob.digest, blob.size_bytes, lambda blob=blob: store.read(blob))  # type: ignore[misc]
    for manifest in package.manifests:
        if manifest.digest != package.root.digest:
            await _push_manifest(registry, store, manifest, manifest.digest)
    return await _push_manifest(registry, store, package.root, target.with_default_tag().tag or "")


async def _push_manifest(registry: Registry, store: BlobStore, manifest: Descriptor, target: str) -> str:
    data = b"".join([piece async for piece in store.read(manifest)])
    return await registry.push_manifest(target, data, manifest.media_type)

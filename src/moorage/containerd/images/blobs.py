"""Manifests and configs as blobs, and the labels by which blobs refer to each other."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from moorage.containerd.images.downloads import UPLOAD_PREFIX
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import digest_of

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("refer_to_blobs", "write_blob")


async def write_blob(storage: "Storage", media_type: str, data: bytes, digest: str = "") -> Descriptor:
    """Write a manifest or config, which the lease of ``storage`` then keeps; ``digest`` if it is known.

    Raises:
        errors.Invalid: the bytes do not have this digest
        errors.Unavailable: containerd does not answer
    """
    digest = digest or digest_of(data)

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        yield data[offset:]

    await storage.write_content(f"{UPLOAD_PREFIX}{digest}", chunks, digest=digest, size_bytes=len(data))
    return Descriptor(media_type, digest, len(data))


async def refer_to_blobs(storage: "Storage", manifest: str, config: str, layers: Sequence[str]) -> None:
    """Label the blob of a manifest with its config and layers: else a garbage collection removes them.

    Raises:
        errors.NotFound: containerd does not have the manifest
        errors.Unavailable: containerd does not answer
    """
    references = {"config": config, **{f"l.{index}": digest for index, digest in enumerate(layers)}}
    labels = {f"containerd.io/gc.ref.content.{key}": digest for key, digest in references.items()}
    await storage.set_content_labels(manifest, labels)

"""A package as it lies in containerd: its manifest's bytes, and what the manifest names.

Nothing here writes but ``hold``, which lets a lease keep what is there.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from moorage import errors
from moorage._lib.values import repr_without
from moorage.containerd.types import Descriptor
from moorage.distribution._check import new_hash

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = (
    "INDEX_TYPES",
    "MANIFEST_LIMIT",
    "SINGLE_TYPES",
    "Contents",
    "bytes_of",
    "hold",
    "media_type_of",
    "read_contents",
    "read_manifest",
    "read_small",
    "to_descriptor",
)

SINGLE_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
"""Manifests of one package."""

INDEX_TYPES = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
"""Lists of them, one for each platform."""

MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest or an index."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Contents(Struct, frozen=True):
    """The manifest of one package, and the blobs that it names."""

    manifest: Descriptor
    data: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]

    __repr__ = repr_without("data")

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers, each digest once: what a manifest needs to be there before it."""
        return tuple({each.digest: each for each in (self.config, *self.layers)}.values())


def to_descriptor(value: object, what: str) -> Descriptor:
    """What a manifest points at. Raises: Invalid naming the place, for what is no descriptor of sha256."""
    fields = value if isinstance(value, dict) else {}
    kind, digest, size = (fields.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(kind, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise errors.Invalid(f"{what} has no media type, or no sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise errors.Invalid(f"{what} has no size")
    notes = fields.get("annotations")
    annotations = {key: each for key, each in notes.items() if isinstance(each, str)} if isinstance(notes, dict) else {}
    return Descriptor(kind, digest, size, annotations)


def read_manifest(manifest: Descriptor, data: bytes) -> Contents:
    """What a manifest says. Raises: Invalid for one that cannot be understood."""
    what = f"manifest {manifest.digest}"
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"{what} is not JSON") from error
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise errors.Invalid(f"{what} is none of a plugin or an image: it has no list of layers")
    config = to_descriptor(document.get("config"), f"the config of {what}")
    found = tuple(to_descriptor(each, f"layer {at} of {what}") for at, each in enumerate(layers))
    return Contents(manifest, data, config, found)


async def read_small(storage: "Storage", blob: Descriptor, limit: int) -> bytes:
    """The bytes of a blob. Raises: NotFound; Invalid where it has more than ``limit``, or not as many as promised."""
    taken = bytearray()
    if blob.size_bytes > limit:
        raise errors.Invalid(f"{blob.digest} has {blob.size_bytes} bytes; {limit} are possible for a {blob.media_type}")
    async with storage.read_content(blob.digest) as pieces:
        async for piece in pieces:
            taken += piece
            if len(taken) > limit:
                raise errors.Invalid(f"{blob.digest} has more than {limit} bytes")
    if len(taken) != blob.size_bytes:
        raise errors.Invalid(f"{blob.digest} has {len(taken)} bytes where {blob.size_bytes} were promised")
    hasher = new_hash(blob.digest)
    hasher.update(taken)
    if hasher.hexdigest() != blob.digest.partition(":")[2]:
        raise errors.Invalid(f"{blob.digest} has other bytes than its digest says")
    return bytes(taken)


async def read_contents(storage: "Storage", manifest: Descriptor) -> Contents:
    """The package of this manifest. Raises: NotFound; Invalid for what is no manifest."""
    return read_manifest(manifest, await read_small(storage, manifest, MANIFEST_LIMIT))


def bytes_of(storage: "Storage", blob: Descriptor) -> Callable[[], AsyncGenerator[bytes, None]]:
    """What gives the bytes of a blob, from the first one on, each time that it is called."""

    async def read() -> AsyncGenerator[bytes, None]:
        async with storage.read_content(blob.digest) as pieces:
            async for piece in pieces:
                yield piece

    return read


async def hold(storage: "Storage", digest: str) -> None:
    """Let the lease that ``storage`` works under keep a blob, and what its labels name.

    Raises: NotFound; DamagedContent.
    """

    async def none(offset: int) -> AsyncIterator[bytes]:
        if offset < 0:
            yield b""
        raise errors.NotFound(f"{digest} is gone")

    await storage.verify_content(digest)  # else the next call would begin an upload
    await storage.write_content(f"moorage-hold-{digest}", none, digest=digest)


def media_type_of(data: bytes) -> str:
    """What a manifest says of itself. One that does not is OCI's, which may leave it out."""
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return ""
    fields = document if isinstance(document, dict) else {}
    said = fields.get("mediaType")
    if isinstance(said, str):
        return said
    return INDEX_TYPES[1] if "manifests" in fields else SINGLE_TYPES[1]

"""Packages in containerd: their blobs, their image records, and the leases and labels that protect both."""

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage.containerd.images.blobs import refer_to_blobs as refer_to_blobs
from moorage.containerd.images.blobs import write_blob as write_blob
from moorage.containerd.images.downloads import UPLOAD_PREFIX as UPLOAD_PREFIX
from moorage.containerd.images.layers import ImportContext as ImportContext
from moorage.containerd.integrity import DamagedContent
from moorage.containerd.types import Image
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import is_digest_of
from moorage.oci.limits import MANIFEST_BYTES
from moorage.oci.manifest import Manifest, RawManifest, encode_manifest, parse_manifest
from moorage.oci.media_types import DOCKER_MANIFEST
from moorage.oci.reference import parse_reference
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage
    from moorage.plugins import Config

__all__ = (
    "LEASE_PREFIX",
    "UPLOAD_PREFIX",
    "ImportContext",
    "Package",
    "StoredPackage",
    "add_to_lease",
    "as_import_error",
    "blob_reader",
    "create_image_record",
    "end_lease",
    "image_record",
    "is_same_package",
    "is_stored",
    "lease_package",
    "read_blob",
    "read_manifest",
    "refer_to_blobs",
    "reinstall_hint",
    "repair_hint",
    "write_blob",
    "write_manifest",
)

log = logging.getLogger(__name__)

LEASE_PREFIX = "moorage-"
"""What the ids of leases begin with that last as long as one operation."""

_COLLECT = DEFAULT.garbage_collection  # seconds; a collection that takes longer continues, and nothing waits for it

_SNAPSHOT_LABEL = "containerd.io/gc.ref.snapshot."
"""Prefix of the label of an image record, before the snapshotter: the snapshot that the record protects."""

_LOAD = "moorage load with an archive of it"


class Package(Struct, frozen=True):
    """A plugin's package in containerd."""

    manifest: Descriptor
    config: "Config"
    warnings: tuple[str, ...]
    """What is unusual in its config.json."""
    chain: str
    """Name of the committed snapshot that is its whole root file system."""


class StoredPackage(Struct, frozen=True):
    """Where the package of a plugin is in containerd."""

    name: str
    """Of the plugin, with its tag."""
    reference: str
    """The reference that it was pulled from."""
    digest: str
    """Of its manifest."""
    image: str
    """The name of its image record."""
    snapshotter: str
    snapshot: str
    """The snapshot that is its root file system."""


async def read_blob(storage: "Storage", blob: Descriptor, limit: int) -> bytes:
    """The bytes of a blob.

    Raises:
        errors.NotFound: containerd does not have it
        errors.Invalid: it has more than ``limit`` bytes, or another size or digest than the descriptor
        errors.Unavailable: containerd does not answer
    """
    data = bytearray()
    if blob.size_bytes > limit:
        raise errors.Invalid(f"{blob.digest} has {blob.size_bytes} bytes; {limit} are possible for a {blob.media_type}")
    async with storage.read_content(blob.digest) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > limit:
                raise errors.Invalid(f"{blob.digest} has more than {limit} bytes")
    if len(data) != blob.size_bytes:
        raise errors.Invalid(f"{blob.digest} has {len(data)} bytes where {blob.size_bytes} were promised")
    if not is_digest_of(blob.digest, bytes(data)):
        raise errors.Invalid(f"{blob.digest} has other bytes than its digest says")
    return bytes(data)


async def read_manifest(storage: "Storage", target: Descriptor) -> Manifest:
    """The manifest that a descriptor refers to.

    Raises:
        errors.NotFound: containerd does not have it
        errors.Invalid: it is not a manifest, or damaged
        errors.Unavailable: containerd does not answer
    """
    data = await read_blob(storage, target, MANIFEST_BYTES)
    return parse_manifest(RawManifest(data, target.media_type, target.digest), f"manifest {target.digest}")


def blob_reader(storage: "Storage", blob: Descriptor) -> Callable[[], AsyncGenerator[bytes, None]]:
    """A function that returns the bytes of a blob from the first one on, each time that it is called."""

    async def read() -> AsyncGenerator[bytes, None]:
        async with storage.read_content(blob.digest) as pieces:
            async for piece in pieces:
                yield piece

    return read


async def add_to_lease(storage: "Storage", digest: str) -> None:
    """Add a blob, and what its labels refer to, to the lease that ``storage`` works under.

    Raises:
        errors.NotFound: containerd does not have it
        DamagedContent: its bytes are not those of its digest
        errors.Unavailable: containerd does not answer
    """

    async def none(offset: int) -> AsyncIterator[bytes]:
        if offset < 0:
            yield b""
        raise errors.NotFound(f"{digest} is gone")

    await storage.verify_content(digest)  # else the next call would begin an upload
    await storage.write_content(f"moorage-hold-{digest}", none, digest=digest)


async def write_manifest(storage: "Storage", config: Descriptor, layers: Sequence[Descriptor]) -> Descriptor:
    """Write the manifest of a plugin, Docker's schema 2, that refers to config and layers, which are stored already.

    Raises:
        errors.Unavailable: containerd does not answer
    """
    manifest = await write_blob(storage, DOCKER_MANIFEST, encode_manifest(config, layers))
    await refer_to_blobs(storage, manifest.digest, config.digest, [layer.digest for layer in layers])
    return manifest


async def end_lease(storage: "Storage", lease: str) -> None:
    """End a lease and collect what only it protected, also when cancelled. A failure is only logged."""
    with anyio.move_on_after(_COLLECT, shield=True):
        try:
            await storage.delete_lease(lease, collect=True)
        except errors.NotFound:
            pass
        except errors.MoorageError as error:
            log.warning("cannot end lease %s, the next start does: %s", lease, error)


def image_record(name: str, package: Package, snapshotter: str, snapshot: str, labels: Mapping[str, str]) -> Image:
    """The image record that protects a package and a snapshot on top of it; ``labels`` are further ones."""
    return Image(name, package.manifest, {f"{_SNAPSHOT_LABEL}{snapshotter}": snapshot, **labels})


async def create_image_record(
    storage: "Storage", image: Image, is_replaceable: Callable[[Mapping[str, str]], bool]
) -> Image:
    """Write an image record. If there is one of this name, it is replaced or the new one gets a unique name.

    ``is_replaceable`` decides that by the labels of the one that exists.

    Raises:
        errors.Unavailable: containerd does not answer
    """
    try:
        await storage.create_image(image)
    except errors.Conflict:
        try:
            may_replace = is_replaceable((await storage.get_image(image.name)).labels)
        except errors.NotFound:
            may_replace = False
        if may_replace:
            await storage.delete_image(image.name)
        else:  # of another program or plugin
            image = replace(image, name=f"{image.name}#{secrets.token_hex(4)}")
        await storage.create_image(image)
    return image


async def is_stored(storage: "Storage", stored: StoredPackage) -> bool:
    """Whether containerd has the image record and the root of a plugin.

    They are lost if containerd's database is lost or replaced, or if a user removes one of them.

    Raises:
        errors.Unavailable: containerd does not answer
    """
    try:
        await storage.get_image(stored.image)
        await storage.get_snapshot(stored.snapshotter, stored.snapshot)
    except errors.NotFound:
        return False
    return True


async def is_same_package(storage: "Storage", stored: StoredPackage, package: Package) -> bool:
    """Whether a plugin has this package, and its root is on these layers.

    Raises:
        errors.Unavailable: containerd does not answer
    """
    if stored.digest != package.manifest.digest:
        return False
    try:
        await storage.get_image(stored.image)
        return (await storage.get_snapshot(stored.snapshotter, stored.snapshot)).parent == package.chain
    except errors.NotFound:
        return False


async def lease_package(storage: "Storage", stored: StoredPackage, *, is_enabled: bool) -> Manifest:
    """The manifest of a plugin's package; the lease of ``storage`` then protects all of it.

    ``is_enabled``: whether the plugin is, for the hint in an error.

    Raises:
        errors.Conflict: a part of it is missing or damaged, with a hint how to repair it
        errors.Unavailable: containerd does not answer
    """
    try:
        target = (await storage.get_image(stored.image)).target
    except errors.NotFound as error:
        raise errors.Conflict(
            f"cannot read the package of plugin {stored.name}: it is not in containerd any more ({error}); "
            f"to get it back {reinstall_hint(stored)}"
        ) from error
    try:
        await add_to_lease(storage, target.digest)
        manifest = await read_manifest(storage, target)
        for blob in manifest.blobs:
            await add_to_lease(storage, blob.digest)
    except (errors.NotFound, DamagedContent) as error:
        missing = "" if isinstance(error, DamagedContent) else "; a part of it is not in containerd any more"
        raise errors.Conflict(
            f"cannot read the package of plugin {stored.name}: {error}{missing}; "
            f"to repair it {repair_hint(stored, is_enabled=is_enabled)}"
        ) from error
    return manifest


def reinstall_hint(stored: StoredPackage) -> str:
    """What a user runs to give a plugin its package again, after containerd lost it."""
    reference, name = stored.reference, stored.name
    alias = "" if str(parse_reference(reference)) == str(parse_reference(name)) else f"--alias {name} "
    return f"run moorage install {alias}{reference}, {_LOAD}, or moorage create {name} with its directory"


def repair_hint(stored: StoredPackage, *, is_enabled: bool) -> str:
    """What a user runs to replace damaged or missing blobs of a plugin's package."""
    option = "--restart " if is_enabled else ""
    return f"run moorage upgrade {option}{stored.name}, or {_LOAD}; one that was created here: remove and create it"


@asynccontextmanager
async def as_import_error(action: str) -> AsyncIterator[None]:
    """Raise errors of containerd as errors of an import: what it does not find or has already is not a plugin.

    Raises:
        errors.Unavailable: the disk is full
        errors.MoorageError: instead of NotFound and Conflict; other kinds are unchanged
    """
    try:
        yield
    except errors.MoorageError as error:
        if errors.is_disk_full(error) and not isinstance(error, errors.Unavailable):
            raise errors.Unavailable(f"cannot {action}: {error}") from error
        if isinstance(error, errors.NotFound | errors.Conflict):
            raise errors.MoorageError(f"cannot {action}: {error}") from error
        raise

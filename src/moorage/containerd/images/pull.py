"""Images from registries into containerd, as ``ctr image pull`` does it, and what they take there.

Layers are downloaded side by side, straight into containerd's content store; every byte is checked by its digest. All
of it is under a lease until the record of the image refers to it.

Source: containerd's ``client.Pull``, ``images.SetChildrenLabels`` and ``image.Unpack``.
"""

import logging
import platform as this_machine
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import anyio
from msgspec import Struct

from moorage import errors
from moorage.containerd.images.blobs import refer_to_blobs, write_blob
from moorage.containerd.images.config import ImageConfig, parse_image_config
from moorage.containerd.images.downloads import BlobDownloads, BlobSource, PullLocks
from moorage.containerd.images.layers import ImportContext, LayerUnpacker
from moorage.containerd.images.progress import ReportProgress, step_of_blob
from moorage.containerd.types import AlreadyExists, Image, Usage
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import is_digest_of
from moorage.oci.index import walk_to_manifest
from moorage.oci.limits import CONFIG_BYTES, MANIFEST_BYTES
from moorage.oci.manifest import Manifest, RawManifest, check_layers, media_type_of, parse_manifest
from moorage.oci.media_types import IMAGE_CONFIGS, LAYERS
from moorage.oci.platforms import Platform, platform_of_machine
from moorage.oci.reference import Reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("ImageSource", "PulledImage", "image_usage", "pull_image", "unpack_image")

log = logging.getLogger(__name__)

_CONCURRENT = 3
_LEASE_HOURS = 24
_SNAPSHOT_LABEL = "containerd.io/gc.ref.snapshot."


class ImageSource(BlobSource, Protocol):
    """A repository of a registry: manifests and blobs."""

    async def resolve(self, reference: Reference) -> RawManifest:
        """The manifest or index that a reference refers to."""

    async def read_manifest(self, target: str) -> RawManifest:
        """The manifest or index with this digest, verified."""


class PulledImage(Struct, frozen=True):
    """An image in containerd, unpacked: its record ``image``, its ``config``, and its root in a ``snapshotter``."""

    image: Image
    config: ImageConfig
    snapshotter: str
    snapshot: str
    """The committed snapshot that is its root file system: the parent of the snapshots of containers."""

    @property
    def name(self) -> str:
        """The name of its record: the reference in full."""
        return self.image.name


async def pull_image(
    storage: "Storage",
    source: ImageSource,
    reference: Reference,
    *,
    snapshotter: str,
    platform: Platform | None,
    report: ReportProgress,
) -> PulledImage:
    """Read an image for a platform (None: this machine's) and unpack it; a record of its name is replaced.

    Raises:
        errors.NotFound: the source does not have it, or not for the platform
        errors.Invalid: it is not an image, or its bytes are not those of their digests
        errors.MoorageError: what the source and containerd raise
    """
    what, host = reference.familiar, platform or platform_of_machine(this_machine.machine())
    walked = await walk_to_manifest(await source.resolve(reference), source.read_manifest, what, host)
    manifest = _check_image(parse_manifest(walked[-1], f"cannot use {what}: its manifest"), what)
    async with _leased(storage) as context_of:
        context = context_of(snapshotter)
        raw = await _fetch_blobs(context, source, manifest, report)
        config = parse_image_config(raw, f"cannot use {what}: its config")
        await _write_manifests(context.storage, walked)
        chain = await _unpack(context, manifest, config, report)
        image = Image(str(reference), walked[0].descriptor)
        await _record(storage, image)
    return PulledImage(image, config, snapshotter, chain)


async def unpack_image(storage: "Storage", name: str, snapshotter: str) -> PulledImage:
    """Unpack an image whose content is stored, for this machine; what is unpacked already is used.

    Raises:
        errors.NotFound: no such image, or part of its content is missing
        errors.Invalid: it is not an image
    """
    image = await storage.get_image(name)
    walked = await _walk(storage, image)
    manifest = _check_image(parse_manifest(walked[-1], f"cannot use {name}: its manifest"), name)
    raw = await _read(storage, manifest.config, CONFIG_BYTES)
    config = parse_image_config(raw, f"cannot use {name}: its config")
    async with _leased(storage) as context_of:
        chain = await _unpack(context_of(snapshotter), manifest, config, lambda _: None)
    return PulledImage(image, config, snapshotter, chain)


async def image_usage(storage: "Storage", name: str, snapshotter: str) -> Usage:
    """The disk usage of an image for this machine: its blobs, and its snapshots with those below them.

    Blobs and snapshots that other images use too are counted for each. Raises: NotFound for the image.
    """
    image = await storage.get_image(name)
    walked = await _walk(storage, image)
    manifest = parse_manifest(walked[-1], f"cannot use {name}: its manifest")
    size, inodes = sum(len(each.data) for each in walked), 0
    for blob in manifest.blobs:
        try:
            size += (await storage.get_content(blob.digest)).size_bytes
        except errors.NotFound:
            pass  # pulled without it
    labels = (await storage.get_content(manifest.config.digest)).labels
    key = labels.get(f"{_SNAPSHOT_LABEL}{snapshotter}", "")
    while key:
        used = await storage.snapshot_usage(snapshotter, key)
        size, inodes = size + used.size_bytes, inodes + used.inodes
        key = (await storage.get_snapshot(snapshotter, key)).parent
    return Usage(size, inodes)


async def _write_manifests(storage: "Storage", walked: tuple[RawManifest, ...]) -> None:
    """Store indexes and manifest, each with labels that refer to what is below it, the lowest first."""
    manifest = parse_manifest(walked[-1], "cannot use the manifest")
    await write_blob(storage, walked[-1].media_type, walked[-1].data, walked[-1].digest)
    await refer_to_blobs(
        storage, manifest.descriptor.digest, manifest.config.digest, [x.digest for x in manifest.layers]
    )
    for below, each in zip(reversed(walked), reversed(walked[:-1]), strict=False):
        await write_blob(storage, each.media_type, each.data, each.digest)
        await storage.set_content_labels(each.digest, {"containerd.io/gc.ref.content.m.0": below.digest})


def _check_image(manifest: Manifest, what: str) -> Manifest:
    if manifest.config.media_type not in IMAGE_CONFIGS:
        raise errors.Invalid(f"cannot use {what}: it is no image, its config is of type {manifest.config.media_type!r}")
    for layer in manifest.layers:
        if layer.media_type not in LAYERS:
            raise errors.Invalid(f"cannot use {what}: a layer of type {layer.media_type!r} cannot be unpacked")
    check_layers(manifest, f"cannot use {what}")
    return manifest


@asynccontextmanager
async def _leased(storage: "Storage") -> AsyncIterator[Callable[[str], ImportContext]]:
    """A lease until the block ends; contexts under it."""
    id = f"moorage-image-{secrets.token_hex(8)}"
    try:
        await storage.create_lease(id, expires_at=datetime.now(UTC) + timedelta(hours=_LEASE_HOURS))
        yield lambda snapshotter: ImportContext(storage.under(id), id, snapshotter, id)
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await storage.delete_lease(id)
            except errors.NotFound:
                pass  # it was not created
            except errors.MoorageError as error:
                log.info("cannot delete lease %s, which expires: %s", id, error)


async def _fetch_blobs(
    context: ImportContext, source: ImageSource, manifest: Manifest, report: ReportProgress
) -> bytes:
    """Download config and layers; the bytes of the config. Raises: the first failure."""
    locks = PullLocks()
    downloads = BlobDownloads(context.storage, source, locks.downloads, lambda *step: report(step_of_blob(*step)))
    slots, failures = anyio.CapacityLimiter(_CONCURRENT), list[Exception]()

    async def fetch(blob: Descriptor) -> None:
        try:
            async with slots, locks.downloads.lock(blob.digest):
                await downloads.fetch(blob)
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for blob in manifest.blobs:
            tasks.start_soon(fetch, blob)
    if failures:
        raise failures[0]
    return await _read(context.storage, manifest.config, CONFIG_BYTES)


async def _unpack(context: ImportContext, manifest: Manifest, config: ImageConfig, report: ReportProgress) -> str:
    """Unpack all layers; the name of the snapshot with all of them, to which the config then refers."""
    unpacker = LayerUnpacker(context)
    stated = config.diff_ids if len(config.diff_ids) == len(manifest.layers) else [""] * len(manifest.layers)
    for layer, expected in zip(manifest.layers, stated, strict=True):
        report(step_of_blob("Extracting", layer, 0))
        await unpacker.add(layer, expected)
        report(step_of_blob("Complete", layer, 0))
    labels = {f"{_SNAPSHOT_LABEL}{context.snapshotter}": unpacker.chain}
    await context.storage.set_content_labels(manifest.config.digest, labels)
    return unpacker.chain


async def _record(storage: "Storage", image: Image) -> None:
    try:
        await storage.create_image(image)
    except AlreadyExists:
        await storage.update_image(image)


async def _walk(storage: "Storage", image: Image) -> tuple[RawManifest, ...]:
    async def read(digest: str) -> RawManifest:
        found = await storage.get_content(digest)
        data = await _read(storage, Descriptor("", digest, found.size_bytes), MANIFEST_BYTES)
        return RawManifest(data, media_type_of(data), digest)

    root = await read(image.target.digest)
    return await walk_to_manifest(root, read, image.name, platform_of_machine(this_machine.machine()))


async def _read(storage: "Storage", blob: Descriptor, limit: int) -> bytes:
    if blob.size_bytes > limit:
        raise errors.Invalid(f"cannot read {blob.digest}: it has {blob.size_bytes} bytes, {limit} are possible")
    async with storage.read_content(blob.digest) as pieces:
        data = b"".join([piece async for piece in pieces])
    if not is_digest_of(blob.digest, data):
        raise errors.Invalid(f"cannot use {blob.digest}: its bytes have another digest")
    return data

"""Pulls a package from a source (a registry, an archive) into containerd: resolved first, imported after consent.

Layers are downloaded concurrently, straight into containerd's content store, and each is unpacked as soon as it and
those below it are stored. Every byte is checked by its digest before it is used. The caller's lease keeps all of it.
"""

import logging
import platform
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.containerd.images.downloads import BlobDownloads, PullLocks
from moorage.containerd.images.layers import LayerUnpacker
from moorage.containerd.images.progress import step_of_blob
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import is_digest_of
from moorage.oci.index import walk_to_manifest
from moorage.oci.manifest import Manifest, check_plugin, parse_manifest
from moorage.oci.platforms import Platform, platform_of_machine
from moorage.packages.content import ImportContext, Package, refer_to_blobs, write_blob
from moorage.packages.source import ReportProgress, Source, ignore_progress
from moorage.plugins import Config, Privilege, Reference, compute_privileges, parse_config

__all__ = ("LOCAL_PLATFORM", "PullLocks", "ResolvedPackage", "VerifySignatures", "pull_package", "resolve_package")

log = logging.getLogger(__name__)

_CONCURRENT = 3  # downloads of one pull; more do not make a connection faster

LOCAL_PLATFORM = platform_of_machine(platform.machine())
"""Of this host."""

VerifySignatures = Callable[[Source, Reference, Sequence[str]], Awaitable[None]]
"""Returns if a package with these digests may be used. Raises: errors.Denied."""


class ResolvedPackage(Struct, frozen=True):
    """What a reference refers to on this host, before any layer is read."""

    reference: Reference
    digest: str
    """Of the index or manifest that the reference refers to."""
    manifest: Manifest
    raw_config: bytes
    config: Config
    warnings: tuple[str, ...]
    """What is unusual in its config."""

    @property
    def privileges(self) -> tuple[Privilege, ...]:
        """The privileges that it requests."""
        return compute_privileges(self.config)


async def resolve_package(
    source: Source, reference: Reference, host: Platform = LOCAL_PLATFORM, *, verify: VerifySignatures | None = None
) -> ResolvedPackage:
    """The plugin that a reference refers to on this host, its config read and checked.

    ``verify`` is called with the digests of the index and the manifest before anything that they refer to is read.

    Raises:
        errors.NotFound: the source does not have it, or not for this platform
        errors.Invalid: it is not a plugin
        errors.MoorageError: what the source and ``verify`` raise
    """
    what = reference.familiar
    manifests = await walk_to_manifest(await source.resolve(reference), source.read_manifest, what, host)
    digests = [each.digest for each in manifests]
    if verify is not None:
        await verify(source, reference, digests)
    made = check_plugin(parse_manifest(manifests[-1], f"cannot use {what}: its manifest"), what)
    raw = await _read_config(source, made.config, what)
    try:
        parsed = parse_config(raw)
    except errors.Invalid as error:
        raise errors.Invalid(f"cannot use {what}: {error}") from error
    return ResolvedPackage(reference, digests[0], made, raw, parsed.config, parsed.warnings)


async def _read_config(source: Source, config: Descriptor, what: str) -> bytes:
    async with aclosing(source.read_blob(config.digest, config.size_bytes)) as pieces:
        raw = b"".join([piece async for piece in pieces])
    if not is_digest_of(config.digest, raw):
        raise errors.Invalid(f"cannot use {what}: its config has another digest than {config.digest}")
    return raw


async def pull_package(
    context: ImportContext,
    source: Source,
    resolved: ResolvedPackage,
    locks: PullLocks,
    report: ReportProgress = ignore_progress,
) -> Package:
    """Import and unpack everything of a resolved package.

    On failure or cancellation the lease of the context keeps what is whole, and nothing else is left.

    Raises:
        errors.Invalid: bytes are not those that the manifest states, or not a layer
        errors.Unavailable: the disk is full, or containerd does not answer
        errors.MoorageError: what the source raises
    """
    return await _Pull(context, source, resolved, locks, report).run()


class _Pull:
    """The pull of one package."""

    def __init__(
        self,
        context: ImportContext,
        source: Source,
        resolved: ResolvedPackage,
        locks: PullLocks,
        report: ReportProgress,
    ) -> None:
        self._context = context
        self._storage = context.storage
        self._source = source
        self._resolved = resolved
        self._locks = locks
        self._report = report
        self._downloads = BlobDownloads(context.storage, source, locks.downloads, self._report_blob)
        self._slots = anyio.CapacityLimiter(_CONCURRENT)
        layers = {layer.digest: layer for layer in resolved.manifest.layers}  # without duplicates
        self._stored = {digest: anyio.Event() for digest in layers}
        self._layers = tuple(layers.values())
        self._failure: Exception | None = None

    async def run(self) -> Package:
        """Everything. Raises: the first failure."""
        unpacker = LayerUnpacker(self._context, self._locks.unpacking)
        manifest = self._resolved.manifest
        for layer in self._layers:
            self._report_blob("Waiting", layer)
        async with background_tasks() as tasks:
            for layer in self._layers:
                tasks.start_soon(self._fetch, layer, tasks.cancel_scope)
            await self._write(manifest.config, self._resolved.raw_config)
            for layer, expected in zip(manifest.layers, self._diff_ids(), strict=True):
                await self._stored[layer.digest].wait()
                await self._unpack(layer, unpacker, expected)
        if self._failure is not None:
            raise self._failure
        await self._write(manifest.descriptor, manifest.data)
        names = [layer.digest for layer in manifest.layers]
        await refer_to_blobs(self._storage, manifest.descriptor.digest, manifest.config.digest, names)
        return Package(manifest.descriptor, self._resolved.config, self._resolved.warnings, unpacker.chain)

    async def _write(self, descriptor: Descriptor, data: bytes) -> None:
        async with self._locks.downloads.lock(descriptor.digest):
            await write_blob(self._storage, descriptor.media_type, data, descriptor.digest)

    def _diff_ids(self) -> Sequence[str]:
        """The diff ids that the config states for the layers; empty strings if it does not state one for each."""
        rootfs, layers = self._resolved.config.rootfs, self._resolved.manifest.layers
        stated = rootfs.diff_ids if rootfs is not None else ()
        return stated if len(stated) == len(layers) else [""] * len(layers)

    async def _unpack(self, layer: Descriptor, unpacker: LayerUnpacker, expected: str) -> None:
        self._report_blob("Extracting", layer)
        await unpacker.add(layer, expected)
        self._report_blob("Complete", layer)

    # downloads

    async def _fetch(self, layer: Descriptor, pull: anyio.CancelScope) -> None:
        """Download one layer, and cancel the whole pull if that fails."""
        try:
            async with self._slots, self._locks.downloads.lock(layer.digest):
                await self._downloads.fetch(layer)
        except Exception as error:  # noqa: BLE001 - raised by run, which waits for this
            self._failure = self._failure or error
            pull.cancel()
        else:
            self._stored[layer.digest].set()

    def _report_blob(self, status: str, layer: Descriptor, current: int = 0) -> None:
        self._report(step_of_blob(status, layer, current))

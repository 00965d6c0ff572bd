"""A package from a source (a registry, an archive) into containerd: found first, taken in after somebody agreed.

Layers come side by side, straight into containerd's content store, and each is unpacked as soon as it and those below
it are there. Nothing is believed before its digest was checked. All of it is held by the caller's lease only.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage._lib.keylocks import KeyedLocks
from moorage.containerd.types import Descriptor
from moorage.distribution._check import new_hash
from moorage.distribution._layers import Unpacking
from moorage.distribution.manifest import HOST, Platform, PluginManifest, choose_entry, is_index, read_plugin_manifest
from moorage.distribution.package import UPLOAD_PREFIX, Package, hold_by_manifest, write_document
from moorage.distribution.source import Progress, Report, Source, quiet
from moorage.plugins import Config, Privilege, Reference, compute_privileges, parse_config

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("Found", "Shared", "Verify", "find", "take")

log = logging.getLogger(__name__)

_AT_ONCE = 3  # downloads of one pull; more do not make a line faster
_CHUNK = 1 << 20  # bytes for one write to containerd, which takes less processor time for each byte of larger ones
_DEPTH = 3  # indexes in indexes
Verify = Callable[[Source, Reference, Sequence[str]], Awaitable[None]]
"""Returns where a package with these digests may be used. Raises: Denied."""

_TRIES = 3  # of a blob whose bytes came whole and wrong from a mirror, which is left then


class Found(Struct, frozen=True):
    """What a reference means on this machine, before any layer is read."""

    reference: Reference
    digest: str
    """Of what the reference means as it is: an index, or the manifest itself."""
    manifest: PluginManifest
    raw_config: bytes
    config: Config
    warnings: tuple[str, ...]
    """What is odd about its config."""

    @property
    def privileges(self) -> tuple[Privilege, ...]:
        """What it asks for."""
        return compute_privileges(self.config)


class Shared:
    """What pulls of one containerd share, so that each layer is read and unpacked once."""

    def __init__(self) -> None:
        self.downloads: KeyedLocks[str] = KeyedLocks()
        """By digest."""
        self.unpacking: KeyedLocks[str] = KeyedLocks()


async def find(source: Source, reference: Reference, host: Platform = HOST, *, verify: Verify | None = None) -> Found:
    """The plugin that a reference means on this machine, its config read and checked.

    ``verify`` is called with the digests of the index and the manifest before anything that they name is read.

    Raises: what the source and ``verify`` do; NotFound where there is none for this platform; Invalid for what is no
    plugin.
    """
    what = reference.familiar
    manifest = await source.resolve(reference)
    digests = [manifest.digest]
    for _ in range(_DEPTH):
        if not is_index(manifest):
            break
        manifest = await source.read_manifest(choose_entry(manifest, what, host))
        digests.append(manifest.digest)
    else:
        raise errors.Invalid(f"cannot use {what}: it is an index of indexes of indexes")
    if verify is not None:
        await verify(source, reference, digests)
    made = read_plugin_manifest(manifest, what)
    raw = await _read_config(source, made.config, what)
    try:
        parsed = parse_config(raw)
    except errors.Invalid as error:
        raise errors.Invalid(f"cannot use {what}: {error}") from error
    return Found(reference, digests[0], made, raw, parsed.config, parsed.warnings)


async def _read_config(source: Source, config: Descriptor, what: str) -> bytes:
    async with aclosing(source.read_blob(config.digest, config.size_bytes)) as pieces:
        raw = b"".join([piece async for piece in pieces])
    hasher = new_hash(config.digest)
    hasher.update(raw)
    if hasher.hexdigest() != config.digest.partition(":")[2]:
        raise errors.Invalid(f"cannot use {what}: its config has another digest than {config.digest}")
    return raw


async def take(
    storage: "Storage",
    lease: str,
    snapshotter: str,
    source: Source,
    found: Found,
    *,
    scratch: str,
    shared: Shared,
    report: Report = quiet,
) -> Package:
    """Bring in everything of what was found, and unpack it.

    ``storage`` works under ``lease``, which holds all that is made; ``scratch`` begins the names of snapshots that are
    gone at the end. On failure or cancellation only the lease holds what is whole, and nothing else is left.

    Raises: Invalid for bytes that are not what the manifest says or no layer; what the source does; Unavailable.
    """
    return await _Pull(storage, source, found, shared, report).run(
        Unpacking(storage, lease, snapshotter, scratch, shared.unpacking)
    )


class _Pull:
    """One package on its way."""

    def __init__(self, storage: "Storage", source: Source, found: Found, shared: Shared, report: Report) -> None:
        self._storage = storage
        self._source = source
        self._found = found
        self._shared = shared
        self._report = report
        self._slots = anyio.CapacityLimiter(_AT_ONCE)
        layers = {layer.digest: layer for layer in found.manifest.layers}  # one that is named twice comes once
        self._arrivals = {digest: anyio.Event() for digest in layers}
        self._layers = tuple(layers.values())
        self._failure: Exception | None = None

    async def run(self, unpacking: Unpacking) -> Package:
        """Everything. Raises: the first failure."""
        manifest = self._found.manifest
        for layer in self._layers:
            self._tell("Waiting", layer)
        async with background_tasks() as tasks:
            for layer in self._layers:
                tasks.start_soon(self._fetch, layer, tasks.cancel_scope)
            await self._write(manifest.config, self._found.raw_config)
            for layer, promised in zip(manifest.layers, self._diff_ids(), strict=True):
                await self._arrivals[layer.digest].wait()
                await self._unpack(layer, unpacking, promised)
        if self._failure is not None:
            raise self._failure
        await self._write(manifest.descriptor, manifest.data)
        names = [layer.digest for layer in manifest.layers]
        await hold_by_manifest(self._storage, manifest.descriptor.digest, manifest.config.digest, names)
        return Package(manifest.descriptor, self._found.config, self._found.warnings, unpacking.chain)

    async def _write(self, descriptor: Descriptor, data: bytes) -> None:
        async with self._shared.downloads.hold(descriptor.digest):
            await write_document(self._storage, descriptor.media_type, data, descriptor.digest)

    def _diff_ids(self) -> Sequence[str]:
        """What the config says that each layer unpacks to; empty where it does not say so of every layer."""
        rootfs, layers = self._found.config.rootfs, self._found.manifest.layers
        promised = rootfs.diff_ids if rootfs is not None else ()
        return promised if len(promised) == len(layers) else [""] * len(layers)

    async def _unpack(self, layer: Descriptor, unpacking: Unpacking, promised: str) -> None:
        self._tell("Extracting", layer)
        await unpacking.add(layer, promised)
        self._tell("Complete", layer)

    # downloads

    async def _fetch(self, layer: Descriptor, all_of_it: anyio.CancelScope) -> None:
        """One layer, and the end of the whole pull where it fails."""
        try:
            async with self._slots, self._shared.downloads.hold(layer.digest):
                await self._download(layer)
        except Exception as error:  # noqa: BLE001 - raised by run, which waits for this
            self._failure = self._failure or error
            all_of_it.cancel()
        else:
            self._arrivals[layer.digest].set()

    async def _download(self, layer: Descriptor) -> None:
        """A blob that is there, is there at once; what another pull began is gone on with."""
        for tries_left in reversed(range(_TRIES)):
            download = _Download(self._source, layer, lambda status, at: self._tell(status, layer, at))
            try:
                await self._store(layer, download)
            except errors.Unavailable:
                # all came and was wrong: the source has left the mirror that it came from
                if not tries_left or not download.is_whole:
                    raise
                await self._forget(layer)
            else:
                self._tell("Download complete" if download.is_begun else "Already exists", layer)
                return

    async def _store(self, layer: Descriptor, download: "_Download") -> None:
        try:
            await self._storage.write_content(
                _ref(layer), download.chunks_from, digest=layer.digest, size_bytes=layer.size_bytes
            )
        except BaseException:
            await download.close()
            if not self._shared.downloads.is_awaited(layer.digest):  # who waits goes on where this one stopped
                await self._forget(layer)
            raise
        await download.close()

    async def _forget(self, layer: Descriptor) -> None:
        """Throw away what was written: containerd 1.6 keeps it otherwise until its first whole blob is collected."""
        with anyio.CancelScope(shield=True):
            try:
                await self._storage.abort_ingest(_ref(layer))
            except errors.NotFound:
                pass
            except errors.MoorageError as error:
                log.info("cannot throw away %s, the next start does: %s", _ref(layer), error)

    def _tell(self, status: str, layer: Descriptor, current: int = 0) -> None:
        total = layer.size_bytes if status == "Downloading" else 0
        self._report(Progress(status, layer.digest.partition(":")[2][:12], current, total, is_of_blob=True))


class _Download:
    """The bytes of one layer, in chunks as containerd likes them; to be closed."""

    def __init__(self, source: Source, layer: Descriptor, tell: Callable[[str, int], None]) -> None:
        self.is_begun = False
        """It was not there already."""
        self.is_whole = False
        """As many bytes came as there should be; whether they are right is another thing."""
        self._source = source
        self._layer = layer
        self._tell = tell
        self._open: list[AsyncGenerator[bytes, None]] = []

    def chunks_from(self, offset: int) -> AsyncIterator[bytes]:
        """As ``Storage.write_content`` wants it."""
        made = self._chunks(offset)
        self._open.append(made)
        return made

    async def close(self) -> None:
        """Let the connection go."""
        with anyio.CancelScope(shield=True):
            for each in self._open:
                await each.aclose()

    async def _chunks(self, offset: int) -> AsyncGenerator[bytes, None]:
        self.is_begun = True
        self._tell("Pulling fs layer", 0)
        size_bytes, at, chunk, chunk_bytes = self._layer.size_bytes, offset, list[bytes](), 0
        async with aclosing(self._source.read_blob(self._layer.digest, size_bytes, offset)) as pieces:
            async for piece in pieces:
                chunk.append(piece)
                chunk_bytes += len(piece)
                at += len(piece)
                self.is_whole = at >= size_bytes
                self._tell("Downloading", at)
                if chunk_bytes >= _CHUNK:
                    yield b"".join(chunk)
                    chunk, chunk_bytes = [], 0
        if chunk:
            yield b"".join(chunk)


def _ref(layer: Descriptor) -> str:
    return f"{UPLOAD_PREFIX}{layer.digest}"

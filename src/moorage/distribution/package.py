"""A package from a tar stream into containerd: its layer written and unpacked as it comes, its config, its manifest.

Nothing is held in memory, nothing lies on the disk beside containerd's own store, and all of it is held by the caller's
lease only. Source: the media types and documents of a plugin that Docker pushes (schema 2).
"""

import hashlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct

from moorage import errors
from moorage.containerd.types import Descriptor
from moorage.distribution._layers import Unpacking
from moorage.distribution._retar import CONFIG_LIMIT, Source, retar
from moorage.plugins import Config, as_it_came, parse_config, with_rootfs

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = (
    "CONFIG_LIMIT",
    "CONFIG_TYPE",
    "LAYER_TYPE",
    "MANIFEST_TYPE",
    "UPLOAD_PREFIX",
    "Package",
    "create_package",
    "hold_by_manifest",
    "write_document",
    "write_manifest",
)

log = logging.getLogger(__name__)

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.plugin.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"

UPLOAD_PREFIX = "moorage-layer-"
"""What the refs of uploads begin with."""

_CHUNKS = 4
"""As many chunks wait between two of body, thread and containerd."""


class Package(Struct, frozen=True):
    """A plugin's package in containerd."""

    manifest: Descriptor
    config: Config
    warnings: tuple[str, ...]
    """What was odd about its config.json."""
    chain: str
    """Name of the committed snapshot that is its whole root file system."""


async def create_package(
    storage: "Storage", lease: str, snapshotter: str, body: AsyncIterator[bytes], *, scratch_key: str
) -> Package:
    """Take in a tar stream, gzipped or not, of config.json and rootfs/.

    ``storage`` works under ``lease``, which holds all that is made; ``scratch_key`` names a snapshot that is gone at
    the end. On failure or cancellation nothing but the lease holds what was written.

    Raises: Invalid for a stream that is no package, naming the entry or the path in its config; what the body raises;
    Unavailable.
    """
    taking = _Taking(storage, body)
    layer = await taking.run()
    parsed = parse_config(taking.config)
    unpacking = Unpacking(storage, lease, snapshotter, scratch_key)
    await unpacking.add(layer)
    config = with_rootfs(parsed.config, unpacking.diff_ids)
    config_blob = await write_document(storage, CONFIG_TYPE, as_it_came(config))
    manifest = await write_manifest(storage, config_blob, [layer])
    return Package(manifest, config, parsed.warnings, unpacking.chain)


async def write_manifest(storage: "Storage", config: Descriptor, layers: Sequence[Descriptor]) -> Descriptor:
    """The manifest of a plugin, Docker's schema 2, as a blob that holds config and layers, which are there."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _to_json(config),
        "layers": [_to_json(layer) for layer in layers],
    }
    manifest = await write_document(storage, MANIFEST_TYPE, json.dumps(document).encode())
    await hold_by_manifest(storage, manifest.digest, config.digest, [layer.digest for layer in layers])
    return manifest


async def hold_by_manifest(storage: "Storage", manifest: str, config: str, layers: Sequence[str]) -> None:
    """Let a manifest's blob hold its config and layers: else the next collection takes them, image record or not."""
    references = {"config": config, **{f"l.{index}": digest for index, digest in enumerate(layers)}}
    labels = {f"containerd.io/gc.ref.content.{key}": digest for key, digest in references.items()}
    await storage.set_content_labels(manifest, labels)


class _Taking:
    """The layer on its way: body, worker thread, containerd; three that wait for each other."""

    def __init__(self, storage: "Storage", body: AsyncIterator[bytes]) -> None:
        self.config = b""
        self._storage = storage
        self._body = body
        self._ref = f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"
        self._failures: list[BaseException] = []
        self._tasks: TaskGroup
        self._size_bytes = 0
        self._digest = ""

    async def run(self) -> Descriptor:
        """The layer as a blob. Raises: the first failure of the three."""
        raw_in, raw_out = anyio.create_memory_object_stream[bytes](_CHUNKS)
        made_in, made_out = anyio.create_memory_object_stream[bytes](_CHUNKS)
        try:
            async with anyio.create_task_group() as self._tasks:
                tasks = self._tasks
                tasks.start_soon(self._receive, raw_in)
                tasks.start_soon(self._work, raw_out, made_in)
                tasks.start_soon(self._store, made_out)
        except BaseException:
            await self._abort()
            raise
        if self._failures:
            await self._abort()
            raise self._failures[0]
        # A blob that turned out to exist only at the end was not added to our lease; one that is asked for by name is.
        await self._storage.write_content(f"{self._ref}-held", _nothing, digest=self._digest)
        return Descriptor(LAYER_TYPE, self._digest, self._size_bytes)

    async def _receive(self, raw: MemoryObjectSendStream[bytes]) -> None:
        with raw:
            try:
                async for chunk in self._body:
                    if chunk:
                        await raw.send(chunk)
            except anyio.BrokenResourceError:
                pass  # the thread has had enough, and says why
            except Exception as error:  # noqa: BLE001 - raised by run, where it goes before what follows from it
                self._fail(error)

    async def _work(self, raw: MemoryObjectReceiveStream[bytes], made: MemoryObjectSendStream[bytes]) -> None:
        async def next_chunk() -> bytes:
            try:
                return await raw.receive()
            except anyio.EndOfStream:
                return b""

        def work() -> bytes:
            source = Source(lambda: anyio.from_thread.run(next_chunk))
            return retar(source, lambda data: anyio.from_thread.run(made.send, data))

        with raw, made:
            try:
                self.config = await anyio.to_thread.run_sync(work)
                await made.send(b"")  # only whole layers are stored: without this word it was cut off
            except anyio.BrokenResourceError:
                pass  # nobody stores it any more, and says why
            except errors.MoorageError as error:
                self._fail(error)

    async def _store(self, made: MemoryObjectReceiveStream[bytes]) -> None:
        async def chunks(offset: int) -> AsyncIterator[bytes]:
            assert offset == 0, "the ref is new"
            async for chunk in made:
                if not chunk:
                    return
                self._size_bytes += len(chunk)
                yield chunk
            raise _CutOff

        with made:
            try:
                self._digest = await self._storage.write_content(self._ref, chunks)
            except _CutOff:
                pass
            except errors.MoorageError as error:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End all three: a body that comes slowly must not keep a package that is refused already."""
        self._failures.append(error)
        self._tasks.cancel_scope.cancel()

    async def _abort(self) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self._storage.abort_ingest(self._ref)
            except errors.NotFound:
                pass
            except errors.MoorageError as error:
                log.info("cannot throw away %s, the end of its lease does: %s", self._ref, error)


async def _nothing(offset: int) -> AsyncIterator[bytes]:
    """No bytes: what is asked for by name is there."""
    if offset < 0:
        yield b""
    raise errors.Unavailable("a layer that was written is gone")


class _CutOff(Exception):
    """The layer ends before its end; why is known elsewhere."""


async def write_document(storage: "Storage", media_type: str, data: bytes, digest: str = "") -> Descriptor:
    """A manifest or config as a blob, held by the lease that ``storage`` works under; ``digest`` where it has one."""
    digest = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        yield data[offset:]

    await storage.write_content(f"{UPLOAD_PREFIX}{digest}", chunks, digest=digest, size_bytes=len(data))
    return Descriptor(media_type, digest, len(data))


def _to_json(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size_bytes}

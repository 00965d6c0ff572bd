"""A package from a tar stream into containerd: its layer written and unpacked as it arrives, its config, its manifest.

Only pieces are in memory, and nothing is on the disk but containerd's own store. A worker thread takes config.json out
of the tar and writes the rest again as a layer. Source: the media types and documents of a plugin that Docker pushes
(schema 2).
"""

import copy
import logging
import posixpath
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import IO, TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from moorage import errors
from moorage.containerd.images.layers import LayerUnpacker
from moorage.oci.descriptor import Descriptor
from moorage.oci.limits import CONFIG_BYTES
from moorage.oci.media_types import DOCKER_LAYER_GZIP, PLUGIN_CONFIG
from moorage.packages.byte_stream import ByteStream, GzipWriter, NextChunk
from moorage.packages.content import (
    UPLOAD_PREFIX,
    ImportContext,
    Package,
    add_to_lease,
    write_blob,
    write_manifest,
)
from moorage.packages.tar import FORMAT, PIECE_BYTES, REGULAR_TYPES, TAR_DAMAGE, TarReader
from moorage.plugins import as_it_came, parse_config, with_rootfs

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("create_package", "repack_package")

log = logging.getLogger(__name__)

_CHUNKS = 4
"""Chunks that wait between body and thread, and between thread and containerd."""

SPARSE_LIMIT = 64 << 30
"""Bytes of a sparse file: the size of the stream does not bound what is written for it."""

_NUMBERS = {
    "uid": (0, (1 << 32) - 2),
    "gid": (0, (1 << 32) - 2),
    "mode": (0, 0o177777),
    "size": (0, 1 << 62),
    "devmajor": (0, (1 << 32) - 1),
    "devminor": (0, (1 << 32) - 1),
    "mtime": (-(1 << 40), 1 << 40),
}
"""What the kernel takes, in seconds for the time."""

_ROOT = "rootfs"
_CONFIG = "config.json"
_XATTR = "SCHILY.xattr."
_TYPES = (
    *REGULAR_TYPES,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


async def create_package(context: ImportContext, body: AsyncIterator[bytes]) -> Package:
    """Import a tar stream, gzipped or not, of config.json and rootfs/.

    On failure or cancellation only the lease of the context keeps what was written.

    Raises:
        errors.Invalid: it is not a package; names the entry, or the path in its config
        errors.Unavailable: the disk is full, or containerd does not answer
        Exception: what ``body`` raises
    """
    upload = _LayerUpload(context.storage, body)
    layer = await upload.run()
    parsed = parse_config(upload.config)
    unpacker = LayerUnpacker(context)
    await unpacker.add(layer)
    config = with_rootfs(parsed.config, unpacker.diff_ids)
    config_blob = await write_blob(context.storage, PLUGIN_CONFIG, as_it_came(config))
    manifest = await write_manifest(context.storage, config_blob, [layer])
    return Package(manifest, config, parsed.warnings, unpacker.chain)


class _LayerUpload:
    """Makes the layer of a package: body, worker thread and containerd, three tasks that wait for each other."""

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
        """The layer as a blob. Raises: the first failure of the three tasks."""
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
        await add_to_lease(self._storage, self._digest)  # a blob that turned out to exist only at the end is not in it
        return Descriptor(DOCKER_LAYER_GZIP, self._digest, self._size_bytes)

    async def _receive(self, raw: MemoryObjectSendStream[bytes]) -> None:
        with raw:
            try:
                async for chunk in self._body:
                    if chunk:
                        await raw.send(chunk)
            except anyio.BrokenResourceError:
                pass  # the thread has failed, and reports it
            except Exception as error:  # noqa: BLE001 - raised by run, as the cause of all others
                self._fail(error)

    async def _work(self, raw: MemoryObjectReceiveStream[bytes], made: MemoryObjectSendStream[bytes]) -> None:
        async def next_chunk() -> bytes:
            try:
                return await raw.receive()
            except anyio.EndOfStream:
                return b""

        def work() -> bytes:
            return repack_package(
                lambda: anyio.from_thread.run(next_chunk), lambda data: anyio.from_thread.run(made.send, data)
            )

        with raw, made:
            try:
                self.config = await anyio.to_thread.run_sync(work)
                await made.send(b"")  # the end mark: without it the layer is truncated, and not stored
            except anyio.BrokenResourceError:
                pass  # storing it has failed, and that is reported
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
            raise _Truncated

        with made:
            try:
                self._digest = await self._storage.write_content(self._ref, chunks)
            except _Truncated:
                pass
            except errors.MoorageError as error:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Cancel all three: a package that is refused must not wait for a slow body."""
        self._failures.append(error)
        self._tasks.cancel_scope.cancel()

    async def _abort(self) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self._storage.abort_ingest(self._ref)
            except errors.NotFound:
                pass
            except errors.MoorageError as error:
                log.info("cannot delete upload %s, the end of its lease does: %s", self._ref, error)


class _Truncated(Exception):
    """The layer has no end mark; the reason is in the list of failures."""


def repack_package(next_chunk: NextChunk, put: Callable[[bytes], None]) -> bytes:
    """The text of config.json; the entries below rootfs/ go to ``put`` as a gzipped tar, in chunks.

    ``next_chunk`` returns the package as it comes, ``b""`` after the last chunk. Absolute names are relative to the
    package, as dockerd and ``docker export`` have them.

    Raises:
        errors.Invalid: naming the entry: it is not a package but not a tar, or truncated, lacks one of the two, names a
            path outside, or has an entry that no root file system has; ``put`` has been given a part by then
    """
    config: bytes | None = None
    has_root = False
    compressed = GzipWriter(put)
    try:
        stream = ByteStream(next_chunk)
        layer = tarfile.TarFile(fileobj=compressed, mode="w", copybufsize=PIECE_BYTES, **FORMAT)  # type: ignore[arg-type]
        with TarReader(stream) as package, layer:
            while (entry := package.next()) is not None:
                layer.members.clear()  # type: ignore[attr-defined]
                _check_numbers(entry)
                name = _inner_name(entry, entry.name)
                if name == _CONFIG:
                    if config is not None:
                        raise errors.Invalid("cannot read the package: it has two files config.json")
                    config = _read_config(package, entry)
                elif name == _ROOT or name.startswith(f"{_ROOT}/"):
                    has_root = True
                    made = _entry_of_layer(entry, name)
                    layer.addfile(made, package.extractfile(entry) if made.isreg() else None)
        if stream.is_gzip:
            stream.drain()
        compressed.close()
    except TAR_DAMAGE as error:
        raise errors.Invalid(f"cannot read the package: it is no whole tar stream: {error}") from error
    if config is None:
        raise errors.Invalid("config not found")
    if not has_root:
        raise errors.Invalid("no rootfs found")
    return config


def _check_numbers(entry: tarfile.TarInfo) -> None:
    """Raises: errors.Invalid naming the field of an entry that no file can have: PAX records may say anything."""
    for field, (least, most) in _NUMBERS.items():
        value = getattr(entry, field)
        if not least <= value <= most:  # a time that is no number is not, either
            raise errors.Invalid(f"cannot read the package: entry {entry.name!r} has {field} {value}")
    if entry.issparse() and entry.size > SPARSE_LIMIT:
        raise errors.Invalid(
            f"cannot read the package: entry {entry.name!r} is a sparse file of {entry.size} bytes; "
            f"at most {SPARSE_LIMIT} are possible"
        )
    if "\0" in entry.name or "\0" in entry.linkname:
        raise errors.Invalid(f"cannot read the package: entry {entry.name!r} has a NUL character in a name")


def _inner_name(entry: tarfile.TarInfo, name: str) -> str:
    """A name below the package's root, without ``./`` or ``/`` before it. Raises: errors.Invalid if it leads out."""
    if ".." in name.split("/"):
        raise errors.Invalid(f"cannot read the package: entry {entry.name!r} leads out of it by ..")
    return posixpath.normpath(name.lstrip("/") or ".")


def _read_config(package: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.type not in REGULAR_TYPES:
        raise errors.Invalid("cannot read the package: its config.json is not a file")
    if entry.size > CONFIG_BYTES:
        raise errors.Invalid(f"cannot read the package: its config.json has more than {CONFIG_BYTES} bytes")
    file: IO[bytes] | None = package.extractfile(entry)
    return file.read() if file is not None else b""


def _entry_of_layer(entry: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    """The entry as it is in the layer. Raises: errors.Invalid for what cannot be in a root file system."""
    if entry.type not in _TYPES and not entry.issparse():
        raise errors.Invalid(
            f"cannot read the package: entry {entry.name!r} is of a kind ({entry.type!r}) that no file system has"
        )
    if name == _ROOT and not entry.isdir():
        raise errors.Invalid("cannot read the package: its rootfs is not a directory")
    made = copy.copy(entry)
    made.name = name.removeprefix(_ROOT).removeprefix("/") or "."
    made.uname = made.gname = ""  # names of the host where it was packed; the ids count
    made.pax_headers = {key: value for key, value in entry.pax_headers.items() if key.startswith(_XATTR)}
    if entry.islnk():
        target = _inner_name(entry, entry.linkname)
        if not target.startswith(f"{_ROOT}/"):
            raise errors.Invalid(f"cannot read the package: entry {entry.name!r} is a link to a file outside rootfs")
        made.linkname = target.removeprefix(f"{_ROOT}/")
    elif entry.isreg():  # a sparse one becomes whole
        made.type = tarfile.REGTYPE
        made.sparse = None
    return made

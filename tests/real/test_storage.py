"""Content, images, snapshots, unpacking and leases on a real containerd."""

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from moorage import errors
from moorage.containerd import connect, types
from moorage.containerd.storage import Storage
from support.limits import limit
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

SNAPSHOTTER = "overlayfs"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"
CHUNK = 256 * 1024


@asynccontextmanager
async def storage_of(workspace: Workspace) -> AsyncIterator[Storage]:
    """The storage of the test's namespace, under a lease that ends with the test."""
    async with connect(workspace.session.containerd.address, workspace.namespace) as client:
        await client.storage.create_lease("test")
        try:
            yield client.storage.under("test")
        finally:
            for image in await client.storage.list_images():
                await client.storage.delete_image(image.name)
            for lease in await client.storage.list_leases():
                await client.storage.delete_lease(lease)
            await client.storage.collect()
            assert await client.storage.list_content() == []
            assert await client.storage.list_snapshots(SNAPSHOTTER) == []
            for ingest in await client.storage.list_ingests():
                await client.storage.abort_ingest(ingest.ref)


class Source:
    """Bytes in chunks from any offset; notes the requested offsets, and can stop in the middle."""

    def __init__(self, data: bytes, *, break_after: int | None = None) -> None:
        self.data = data
        self.digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.requested: list[int] = []
        self._break_after = break_after

    async def __call__(self, offset: int) -> AsyncIterator[bytes]:
        self.requested.append(offset)
        for number, start in enumerate(range(offset, len(self.data), CHUNK)):
            if number == self._break_after:
                raise errors.Unavailable("the line broke")
            yield self.data[start : start + CHUNK]


async def read(storage: Storage, digest: str) -> bytes:
    async with storage.read_content(digest) as pieces:
        return b"".join([piece async for piece in pieces])


def tar_of(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


async def test_a_blob_comes_back_as_it_was_written(workspace: Workspace) -> None:
    source = Source(bytes(range(256)) * 8192)
    async with storage_of(workspace) as storage:
        digest = await storage.write_content("a", source, digest=source.digest, size_bytes=len(source.data))
        assert digest == source.digest
        assert await read(storage, digest) == source.data
        content = await storage.get_content(digest)
        assert content.size_bytes == len(source.data)


async def test_the_digest_of_a_stream_is_found_while_it_is_written(workspace: Workspace) -> None:
    source = Source(b"whatever it is" * 100_000)
    async with storage_of(workspace) as storage:
        assert await storage.write_content("a", source, labels={"k": "v"}) == source.digest
        assert (await storage.get_content(source.digest)).labels == {"k": "v"}


async def test_an_empty_blob_is_a_blob(workspace: Workspace) -> None:
    source = Source(b"")
    async with storage_of(workspace) as storage:
        assert await storage.write_content("a", source, digest=source.digest) == source.digest
        assert await read(storage, source.digest) == b""


async def test_a_blob_that_is_there_is_not_written_again(workspace: Workspace) -> None:
    source = Source(b"once" * 1000)
    async with storage_of(workspace) as storage:
        await storage.write_content("a", source, digest=source.digest)
        assert await storage.write_content("b", source, digest=source.digest) == source.digest
        assert source.requested == [0]
        # Without a digest only the commit can find it; that is fine too.
        assert await storage.write_content("c", source) == source.digest
    # grpclib cancels the task that waits for a stream which was closed by containerd; a count that stays would make
    # every scope around it take its own cancellation for a foreign one.
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_write_that_broke_is_continued_where_it_stopped(workspace: Workspace) -> None:
    data = bytes(range(256)) * 8192
    async with storage_of(workspace) as storage:
        broken = Source(data, break_after=3)
        with pytest.raises(errors.Unavailable, match="the line broke"):
            await storage.write_content("a", broken, digest=broken.digest, size_bytes=len(data))
        written = 0
        with anyio.fail_after(limit(10)):
            while not written:  # what was under way when the line broke may still arrive
                ingest = await storage.find_ingest("a")
                written = ingest.offset_bytes if ingest else 0
        whole = Source(data)
        assert await storage.write_content("a", whole, digest=whole.digest, size_bytes=len(data)) == whole.digest
        assert len(whole.requested) == 1
        assert written <= whole.requested[0] <= 3 * CHUNK
        assert await read(storage, whole.digest) == data


async def test_unexpected_bytes_are_refused_and_discarded(workspace: Workspace) -> None:
    source = Source(b"not these")
    other = Source(b"but these")
    async with storage_of(workspace) as storage:
        with pytest.raises(errors.Invalid, match="unexpected commit digest"):
            await storage.write_content("a", source, digest=other.digest)
        assert await storage.find_ingest("a") is None
        with pytest.raises(errors.Invalid, match="size"):
            await storage.write_content("a", source, digest=source.digest, size_bytes=1000)
        assert await storage.find_ingest("a") is None
        with pytest.raises(errors.NotFound):
            await storage.get_content(source.digest)


async def test_a_cancelled_write_frees_its_ref(workspace: Workspace) -> None:
    source = Source(b"x" * CHUNK * 8)

    async def endless(offset: int) -> AsyncIterator[bytes]:
        yield source.data[offset : offset + CHUNK]
        writing.set()
        await anyio.sleep_forever()

    async with storage_of(workspace) as storage:
        writing = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: storage.write_content("a", endless, digest=source.digest))
            await writing.wait()
            tasks.cancel_scope.cancel()
        assert await storage.write_content("a", source, digest=source.digest) == source.digest


async def test_a_write_waits_for_another_one_of_its_ref_that_ends_soon(workspace: Workspace) -> None:
    source = Source(b"x" * CHUNK * 8)
    writing, go_on = anyio.Event(), anyio.Event()

    async def first(offset: int) -> AsyncIterator[bytes]:
        yield source.data[offset:]
        writing.set()
        await go_on.wait()

    async with storage_of(workspace) as storage:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: storage.write_content("a", first, digest=source.digest))
            await writing.wait()
            tasks.start_soon(lambda: storage.write_content("a", source, digest=source.digest))
            await anyio.sleep(0.1)  # where containerd does not wait by itself, it has refused by now
            go_on.set()
        assert await read(storage, source.digest) == source.data
    assert source.requested == []  # the first one has written it meanwhile


async def test_a_write_of_a_ref_that_stays_locked_is_refused_as_busy(workspace: Workspace) -> None:
    source = Source(b"x" * CHUNK * 8)
    writing = anyio.Event()

    async def endless(offset: int) -> AsyncIterator[bytes]:
        yield source.data[offset : offset + CHUNK]
        writing.set()
        await anyio.sleep_forever()

    async with workspace.client(replace(TIMEOUTS, content_lock=0.2)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.storage.write_content("a", endless, digest=source.digest))
        await writing.wait()
        with pytest.raises(errors.Busy, match="locked"):
            await client.storage.write_content("a", source, digest=source.digest)
        await client.version()  # the connection is as good as before
        tasks.cancel_scope.cancel()
    assert source.requested == []
    async with storage_of(workspace) as storage:  # the cancelled write releases the ref
        assert await storage.write_content("a", source, digest=source.digest) == source.digest


async def test_labels_of_a_blob_are_set_beside_the_others(workspace: Workspace) -> None:
    source = Source(b"labelled")
    async with storage_of(workspace) as storage:
        await storage.write_content("a", source, digest=source.digest, labels={"kept": "1"})
        await storage.set_content_labels(source.digest, {"containerd.io/gc.ref.content.config": "sha256:0"})
        labels = (await storage.get_content(source.digest)).labels
        assert labels == {"kept": "1", "containerd.io/gc.ref.content.config": "sha256:0"}


async def unpack(storage: Storage, name: str, layer: bytes) -> types.Descriptor:
    """A layer of one tar, committed under this name."""
    source = Source(layer)
    await storage.write_content(name, source, digest=source.digest)
    mounts = await storage.prepare_snapshot(SNAPSHOTTER, f"{name}-new")
    applied = await storage.apply(types.Descriptor(LAYER, source.digest, len(layer)), mounts)
    await storage.commit_snapshot(SNAPSHOTTER, name, f"{name}-new")
    return applied


async def test_a_layer_becomes_a_snapshot_that_others_stand_on(workspace: Workspace) -> None:
    layer = tar_of(hello=b"hello")
    async with storage_of(workspace) as storage:
        applied = await unpack(storage, "layer", layer)
        assert applied.digest == Source(layer).digest  # a plain tar: the diff id is its own digest
        assert (await storage.get_snapshot(SNAPSHOTTER, "layer")).kind is types.SnapshotKind.COMMITTED
        mounts = await storage.prepare_snapshot(SNAPSHOTTER, "top", "layer")
        assert mounts == await storage.snapshot_mounts(SNAPSHOTTER, "top")
        top = await storage.get_snapshot(SNAPSHOTTER, "top")
        assert (top.parent, top.kind) == ("layer", types.SnapshotKind.ACTIVE)
        assert (await storage.snapshot_usage(SNAPSHOTTER, "layer")).inodes >= 2
        with pytest.raises(errors.Conflict):
            await storage.prepare_snapshot(SNAPSHOTTER, "top", "layer")
        with pytest.raises(errors.Conflict):
            await storage.remove_snapshot(SNAPSHOTTER, "layer")
        await storage.remove_snapshot(SNAPSHOTTER, "top")
        with pytest.raises(errors.NotFound):
            await storage.get_snapshot(SNAPSHOTTER, "top")


async def test_a_layer_that_is_none_is_refused_in_containerds_words(workspace: Workspace) -> None:
    source = Source(b"no archive at all" * 100)
    async with storage_of(workspace) as storage:
        await storage.write_content("a", source, digest=source.digest)
        mounts = await storage.prepare_snapshot(SNAPSHOTTER, "new")
        with pytest.raises(errors.MoorageError, match="tar"):
            await storage.apply(types.Descriptor(LAYER, source.digest, len(source.data)), mounts)
        with pytest.raises(errors.MoorageError, match="media-type"):
            await storage.apply(types.Descriptor("text/plain", source.digest, len(source.data)), mounts)


async def test_d01_one_image_record_references_content_and_snapshot_and_its_deletion_frees_both(
    workspace: Workspace,
) -> None:
    layer, manifest = tar_of(hello=b"hello"), Source(b"{}")
    async with storage_of(workspace) as storage:
        await unpack(storage, "layer", layer)
        await storage.prepare_snapshot(SNAPSHOTTER, "top", "layer")
        await storage.write_content("m", manifest, digest=manifest.digest)
        references = {f"containerd.io/gc.ref.snapshot.{SNAPSHOTTER}": "top"}
        image = types.Image("plugin", types.Descriptor(MANIFEST, manifest.digest, 2), references)
        await storage.create_image(image)
        with pytest.raises(errors.Conflict):
            await storage.create_image(image)
        await storage.delete_lease("test", collect=True)
        assert [each.digest for each in await storage.list_content()] == [manifest.digest]
        assert {each.name for each in await storage.list_snapshots(SNAPSHOTTER)} == {"layer", "top"}
        assert await storage.get_image("plugin") == image
        await storage.delete_image("plugin", collect=True)
        assert await storage.list_content() == []
        assert await storage.list_snapshots(SNAPSHOTTER) == []


async def test_an_image_record_is_replaced_in_one_step(workspace: Workspace) -> None:
    async with storage_of(workspace) as storage:
        first = types.Image("plugin", types.Descriptor(MANIFEST, "sha256:" + "0" * 64, 1), {"a": "1", "b": "2"})
        second = types.Image("plugin", types.Descriptor(MANIFEST, "sha256:" + "1" * 64, 2), {"b": "3"})
        await storage.create_image(first)
        await storage.update_image(second)
        assert await storage.list_images() == [second]
        with pytest.raises(errors.NotFound):
            await storage.update_image(types.Image("other", second.target))


async def test_nothing_stays_without_a_reference(workspace: Workspace) -> None:
    source = Source(b"first by nobody")
    async with storage_of(workspace) as storage:
        await storage.write_content("a", source, digest=source.digest)
        await storage.collect()
        assert len(await storage.list_content()) == 1  # the test's lease
        await storage.delete_lease("test")
        await storage.collect()
        assert await storage.list_content() == []

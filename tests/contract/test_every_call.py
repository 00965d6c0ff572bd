"""Every public call of the client against a real containerd: each has a row here, by service, with what it raises."""

import gzip
import hashlib
import inspect
import io
import os
import shutil
import signal
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from moorage import errors
from moorage.containerd import Client, FifoReader, Storage, subscribe, types
from support.conditions import TIMEOUT_SECONDS, eventually
from support.images import push_image
from support.registries import serve_registry
from support.specs import FOREVER
from support.workspace import Workspace

SNAPSHOTTER = "native"
ABSENT = f"sha256:{'0' * 64}"
PROCESS: dict[str, Any] = {"args": ["/bin/sh", "-c", FOREVER], "cwd": "/", "user": {"uid": 0, "gid": 0}}


def public_calls() -> dict[str, set[str]]:
    """The public calls of the client and its storage, by service: the module of ``containerd/calls``."""
    found: dict[str, set[str]] = {}
    for owner in (Client, Storage):
        for name in dir(owner):
            if name.startswith("_") or not callable(call := inspect.getattr_static(owner, name)):
                continue
            found.setdefault(inspect.unwrap(call).__module__.rpartition(".")[2], set()).add(name)
    return found


EVERY = {f"{service}.{name}" for service, names in public_calls().items() for name in names}
NAMES = {name.partition(".")[2] for name in EVERY}


class Recorder:
    """The client or its storage, and which of their calls a row has made."""

    def __init__(self, target: object, made: set[str]) -> None:
        self._target = target
        self._made = made

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name in NAMES:
            self._made.add(name)
        if name == "storage":
            return Recorder(found, self._made)
        if name in ("under", "marked"):
            return lambda *given, **more: Recorder(found(*given, **more), self._made)
        return found


@dataclass
class Row:
    """What a row needs: a workspace, its client, and a storage of it."""

    workspace: Workspace
    client: Client
    directory: Path
    made: set[str] = field(default_factory=set)

    @property
    def storage(self) -> Storage:
        return self.client.storage

    @asynccontextmanager
    async def container(self, text: str = FOREVER, id: str = "a") -> AsyncIterator[None]:
        """A record with this command, deleted at the end."""
        await self.client.create_container(id, self.workspace.shell(id, text), self.workspace.runtime)
        yield
        await self.client.delete_container(id)

    @asynccontextmanager
    async def task(self, text: str = FOREVER, id: str = "a", **streams: Any) -> AsyncIterator[int]:
        """A task that runs; its pid."""
        async with self.container(text, id):
            await self.client.create_task(id, **streams)
            yield await self.client.start_task(id)
            await self.client.kill(id, signal.SIGKILL, all_processes=True)
            await self.client.wait(id, within=TIMEOUT_SECONDS)
            await self.client.delete_task(id)

    async def blob(self, data: bytes = b"0123456789", ref: str = "r", lease: str = "") -> str:
        async def chunks(offset: int) -> AsyncIterator[bytes]:
            yield data[offset:]

        return await self.storage.under(lease).write_content(ref, chunks)


type_of_row = Callable[[Row], Awaitable[None]]
ROWS: dict[str, tuple[set[str], type_of_row]] = {}


def row(service: str, *names: str) -> Callable[[type_of_row], type_of_row]:
    """The function is the row of these calls of the service."""

    def add(function: type_of_row) -> type_of_row:
        ROWS[function.__name__] = ({f"{service}.{name}" for name in names}, function)
        return function

    return add


# containerd itself


@row("system", "version", "plugins", "server")
async def introspection(it: Row) -> None:
    version = await it.client.version()
    assert version.version.lstrip("v")[0].isdigit()
    assert it.client.last_version == version.version
    found = await it.client.plugins("type==io.containerd.content.v1")
    assert [plugin.type for plugin in found] == ["io.containerd.content.v1"]
    assert len(await it.client.plugins()) > len(found)
    server = await it.client.server()
    assert len(server.uuid) == 36
    assert server.uuid == (await it.client.server()).uuid


@row("system", "namespaces", "create_namespace", "set_namespace_labels", "delete_namespace")
async def namespaces(it: Row) -> None:
    name = f"{it.workspace.namespace}-x"
    await it.client.create_namespace(name, {"a": "1"})
    with pytest.raises(errors.Conflict):
        await it.client.create_namespace(name)
    with pytest.raises(errors.Invalid):
        await it.client.create_namespace("not a name")
    await it.client.set_namespace_labels(name, {"b": "2"})
    assert (await it.client.namespaces())[name] == {"a": "1", "b": "2"}
    await it.client.delete_namespace(name)
    assert name not in await it.client.namespaces()
    with pytest.raises(errors.NotFound):
        await it.client.delete_namespace(name)


# containers


@row("containers", "create_container", "get_container", "list_containers", "update_container", "delete_container")
async def containers(it: Row) -> None:
    client, spec = it.client, it.workspace.shell("a", FOREVER)
    await client.create_container("a", spec, it.workspace.runtime, labels={"x": "1"}, image="some/image")
    with pytest.raises(errors.Conflict):
        await client.create_container("a", spec, it.workspace.runtime)
    with pytest.raises(errors.Invalid):
        await client.create_container("not an id", spec, it.workspace.runtime)
    found = await client.get_container("a")
    assert (found.spec, found.labels, found.image) == (spec, {"x": "1"}, "some/image")
    changed = await client.update_container("a", labels={"x": "2"})
    assert changed.labels == {"x": "2"}
    assert [each.id for each in await client.list_containers("labels.x==2")] == ["a"]
    assert await client.list_containers("labels.x==1") == []
    await client.delete_container("a")
    for call in (client.get_container, client.update_container, client.delete_container):
        with pytest.raises(errors.NotFound):
            await call("a", **({"labels": {"x": "1"}} if call == client.update_container else {}))


# tasks


@row("tasks", "create_task", "start_task", "get_task", "list_tasks", "kill", "wait", "delete_task")
async def a_task(it: Row) -> None:
    client = it.client
    async with it.container("exit 7"):
        pid = await client.create_task("a")
        assert (await client.get_task("a")).status is types.Status.CREATED
        assert await client.start_task("a") == pid
        exit = await client.wait("a", within=TIMEOUT_SECONDS)
        assert exit.code == 7
        assert [(task.container_id, task.status) for task in await client.list_tasks()] == [("a", types.Status.STOPPED)]
        with pytest.raises(errors.NotFound):
            await client.kill("a", signal.SIGTERM)
        assert (await client.delete_task("a")).code == 7
        for call in (client.start_task, client.get_task, client.delete_task):
            with pytest.raises(errors.NotFound):
                await call("a")
        with pytest.raises(errors.NotFound):
            await client.wait("a", within=TIMEOUT_SECONDS)
    with pytest.raises(errors.NotFound):
        await client.create_task("a")


@row("tasks", "exec_process", "start_process", "delete_process")
async def added_processes(it: Row) -> None:
    client = it.client
    async with it.task():
        await client.exec_process("a", "e", PROCESS)
        with pytest.raises(errors.Conflict):
            await client.exec_process("a", "e", PROCESS)
        pid = await client.start_process("a", "e")
        assert (await client.get_task("a", "e")).pid == pid
        assert pid in await client.pids("a")
        await client.kill("a", signal.SIGKILL, exec_id="e")
        assert (await client.wait("a", "e", within=TIMEOUT_SECONDS)).code == 128 + signal.SIGKILL
        assert (await client.delete_process("a", "e")).code == 128 + signal.SIGKILL
        for call in (client.start_process, client.delete_process):
            with pytest.raises(errors.NotFound):
                await call("a", "e")


@row("tasks", "resize_terminal", "close_input")
async def terminals(it: Row) -> None:
    client = it.client
    process = {**PROCESS, "args": ["/bin/sh", "-c", "read go; stty size; cat; echo over"], "terminal": True}
    spec = it.workspace.shell("a", FOREVER)
    options = ["newinstance", "ptmxmode=0666", "mode=0620"]
    spec["mounts"].append({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options})
    paths = [it.directory / name for name in ("stdin", "stdout")]
    for path in paths:
        os.mkfifo(path)
    reader = FifoReader(paths[1])
    writer = os.open(paths[0], os.O_RDWR | os.O_NONBLOCK)
    await client.create_container("a", spec, it.workspace.runtime)
    await client.create_task("a")
    await client.start_task("a")
    await client.exec_process("a", "e", process, stdin=str(paths[0]), stdout=str(paths[1]), terminal=True)
    await client.start_process("a", "e")
    await client.resize_terminal("a", "e", rows=17, columns=71)
    os.write(writer, b"go\n")
    with anyio.fail_after(TIMEOUT_SECONDS):
        output = b""
        while b"17 71" not in output:
            output += await reader.read()
    await client.close_input("a", "e")
    os.close(writer)
    for call in (client.close_input, lambda id: client.resize_terminal(id, rows=1, columns=1)):
        with pytest.raises(errors.NotFound):
            await call("absent")
    await client.kill("a", signal.SIGKILL, all_processes=True)
    await client.wait("a", within=TIMEOUT_SECONDS)
    await client.wait("a", "e", within=TIMEOUT_SECONDS)
    await client.delete_process("a", "e")
    await client.delete_task("a")
    await client.delete_container("a")
    reader.close()


@row("tasks", "pause", "resume", "pids")
async def pauses(it: Row) -> None:
    client = it.client
    async with it.task() as pid:
        assert pid in await client.pids("a")
        await client.pause("a")
        assert (await client.get_task("a")).status is types.Status.PAUSED
        await client.resume("a")
        assert (await client.get_task("a")).status is types.Status.RUNNING
    for call in (client.pause, client.resume, client.pids):
        with pytest.raises(errors.NotFound):
            await call("a")


@row("tasks", "update_task", "metrics", "oom_kills")
async def limits_and_metrics(it: Row) -> None:
    client, limit_bytes = it.client, 96 * 1024 * 1024
    async with it.task():
        await client.update_task("a", {"memory": {"limit": limit_bytes}})

        async def is_measured() -> bool:
            found = await client.metrics("a")
            match found:
                case types.MetricsV1():
                    return (found.memory.limit_bytes, found.pids) == (limit_bytes, 1)
                case types.MetricsV2():
                    return (found.memory_limit_bytes, found.pids) == (limit_bytes, 1)
                case _:
                    raise AssertionError(f"metrics of another kind: {found}")

        await eventually(is_measured)
        assert await client.oom_kills("a") == 0
    with pytest.raises(errors.NotFound):
        await client.metrics("a")
    with pytest.raises(errors.NotFound):
        await client.update_task("a", {"memory": {"limit": limit_bytes}})


@row("tasks", "checkpoint")
async def checkpoints(it: Row) -> None:
    async with it.task():
        if shutil.which("criu"):
            assert await it.client.checkpoint("a", types.CheckpointOptions(exit=False))
        else:
            with pytest.raises(errors.MoorageError, match=r"criu|checkpoint"):
                await it.client.checkpoint("a", types.CheckpointOptions(exit=False))
    with pytest.raises(errors.NotFound):
        await it.client.checkpoint("absent")


# events


@row("events", "publish", "raw_events")
async def events(it: Row) -> None:
    event = types.OtherEvent("example.org/Thing", b"\x0a\x01x")
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with (
            it.client.raw_events(f"namespace=={it.workspace.namespace}") as envelopes,
            anyio.create_task_group() as tasks,
        ):

            async def publish() -> None:
                while True:  # the first may precede the subscription
                    await it.client.publish("/mine/x", event)
                    await anyio.sleep(0.02)

            tasks.start_soon(publish)
            envelope = await anext(aiter(envelopes))
            tasks.cancel_scope.cancel()
    assert (envelope.namespace, envelope.topic) == (it.workspace.namespace, "/mine/x")
    assert envelope.event.payload == event.payload  # type: ignore[union-attr]  # it is no known kind
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with subscribe(it.client, "^/mine/") as marked:
            await it.client.publish("/mine/y")
            assert (await anext(aiter(marked))).topic == "/mine/y"
    with pytest.raises(errors.Invalid):
        await it.client.publish("no topic")


# leases


@row("leases", "create_lease", "list_leases", "delete_lease", "collect")
async def leases(it: Row) -> None:
    storage = it.storage
    await storage.create_lease("l", expires_at=datetime.now(UTC) + timedelta(hours=1), labels={"x": "1"})
    with pytest.raises(errors.Conflict):
        await storage.create_lease("l")
    found = await storage.list_leases()
    assert found["l"]["x"] == "1"
    digest = await it.blob(lease="l")
    await storage.collect()
    assert (await storage.get_content(digest)).digest == digest, "the lease references it"
    await storage.delete_lease("l", collect=True)
    with pytest.raises(errors.NotFound):
        await storage.get_content(digest)
    with pytest.raises(errors.NotFound):
        await storage.delete_lease("l")
    assert await storage.list_leases() == {}


@row("leases", "add_snapshot_to_lease", "list_lease_resources", "remove_from_lease")
async def resources_of_leases(it: Row) -> None:
    storage = it.storage
    await storage.create_lease("l")
    await storage.create_lease("other")  # a collection for another test would remove what has no reference
    await storage.under("other").prepare_snapshot(SNAPSHOTTER, "k")
    await storage.add_snapshot_to_lease("l", SNAPSHOTTER, "k")
    resource = types.LeaseResource("k", f"snapshots/{SNAPSHOTTER}")
    assert await storage.list_lease_resources("l") == [resource]
    await storage.remove_from_lease("l", resource)
    assert await storage.list_lease_resources("l") == []
    for lease in ("l", "other"):
        await storage.delete_lease(lease, collect=True)
    assert await storage.list_snapshots(SNAPSHOTTER) == [], "nothing references it any more"
    with pytest.raises(errors.NotFound):
        await storage.add_snapshot_to_lease("l", SNAPSHOTTER, "k")
    with pytest.raises(errors.NotFound):
        await storage.list_lease_resources("l")
    with pytest.raises(errors.NotFound):
        await storage.remove_from_lease("l", resource)


@row("storage_base", "under", "marked")
async def leased_and_marked(it: Row) -> None:
    await it.storage.create_lease("l")
    marked = it.storage.marked({"mine": "1"}, "mine-")
    digest = await it.blob(lease="l")
    leased = marked.under("l")
    await leased.prepare_snapshot(SNAPSHOTTER, "k")
    assert (await marked.get_snapshot(SNAPSHOTTER, "k")).labels["mine"] == "1"
    resources = {each.id for each in await it.storage.list_lease_resources("l")}
    assert resources >= {digest, "k"}
    await it.storage.remove_snapshot(SNAPSHOTTER, "k")
    await it.storage.delete_lease("l", collect=True)


# content


@row("content", "write_content", "get_content", "verify_content", "list_content", "set_content_labels", "read_content")
async def content(it: Row) -> None:
    storage = it.storage
    await storage.create_lease("l")
    digest = await it.blob(b"0123456789", lease="l")
    assert digest == f"sha256:{hashlib.sha256(b'0123456789').hexdigest()}"
    await storage.set_content_labels(digest, {"x": "1"})
    found = await storage.get_content(digest)
    assert (found.size_bytes, found.labels["x"]) == (10, "1")
    assert await storage.verify_content(digest) == found
    assert [each.digest for each in await storage.list_content()] == [digest]
    async with storage.read_content(digest, offset=2, size_bytes=3) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"234"
    await storage.delete_lease("l", collect=True)
    assert await storage.list_content() == []
    for call in (
        storage.get_content,
        storage.verify_content,
        lambda each: storage.set_content_labels(each, {"x": "1"}),
    ):
        with pytest.raises(errors.NotFound):
            await call(digest)
    with pytest.raises(errors.NotFound):
        async with storage.read_content(digest) as pieces:
            await anext(aiter(pieces))


@row("content", "delete_content", "add_content_to_lease")
async def content_and_leases(it: Row) -> None:
    storage = it.storage
    await storage.create_lease("first")
    await storage.create_lease("second")
    digest = await it.blob(lease="first")
    await storage.under("second").add_content_to_lease(digest)
    await storage.delete_lease("first", collect=True)
    assert (await storage.get_content(digest)).digest == digest
    await storage.delete_content(digest)
    with pytest.raises(errors.NotFound):
        await storage.delete_content(digest)
    await storage.delete_lease("second", collect=True)
    with pytest.raises(errors.NotFound):
        await storage.under("second").add_content_to_lease(digest)


@row("content", "find_ingest", "list_ingests", "abort_ingest")
async def uploads(it: Row) -> None:
    storage = it.storage

    async def breaks(offset: int) -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(1024 * 1024)
        raise OSError("the source has ended")

    with pytest.raises(OSError, match="the source has ended"):
        await storage.write_content("r", breaks)
    found = await storage.find_ingest("r")
    assert found is not None
    assert (found.ref, found.offset_bytes > 0) == ("r", True)
    assert [each.ref for each in await storage.list_ingests()] == ["r"]

    async def is_aborted() -> bool:
        try:
            await storage.abort_ingest("r")
        except errors.NotFound:
            raise
        except errors.MoorageError:  # its writer has not left yet: locked, or "directory not empty"
            return False
        return True

    await eventually(is_aborted)
    assert await storage.find_ingest("r") is None
    with pytest.raises(errors.NotFound):
        await storage.abort_ingest("r")


# images


@row("images", "create_image", "update_image", "get_image", "list_images", "delete_image")
async def images(it: Row) -> None:
    storage = it.storage
    await storage.create_lease("l")
    digests = [await it.blob(data, ref=data.decode(), lease="l") for data in (b"one", b"two")]
    targets = [types.Descriptor("application/octet-stream", digest, 3) for digest in digests]
    made = types.Image("i", targets[0], labels={"x": "1"})
    await storage.create_image(made)
    with pytest.raises(errors.Conflict):
        await storage.create_image(made)
    assert (await storage.get_image("i")).target == targets[0]
    await storage.update_image(types.Image("i", targets[1], labels={"x": "2"}))
    await storage.delete_lease("l", collect=True)
    assert [(each.name, each.target, each.labels["x"]) for each in await storage.list_images()] == [
        ("i", targets[1], "2")
    ]
    assert [each.digest for each in await storage.list_content()] == [digests[1]], "the record references its target"
    await storage.delete_image("i", collect=True)
    assert await storage.list_content() == []
    for call in (storage.get_image, storage.delete_image):
        with pytest.raises(errors.NotFound):
            await call("i")
    with pytest.raises(errors.NotFound):
        await storage.update_image(made)


@row("pulls", "pull", "unpack_image", "image_usage")
async def pulls(it: Row) -> None:
    client, storage = it.client, it.storage
    with serve_registry(it.directory / "registry") as served:
        made = push_image(served.host, "library/box")
        name = f"{served.host}/library/box:3"
        pulled = await client.pull(name, snapshotter=SNAPSHOTTER)
        with pytest.raises(errors.NotFound):
            await client.pull(f"{served.host}/library/absent")
    assert await client.unpack_image(name, snapshotter=SNAPSHOTTER) == pulled
    usage = await client.image_usage(name, snapshotter=SNAPSHOTTER)
    assert usage.size_bytes > sum(len(layer.data) for layer in made.layers)
    await storage.delete_image(name, collect=True)
    assert await storage.list_snapshots(SNAPSHOTTER) == []
    for call in (client.unpack_image, client.image_usage):
        with pytest.raises(errors.NotFound):
            await call(name)


# snapshots


@row(
    "snapshots",
    *("prepare_snapshot", "view_snapshot", "commit_snapshot", "snapshot_mounts", "snapshot_usage"),
    *("get_snapshot", "list_snapshots", "set_snapshot_labels", "remove_snapshot"),
)
async def snapshots(it: Row) -> None:
    await it.storage.create_lease("l")  # a collection for another test would remove what has no reference
    storage = it.storage.under("l")
    mounts = await storage.prepare_snapshot(SNAPSHOTTER, "k")
    assert mounts == await storage.snapshot_mounts(SNAPSHOTTER, "k")
    with pytest.raises(errors.Conflict):
        await storage.prepare_snapshot(SNAPSHOTTER, "k")
    (Path(mounts[0].source) / "file").write_bytes(b"x" * 100_000)
    await storage.commit_snapshot(SNAPSHOTTER, "n", "k")
    view = await storage.view_snapshot(SNAPSHOTTER, "v", "n")
    assert "ro" in view[0].options
    assert (await storage.snapshot_usage(SNAPSHOTTER, "n")).size_bytes >= 100_000
    await storage.set_snapshot_labels(SNAPSHOTTER, "n", {"x": "1"})
    found = await storage.get_snapshot(SNAPSHOTTER, "n")
    assert (found.kind, found.labels) == (types.SnapshotKind.COMMITTED, {"x": "1"})
    listed = {(each.name, each.kind) for each in await storage.list_snapshots(SNAPSHOTTER)}
    assert listed == {("n", types.SnapshotKind.COMMITTED), ("v", types.SnapshotKind.VIEW)}
    with pytest.raises(errors.Conflict):
        await storage.remove_snapshot(SNAPSHOTTER, "n")
    for key in ("v", "n"):
        await storage.remove_snapshot(SNAPSHOTTER, key)
    for call in (storage.remove_snapshot, storage.get_snapshot, storage.snapshot_mounts, storage.snapshot_usage):
        with pytest.raises(errors.NotFound):
            await call(SNAPSHOTTER, "n")
    for create in (storage.prepare_snapshot, storage.view_snapshot):
        with pytest.raises(errors.NotFound):
            await create(SNAPSHOTTER, "k", "absent")
    with pytest.raises(errors.NotFound):
        await storage.commit_snapshot(SNAPSHOTTER, "n", "absent")
    with pytest.raises(errors.NotFound):
        await storage.set_snapshot_labels(SNAPSHOTTER, "absent", {"x": "1"})
    await it.storage.delete_lease("l", collect=True)


@row("snapshots", "apply")
async def layers(it: Row) -> None:
    storage = it.storage
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    await storage.create_lease("l")
    leased, data = storage.under("l"), gzip.compress(packed.getvalue())
    digest = await it.blob(data, lease="l")
    mounts = await leased.prepare_snapshot(SNAPSHOTTER, "k")
    layer = types.Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, len(data))
    applied = await leased.apply(layer, mounts)
    assert applied.digest == f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}"
    assert (Path(mounts[0].source) / "file").read_bytes() == b"hello"
    with pytest.raises(errors.NotFound):
        await leased.apply(types.Descriptor(layer.media_type, ABSENT, 1), mounts)
    await storage.delete_lease("l", collect=True)


# the suite


def test_i21_every_public_call_has_a_row() -> None:
    rows = [name for names, _ in ROWS.values() for name in names]
    assert len(rows) == len(set(rows))
    assert set(rows) == EVERY, "each public call of containerd/calls needs a row here"
    assert len(EVERY) > 70


@pytest.fixture
def row_of(workspace: Workspace, tmp_path: Path) -> Callable[[], Any]:
    @asynccontextmanager
    async def open_row() -> AsyncIterator[Row]:
        async with workspace.client() as client:
            made: set[str] = set()
            yield Row(workspace, cast(Client, Recorder(client, made)), tmp_path, made)
            assert await client.storage.list_leases() == {}
            assert await client.storage.list_content() == []

    return open_row


@pytest.mark.real
@pytest.mark.needs("docker-registry")
@pytest.mark.anyio
@pytest.mark.parametrize("name", sorted(ROWS))
async def test_i21_the_calls_of_a_row_work_and_fail_by_kind(row_of: Callable[[], Any], name: str) -> None:
    calls, run = ROWS[name]
    async with row_of() as it:
        await run(it)
        assert it.made >= {call.partition(".")[2] for call in calls}

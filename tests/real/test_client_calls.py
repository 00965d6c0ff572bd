"""The calls that a user of Go's client expects, each against the real containerd; test_client.py has the others."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from moorage import containerd, errors
from moorage.containerd import Client, subscribe, types
from support.conditions import TIMEOUT_SECONDS, eventually
from support.limits import limit
from support.specs import FOREVER
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]


@pytest.fixture
async def client(workspace: Workspace) -> AsyncIterator[Client]:
    async with workspace.client() as client:
        yield client


async def start(workspace: Workspace, client: Client, text: str = FOREVER, id: str = "a") -> int:
    await client.create_container(id, workspace.shell(id, text), workspace.runtime)
    await client.create_task(id)
    return await client.start_task(id)


async def remove(client: Client, id: str = "a") -> None:
    await client.kill(id, signal.SIGKILL, all_processes=True)
    await client.wait(id, within=TIMEOUT_SECONDS)
    await client.delete_task(id)
    await client.delete_container(id)


async def test_i21_the_server_has_an_identity_and_a_namespace_has_labels(workspace: Workspace, client: Client) -> None:
    server = await client.server()
    assert len(server.uuid) == 36
    assert server == await client.server()
    name = f"{workspace.namespace}-x"
    await client.create_namespace(name, {"a": "1", "b": "2"})
    await client.set_namespace_labels(name, {"b": "3", "c": "4"})
    assert (await client.namespaces())[name] == {"a": "1", "b": "3", "c": "4"}
    await client.delete_namespace(name)


async def test_i21_a_record_is_updated_field_by_field(workspace: Workspace, client: Client) -> None:
    spec = workspace.shell("a", FOREVER)
    extensions = {"mine": ("example.org/Thing", b"\x01\x02")}
    await client.create_container(
        "a", spec, workspace.runtime, labels={"x": "1", "y": "2"}, image="example/image", extensions=extensions
    )
    made = await client.get_container("a")
    assert (made.image, made.extensions, made.labels["x"]) == ("example/image", extensions, "1")
    updated = await client.update_container("a", labels={"x": "9"})
    assert (updated.labels, updated.extensions, updated.spec) == ({"x": "9", "y": "2"}, extensions, spec)
    assert updated.updated_at is not None
    assert made.updated_at is not None
    assert updated.updated_at > made.updated_at
    await client.update_container(
        "a", spec={**spec, "hostname": "new"}, image="other", extensions={"more": ("example.org/Other", b"x")}
    )
    changed = await client.get_container("a")
    both = {**extensions, "more": ("example.org/Other", b"x")}
    assert (changed.image, changed.extensions, changed.spec["hostname"]) == ("other", both, "new")
    with pytest.raises(errors.Invalid, match="nothing is given"):
        await client.update_container("a")
    with pytest.raises(errors.NotFound):
        await client.update_container("absent", labels={"x": "1"})
    await client.delete_container("a")


async def test_i21_metrics_are_typed(workspace: Workspace, client: Client) -> None:
    await start(workspace, client, "i=0; while :; do i=$((i+1)); done")

    async def has_run() -> bool:
        found = await client.metrics("a")
        if isinstance(found, types.MetricsV1):
            return found.cpu_ns > 1_000_000 and found.cpu_user_ns > 0
        return isinstance(found, types.MetricsV2) and found.cpu_us > 1000

    await eventually(has_run)
    found = await client.metrics("a")
    assert found.sampled_at is not None
    match found:
        case types.MetricsV1():
            assert (found.pids, found.oom_kills, found.memory.usage_bytes > 0) == (1, 0, True)
            assert found.memory.limit_bytes > found.memory.usage_bytes
        case types.MetricsV2():
            assert (found.pids, found.oom_kills, found.memory_bytes > 0) == (1, 0, True)
        case types.OtherMetrics():
            pytest.fail(f"metrics of another kind: {found}")
    with pytest.raises(errors.NotFound):
        await client.metrics("absent")
    await remove(client)


async def test_i21_a_task_with_a_terminal_is_resized_and_read(
    workspace: Workspace, client: Client, tmp_path: Path
) -> None:
    spec = workspace.shell("a", "read go; stty size; exec sleep 1000000")
    spec["process"]["terminal"] = True
    options = ["newinstance", "ptmxmode=0666", "mode=0620"]
    spec["mounts"].append({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options})
    for name in ("stdin", "stdout"):
        path = tmp_path / name
        os.mkfifo(path)
    reader = containerd.FifoReader(tmp_path / "stdout")
    descriptor = os.open(tmp_path / "stdin", os.O_RDWR | os.O_NONBLOCK)
    await client.create_container("a", spec, workspace.runtime)
    await client.create_task("a", stdin=f"{tmp_path}/stdin", stdout=f"{tmp_path}/stdout", terminal=True)
    await client.start_task("a")
    await client.resize_terminal("a", rows=17, columns=71)
    os.write(descriptor, b"go\n")
    output = b""
    with anyio.fail_after(limit(30)):
        while b"17 71" not in output:
            output += await reader.read()
    await client.close_input("a")
    os.close(descriptor)
    await remove(client)
    reader.close()


async def test_i21_a_checkpoint_is_content_or_says_what_is_missing(workspace: Workspace, client: Client) -> None:
    await start(workspace, client)
    if shutil.which("criu"):
        assert await client.checkpoint("a", types.CheckpointOptions(exit=False))
    else:
        with pytest.raises(errors.MoorageError, match=r"criu|checkpoint"):
            await client.checkpoint("a", types.CheckpointOptions(exit=False))
    with pytest.raises(errors.NotFound):
        await client.checkpoint("absent")
    await remove(client)


async def test_i21_every_event_of_a_life_is_typed_and_an_unknown_one_is_raw(
    workspace: Workspace, client: Client
) -> None:
    storage = client.storage
    seen: list[types.Event] = []
    async with subscribe(client, ".*") as envelopes:
        await start(workspace, client)
        await client.update_container("a", labels={"x": "1"})
        await client.pause("a")
        await client.resume("a")
        await client.exec_process("a", "e", {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}})
        await client.start_process("a", "e")
        await client.wait("a", "e", within=TIMEOUT_SECONDS)
        await client.delete_process("a", "e")
        await remove(client)
        await storage.create_lease("l")  # or a collection could take the snapshot
        await storage.under("l").prepare_snapshot("native", "k")
        await storage.under("l").commit_snapshot("native", "n", "k")
        await storage.remove_snapshot("native", "n")
        await storage.delete_lease("l")
        await client.publish("/mine/x", types.OtherEvent("example.org/Thing", b"\x0a\x01x"))
        with anyio.fail_after(TIMEOUT_SECONDS):
            async for envelope in envelopes:
                seen.append(envelope.event)
                if envelope.topic == "/mine/x":
                    break
    assert seen[-1] == types.OtherEvent("Thing", b"\x0a\x01x")
    assert not [each for each in seen[:-1] if isinstance(each, types.OtherEvent)]
    kinds = {type(each) for each in seen}
    assert kinds >= {
        types.ContainerCreated, types.ContainerUpdated, types.ContainerDeleted, types.TaskCreated, types.TaskStarted,
        types.TaskPaused, types.TaskResumed, types.TaskExecAdded, types.TaskExecStarted, types.TaskExit,
        types.TaskDeleted, types.SnapshotPrepared, types.SnapshotCommitted, types.SnapshotRemoved,
    }  # fmt: skip
    updated = next(each for each in seen if isinstance(each, types.ContainerUpdated))
    assert (updated.id, updated.labels) == ("a", {"x": "1"})
    committed = next(each for each in seen if isinstance(each, types.SnapshotCommitted))
    assert (committed.key, committed.name) == ("k", "n")


async def test_i21_views_labels_ranges_and_lease_resources(client: Client) -> None:
    storage = client.storage
    await storage.create_lease("l")
    leased = storage.under("l")

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        yield b"0123456789"[offset:]

    digest = await leased.write_content("r", chunks)
    await leased.prepare_snapshot("native", "k")
    await leased.commit_snapshot("native", "n", "k")
    mounts = await leased.view_snapshot("native", "v", "n")
    assert "ro" in mounts[0].options
    assert (await storage.get_snapshot("native", "v")).kind is types.SnapshotKind.VIEW
    await storage.set_snapshot_labels("native", "n", {"who": "me"})
    assert (await storage.get_snapshot("native", "n")).labels == {"who": "me"}
    with pytest.raises(errors.NotFound):
        await storage.view_snapshot("native", "w", "absent")
    async with storage.read_content(digest, offset=2, size_bytes=3) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"234"
    resources = await storage.list_lease_resources("l")
    assert {(each.kind, each.id) for each in resources} >= {("content", digest), ("snapshots/native", "n")}
    await storage.remove_from_lease("l", types.LeaseResource(digest, "content"))
    assert digest not in {each.id for each in await storage.list_lease_resources("l")}
    await storage.delete_lease("l", collect=True)
    with pytest.raises(errors.NotFound):
        await storage.list_lease_resources("l")
    assert await storage.list_snapshots("native") == []

"""Each method of the client against a real containerd, its kinds of failure, and what a lost connection does."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.containerd import Client, connect, subscribe
from moorage.containerd.types import (
    Envelope,
    RuntimeOptions,
    Status,
    TaskCreated,
    TaskDeleted,
    TaskExit,
    TaskStarted,
)
from support import leftovers
from support.conditions import TIMEOUT_SECONDS, eventually, settled
from support.kills import kill_containerd, stopped
from support.limits import limit
from support.specs import FOREVER
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

TRUE = {"args": ["/bin/sh", "-c", "exit 4"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}}


@pytest.fixture
async def client(workspace: Workspace) -> AsyncIterator[Client]:
    async with workspace.client() as client:
        yield client


async def run(workspace: Workspace, client: Client, text: str = FOREVER, id: str = "a") -> int:
    """A container without output, running; its pid."""
    await client.create_container(id, workspace.shell(id, text), workspace.runtime, labels={"who": id})
    created = await client.create_task(id)
    assert await client.start_task(id) == created
    return created


async def remove(client: Client, id: str = "a") -> None:
    await client.kill(id, signal.SIGKILL, all_processes=True)
    await client.wait(id, within=TIMEOUT_SECONDS)
    await client.delete_task(id)
    await client.delete_container(id)


async def test_version_plugins_and_namespaces(workspace: Workspace, client: Client) -> None:
    version = await client.version()
    printed = await anyio.run_process(["containerd", "--version"])
    assert printed.stdout.decode().split(" ")[2:] == [
        version.version,
        f"{version.revision}\n",
    ]  # not every build has a revision
    everything = {plugin.id for plugin in await client.plugins()}
    runtimes = await client.plugins("type==io.containerd.runtime.v2")  # of 1.7 "task" and "shim"
    assert {plugin.type for plugin in runtimes} == {"io.containerd.runtime.v2"}
    assert "task" in {plugin.id for plugin in runtimes}
    assert {"task", "overlayfs"} <= everything
    name = f"{workspace.namespace}-x"
    await client.create_namespace(name, {"who": "me"})
    assert (await client.namespaces())[name] == {"who": "me"}
    with pytest.raises(errors.Conflict):
        await client.create_namespace(name)
    await client.delete_namespace(name)
    with pytest.raises(errors.NotFound):
        await client.delete_namespace(name)


async def test_a_record_comes_back_as_it_was_written(workspace: Workspace, client: Client) -> None:
    before = datetime.now(UTC)
    spec = {**workspace.shell("a", FOREVER), "annotations": {"x": "\N{SNOWMAN}"}}
    await client.create_container("a", spec, RuntimeOptions(root="/x"), labels={"who": "me"}, snapshotter="overlayfs")
    record = await client.get_container("a")
    assert (record.id, record.spec, record.labels) == ("a", spec, {"who": "me"})
    assert (record.runtime_name, record.snapshotter, record.image) == ("io.containerd.runc.v2", "overlayfs", "")
    assert record.created_at
    assert before - timedelta(seconds=1) <= record.created_at <= datetime.now(UTC) + timedelta(seconds=1)
    await client.create_container("b", {}, RuntimeOptions())
    assert [it.id for it in await client.list_containers()] == ["a", "b"]
    assert [it.id for it in await client.list_containers("labels.who==me")] == ["a"]
    for id in ("a", "b"):
        await client.delete_container(id)


async def test_a_task_from_creation_to_deletion(workspace: Workspace, client: Client) -> None:
    await client.create_container("a", workspace.shell("a", FOREVER), workspace.runtime)
    pid = await client.create_task("a")
    created = await client.get_task("a")
    assert (created.status, created.pid, created.container_id) == (Status.CREATED, pid, "a")
    assert await client.start_task("a") == pid
    assert (await client.get_task("a")).status is Status.RUNNING
    assert [(it.id, it.container_id, it.pid, it.status) for it in await client.list_tasks()] == [
        ("a", "a", pid, Status.RUNNING)
    ]
    assert pid in await client.pids("a")
    await client.pause("a")
    assert (await client.get_task("a")).status is Status.PAUSED
    await client.resume("a")
    assert (await client.get_task("a")).status is Status.RUNNING
    with pytest.raises(errors.MoorageError):
        await client.delete_task("a")
    await client.kill("a", 0)
    await client.kill("a", signal.SIGKILL)
    waited = await client.wait("a", within=TIMEOUT_SECONDS)
    stopped_task = await client.get_task("a")
    assert (stopped_task.status, stopped_task.exit_code) == (Status.STOPPED, 137)
    assert await client.oom_kills("a") == 0
    deleted = await client.delete_task("a")
    assert (deleted.code, deleted.pid, deleted.exited_at) == (137, pid, waited.exited_at)
    assert waited.code == 137
    await client.delete_container("a")


async def test_an_added_process_has_an_id_and_an_exit_of_its_own(workspace: Workspace, client: Client) -> None:
    pid = await run(workspace, client)
    async with subscribe(client) as envelopes:
        await client.exec_process("a", "e1", TRUE)
        assert (await client.get_task("a", "e1")).status is Status.CREATED
        added = await client.start_process("a", "e1")
        assert added != pid
        assert (await client.wait("a", "e1", within=TIMEOUT_SECONDS)).code == 4
        process = await client.get_task("a", "e1")
        assert (process.id, process.status, process.exit_code) == ("e1", Status.STOPPED, 4)
        exited = await seen(envelopes, TaskExit)
        assert (exited.container_id, exited.process_id, exited.pid, exited.code) == ("a", "e1", added, 4)
        assert (await client.delete_process("a", "e1")).code == 4
        with pytest.raises(errors.NotFound):
            await client.delete_process("a", "e1")
    assert (await client.get_task("a")).pid == pid
    with pytest.raises(errors.Invalid):
        await client.exec_process("a", "not/an/id", TRUE)
    await remove(client)


async def seen(envelopes: AsyncIterator[Envelope], kind: type) -> TaskExit:
    with anyio.fail_after(TIMEOUT_SECONDS):
        while not isinstance(event := (await anext(envelopes)).event, kind):
            pass
    assert isinstance(event, TaskExit)
    return event


async def test_a_subscription_hears_everything_of_its_namespace_and_nothing_else(
    workspace: Workspace, client: Client
) -> None:
    async with (
        connect(workspace.containerd.address, f"{workspace.namespace}-other") as other,
        subscribe(client) as envelopes,
    ):
        await other.publish("/tasks/exit")
        await client.publish("/elsewhere")
        await run(workspace, client, "exit 3")
        await client.wait("a", within=TIMEOUT_SECONDS)
        await client.delete_task("a")
        received: list[Envelope] = []
        with anyio.fail_after(TIMEOUT_SECONDS):
            while not received or not isinstance(received[-1].event, TaskDeleted):
                received.append(await anext(envelopes))
    assert {envelope.namespace for envelope in received} == {workspace.namespace}
    assert all(envelope.topic.startswith("/tasks/") for envelope in received)
    assert all(envelope.published_at for envelope in received)
    assert [type(envelope.event) for envelope in received] == [TaskCreated, TaskStarted, TaskExit, TaskDeleted]
    assert [getattr(envelope.event, "container_id", "") for envelope in received] == ["a"] * 4
    await client.delete_container("a")


async def test_a_subscription_to_other_topics(client: Client) -> None:
    async with subscribe(client, "^/mine/") as envelopes:
        await client.publish("/mine/x")
        assert (await anext(envelopes)).topic == "/mine/x"


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda it: it.get_container("b"), errors.NotFound),
        (lambda it: it.delete_container("b"), errors.NotFound),
        (lambda it: it.get_task("b"), errors.NotFound),
        (lambda it: it.start_task("b"), errors.NotFound),
        (lambda it: it.kill("b", 9), errors.NotFound),
        (lambda it: it.wait("b", within=limit(5)), errors.NotFound),
        (lambda it: it.delete_task("b"), errors.NotFound),
        (lambda it: it.pids("b"), errors.NotFound),
        (lambda it: it.pause("b"), errors.NotFound),
        (lambda it: it.create_task("b"), errors.NotFound),
        (lambda it: it.create_container("a", {}, RuntimeOptions()), errors.Conflict),
        (lambda it: it.create_task("a"), errors.Conflict),
        (lambda it: it.create_container("a/b", {}, RuntimeOptions()), errors.Invalid),
        (lambda it: it.create_container("b", {"x": object()}, RuntimeOptions()), errors.Invalid),
        (lambda it: it.create_namespace("no spaces"), errors.Invalid),
        (lambda it: it.list_containers("==="), errors.Invalid),
    ],
)
async def test_each_failure_has_its_kind(
    workspace: Workspace, client: Client, call: object, kind: type[Exception]
) -> None:
    await run(workspace, client)
    with pytest.raises(kind) as caught:
        await call(client)  # type: ignore[operator]  # every one is a call
    assert "unknown" not in str(caught.value)
    await remove(client)


async def test_waiting_is_bounded(workspace: Workspace, client: Client) -> None:
    await run(workspace, client)
    with pytest.raises(errors.Unavailable, match=r"within 0\.05 s"):
        await client.wait("a", within=0.05)
    assert (await client.get_task("a")).status is Status.RUNNING
    await remove(client)


async def test_a_containerd_that_stands_still_is_unavailable_in_time(workspace: Workspace) -> None:
    containerd = workspace.containerd.find()
    assert containerd
    async with workspace.client(replace(TIMEOUTS, rpc=0.2)) as client:
        await client.version()
        with stopped(containerd):
            with pytest.raises(errors.Unavailable, match=r"did not answer Version\.Version within 0\.2 s"):
                await client.version()
            with pytest.raises(errors.Unavailable):
                await subscribe(client, timeouts=replace(TIMEOUTS, rpc=0.2)).__aenter__()
        assert (await client.version()).version


async def test_a_socket_without_listener_is_unavailable_and_a_closed_client_too(workspace: Workspace) -> None:
    async with connect(str(workspace.root / "no.sock"), "test") as unreachable:
        with pytest.raises(errors.Unavailable, match="No such file"):
            await unreachable.version()
    async with connect(f"unix://{workspace.containerd.address}", "test") as closed:
        assert (await closed.version()).version
    with pytest.raises(errors.Unavailable, match="closed"):
        await closed.version()


async def test_a_lost_connection_leaves_cancel_scopes_working(workspace: Workspace, client: Client) -> None:
    # grpclib wakes the waiting task by Task.cancel(); a count that stays raised would break every later scope.
    await run(workspace, client)
    task = asyncio.current_task()
    assert task
    async with subscribe(client) as envelopes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_containerd, workspace.containerd)
            with pytest.raises(errors.Unavailable):
                await client.wait("a", within=TIMEOUT_SECONDS)
        with pytest.raises(errors.Unavailable):
            await anext(envelopes)
    assert task.cancelling() == 0
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    with anyio.CancelScope() as outer, anyio.CancelScope() as inner:
        inner.cancel()
        await anyio.sleep_forever()
    assert (inner.cancelled_caught, outer.cancelled_caught) == (True, False)
    async with asyncio.timeout(limit(5)):
        await workspace.containerd.ensure()
    assert (await client.get_task("a")).status is Status.RUNNING
    await remove(client)


@pytest.mark.parametrize("turns", range(5))
async def test_a_scope_that_is_cancelled_while_the_connection_is_lost_ends_clean(
    workspace: Workspace, client: Client, turns: int
) -> None:
    await run(workspace, client)
    containerd = workspace.containerd.find()
    assert containerd
    scope = anyio.CancelScope()
    counts: list[int] = []

    async def wait() -> None:
        task = asyncio.current_task()
        assert task
        with scope, suppress(errors.Unavailable):
            await client.wait("a", within=TIMEOUT_SECONDS)
        counts.append(task.cancelling())
        with anyio.move_on_after(0.01) as later:
            await anyio.sleep_forever()
        assert later.cancelled_caught

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settled()
        os.kill(containerd, signal.SIGKILL)
        await eventually(lambda: not leftovers.is_alive(containerd) or turns == 0)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    assert counts == [0]
    await eventually(lambda: workspace.containerd.find() is None)
    await workspace.containerd.ensure()
    await remove(client)


async def test_a_server_that_hangs_up_on_every_connection_is_unavailable(tmp_path: Path) -> None:
    # Calls that wait together for one connection get it after it was lost.
    def hang_up() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    failures: list[errors.Unavailable] = []

    async def request(client: Client) -> None:
        for _ in range(10):
            try:
                await client.get_task("a")
            except errors.Unavailable as error:
                failures.append(error)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = threading.Thread(target=hang_up)  # in another thread: it hangs up before our loop looks
        server.start()
        async with connect(str(tmp_path / "socket"), "x", TIMEOUTS) as client, anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(request, client)
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
    assert len(failures) == 200


async def test_every_call_under_way_when_containerd_is_killed_fails_as_unavailable(
    workspace: Workspace, client: Client
) -> None:
    await run(workspace, client)
    failures: list[BaseException] = []

    async def request() -> None:
        try:
            while True:
                await client.get_task("a")
        except errors.Unavailable as error:
            failures.append(error)

    async def wait() -> None:
        try:
            await client.wait("a", within=TIMEOUT_SECONDS)
        except errors.Unavailable as error:
            failures.append(error)

    for _ in range(3):
        failures.clear()
        with anyio.fail_after(TIMEOUT_SECONDS):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(request)
                    tasks.start_soon(wait)
                await kill_containerd(workspace.containerd)
        assert len(failures) == 40
        await workspace.containerd.ensure()
    await remove(client)

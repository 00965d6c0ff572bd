"""The client without an event loop, in the wrong one, and under load: nothing leaks, and every refusal has a kind."""

import asyncio
import inspect
import os
import signal
import threading
from pathlib import Path

import anyio
import pytest

from moorage import containerd, errors
from moorage.containerd import Client, connect, sync_client
from moorage.containerd.storage import Storage
from moorage.containerd.types import TaskExit
from moorage.timeouts import Timeouts
from support.conditions import TIMEOUT_SECONDS, eventually
from support.executor_process import executor_process
from support.sinks import Exits, Memory
from support.specs import FOREVER
from support.workspace import Workspace

pytestmark = pytest.mark.real


def test_i21_the_sync_client_has_the_names_of_the_asynchronous_one() -> None:
    for mirrored, original in ((sync_client.BlockingClient, Client), (sync_client.BlockingStorage, Storage)):
        names = {name for name, value in inspect.getmembers(original) if not name.startswith("_") and callable(value)}
        names |= {name for name, value in inspect.getmembers(original) if isinstance(value, property)}
        assert {name for name in dir(mirrored) if not name.startswith("_")} - {"namespace"} == names
        assert all(getattr(mirrored, name).__doc__ for name in names)


def test_i21_a_program_without_an_event_loop_runs_a_container(workspace: Workspace, tmp_path: Path) -> None:
    containerd.make_fifos(tmp_path)
    stdio = containerd.open_stdio(tmp_path)
    out, err = str(tmp_path / "stdout"), str(tmp_path / "stderr")
    with sync_client.connect(workspace.containerd.address, workspace.namespace) as client:
        assert client.version().version
        assert client.namespace == workspace.namespace
        with sync_client.subscribe(client) as envelopes:
            client.create_container("a", workspace.shell("a", "echo hello; exit 3"), workspace.runtime)
            client.create_task("a", stdout=out, stderr=err)
            client.start_task("a")
            assert client.wait("a", within=TIMEOUT_SECONDS).code == 3
            assert os.read(stdio.stdout.fileno(), 100) == b"hello\n"
            assert client.delete_task("a").code == 3
            exited = next(each.event for each in envelopes if isinstance(each.event, TaskExit))
            assert exited.container_id == "a"
        storage = client.storage
        storage.create_lease("l")
        digest = storage.under("l").write_content("r", lambda offset: iter([b"abc"[offset:]]))
        with storage.read_content(digest) as pieces:
            assert b"".join(pieces) == b"abc"
        storage.delete_lease("l")
        client.delete_container("a")
        with pytest.raises(errors.NotFound):
            client.get_task("a")
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(client.version().version)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
    stdio.close()
    with pytest.raises((errors.MoorageError, RuntimeError)):
        client.version()


def test_i21_a_client_is_refused_in_another_loop_or_thread(workspace: Workspace) -> None:
    address, clients = workspace.containerd.address, list[Client]()

    async def open_and_call() -> None:
        async with connect(address, workspace.namespace) as client:
            await client.version()
            clients.append(client)

            def from_a_thread() -> None:
                with pytest.raises(errors.Invalid, match="another event loop"):
                    asyncio.run(client.version())

            await anyio.to_thread.run_sync(from_a_thread)
            assert (await client.version()).version, "the refusal has harmed nothing"

    anyio.run(open_and_call)
    with pytest.raises(errors.MoorageError):
        anyio.run(clients[0].version)


def test_i21_signatures_are_short() -> None:
    assert str(inspect.signature(connect)).count("=") == 2
    assert repr(Timeouts()) == "Timeouts()"
    assert repr(Timeouts(rpc=3.0)) == "Timeouts(rpc=3.0)"


# the executor


@pytest.mark.anyio
async def test_i21_an_executor_without_sinks_discards_the_output(workspace: Workspace) -> None:
    exits = Exits()
    async with workspace.executor(exits) as executor:
        await executor.create("a", workspace.shell("a", "yes | head -c 300000; exit 5"))
        await eventually(lambda: exits.of("a"))
        assert [exit.code for exit in exits.of("a")] == [5]


@pytest.mark.anyio
async def test_i21_a_bad_id_is_a_kind_of_error(workspace: Workspace) -> None:
    async with workspace.executor(Exits()) as executor:
        for id in ("", "a/b", "..", "a b", "x" * 77, "é"):
            with pytest.raises(errors.Invalid, match="container id"):
                await executor.create(id, {})
            with pytest.raises(errors.Invalid, match="container id"):
                await executor.restore(id)
            with pytest.raises(errors.Invalid, match="container id"):
                await executor.is_running(id)


@pytest.mark.anyio
async def test_i21_an_executor_is_refused_where_one_of_another_process_runs(workspace: Workspace) -> None:
    async def leases() -> dict[str, dict[str, str]]:
        async with workspace.client() as client:
            return await client.storage.list_leases()

    async with executor_process(workspace, workspace.shell("a", FOREVER)) as other:
        with pytest.raises(errors.Conflict, match=f"process {other.pid} has an executor in it"):
            async with workspace.executor(Exits()):
                pass
        assert [each["moorage.pid"] for each in (await leases()).values()] == [str(other.pid)]
    async with workspace.executor(Exits()) as executor:
        assert await executor.restore("a", Memory(), Memory())
        await executor.signal("a", signal.SIGKILL)
        await eventually(lambda: not workspace.shims("a"))
    async with workspace.executor(Exits()), workspace.executor(Exits()):
        assert [each["moorage.pid"] for each in (await leases()).values()] == [str(os.getpid())] * 2
    assert await leases() == {}


# load


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.anyio
async def test_i21_ten_thousand_calls_from_two_hundred_tasks_leak_nothing(workspace: Workspace) -> None:
    async with workspace.client() as client:
        numbers = iter(range(10_000))

        async def call() -> None:
            for number in numbers:
                if number % 10 == 0:
                    with pytest.raises(errors.NotFound):
                        await client.get_task(f"absent-{number}")
                elif number % 10 == 1:
                    await client.storage.list_content()
                elif number % 97 == 0:
                    with anyio.move_on_after(0.0005):
                        await client.list_containers()
                else:
                    await client.version()

        async def call_from_all() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(call)

        for _ in range(500):
            await client.version()
        opened, size = descriptors(), resident_bytes()
        await call_from_all()
        assert next(numbers, None) is None
        channel = client._connection._channel
        assert channel is not None
        protocol = channel._protocol
        assert protocol is not None
        streams = protocol.connection._connection.streams
        assert len([each for each in streams.values() if not each.closed]) == 0
        assert len(streams) < 400, "h2 forgets streams that are closed, when others are opened"
        assert descriptors() <= opened
        assert resident_bytes() - size < 30_000_000
        assert (await client.version()).version

"""Exits and events on a real containerd (rows E40 to E42, E46 to E48)."""

import os
import signal
from collections.abc import Sequence

import anyio
import pytest

from moorage import errors
from moorage.containerd import Client, subscribe
from moorage.containerd.types import RuntimeOptions, TaskExit, TaskOOM
from moorage.executor import Exit
from support.conditions import TIMEOUT_SECONDS, eventually, settled
from support.harness import Harness, harness
from support.sinks import Exits, Memory
from support.specs import FOREVER
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]


class Looking(Exits):
    """Records the leftovers when it is called."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        self.workspace = workspace
        self.left: list[str] = []
        self.output = Memory()
        self.output_then = ""

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        async with self.workspace.client() as client:
            self.left += [task.id for task in await client.list_tasks()]
            self.left += [record.id for record in await client.list_containers()]
        self.left += self.workspace.files()
        self.output_then = self.output.text
        await super().handle_exit_event(id, exit)


async def test_e40_the_handler_is_called_when_output_was_drained_and_all_is_removed(workspace: Workspace) -> None:
    looking = Looking(workspace)
    async with harness(workspace, exits=looking) as it:
        await it.executor.create("a", workspace.shell("a", "seq 1 20000; exit 3"), looking.output, it.pair()[1])
        it.sinks.pop(-2)
        exit = await it.one_exit(3)
        assert looking.output_then == "".join(f"{number}\n" for number in range(1, 20001))
        assert looking.left == []
        assert exit.signal is None
        assert exit.exited_at
        assert exit.pid
        assert it.executor.last_exit("a") == exit


async def test_e40_e41_the_end_of_added_processes_changes_nothing(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        pid = await it.create()
        process = {"args": ["/bin/true"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}}

        async def add(name: str) -> None:
            await it.client.exec_process("a", name, process)
            await it.client.start_process("a", name)
            await it.client.wait("a", name, within=TIMEOUT_SECONDS)
            await it.client.delete_process("a", name)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(add, f"exec{number}")
        await it.client.pause("a")
        await it.client.resume("a")
        assert await it.executor.is_running("a")
        assert await it.pid() == pid
        assert not it.exits.seen
        await it.kill()
        await it.one_exit(137)


async def test_e42_the_exit_of_an_earlier_run_is_ignored(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        first = await it.create()
        await it.kill()
        await eventually(lambda: it.exits.seen)
        second = await it.create()
        await it.executor.process_event("a", TaskExit("a", "a", first, 137))
        await it.executor.process_event("a", TaskExit("a", "a", second, 137))  # this one's own, but untrue
        assert await it.executor.is_running("a")
        assert await it.pid() == second
        assert len(it.exits.seen) == 1
        await it.kill()
        await eventually(lambda: len(it.exits.seen) == 2)
        assert it.exits.seen[0].run != it.exits.seen[1].run


async def test_e46_a_slow_handler_keeps_no_other_container_waiting(workspace: Workspace) -> None:
    exits = Exits(waits={"slow": anyio.Event()})
    async with harness(workspace, exits=exits) as it:
        for id in ("slow", "a"):
            await it.create(id=id)
        await it.kill("slow")
        await eventually(lambda: exits.of("slow"))
        await it.kill("a")
        await it.one_exit(137)
        await it.create(id="slow")
        await it.kill("slow")
        exits.waits["slow"].set()
        await eventually(lambda: len(exits.of("slow")) == 2)


async def test_e46_what_the_handler_raises_comes_out_of_process_event_and_the_pump_goes_on(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness(workspace, exits=Exits(fail=True)) as it:
        for number in range(2):
            await it.create()
            await it.kill()
            await eventually(lambda: len(it.exits.seen) > number)  # noqa: B023 - waited for here
            await settled()
        failures = [record for record in caplog.records if record.exc_info]
        assert len(failures) == 2


HUNGRY = "tail /dev/zero"
LIMIT = {"resources": {"memory": {"limit": 24 * 1024 * 1024, "swap": 24 * 1024 * 1024}}}


def with_limit(workspace: Workspace, arguments: Sequence[str], id: str = "a") -> dict[str, object]:
    spec = workspace.command(id, arguments)
    return {**spec, "linux": {**spec["linux"], **LIMIT}}


async def test_e47_an_oom_kill_of_init_is_reported(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        async with subscribe(it.client) as envelopes:
            kinds: list[type] = []
            while TaskOOM not in kinds and kinds.count(TaskExit) < 5:  # an event can be lost when its shim exits
                id = f"a{kinds.count(TaskExit)}"
                await it.executor.create(id, with_limit(workspace, HUNGRY.split(), id), *it.pair())
                exit = await it.one_exit(137, id)
                assert (exit.oom, exit.signal) == (True, "SIGKILL")
                kinds.append(type((await anext(envelopes)).event))
                while kinds[-1] is not TaskExit:
                    kinds.append(type((await anext(envelopes)).event))
        assert TaskOOM in kinds


async def test_e47_an_oom_kill_of_a_child_is_no_oom_of_init(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        await it.executor.create("a", with_limit(workspace, ["/bin/sh", "-c", f"{HUNGRY}; exit 4"]), *it.pair())
        exit = await it.one_exit(4)
        assert not exit.oom


async def test_e47_a_kill_with_memory_to_spare_is_no_oom(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        await it.executor.create("a", with_limit(workspace, ["/bin/sleep", "1000000"]), *it.pair())
        await it.executor.signal("a", signal.SIGKILL)
        exit = await it.one_exit(137)
        assert not exit.oom


async def start_foreign(client: Client, workspace: Workspace, id: str) -> int:
    """A container with its task as another client makes them."""
    await client.create_container(id, workspace.shell(id, FOREVER), RuntimeOptions(root=workspace.runtime.root))
    await client.create_task(id)
    return await client.start_task(id)


async def test_e48_what_others_run_is_left_alone_also_in_our_namespace(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        await it.create()
        pid = await start_foreign(it.client, workspace, "b")
        os.kill(pid, signal.SIGKILL)
        await it.client.wait("b", within=TIMEOUT_SECONDS)
        await it.executor.process_event("b", TaskExit("b", "b", pid, 137))
        await it.kill()
        await it.one_exit(137)  # whatever happened before it was handled by then
        assert len(it.exits.seen) == 1
        assert (await it.client.get_container("b")).id == "b"
        assert (await it.client.delete_task("b")).code == 137
        await it.client.delete_container("b")


async def test_e48_executors_in_two_namespaces_share_a_containerd_and_nothing_else(workspace: Workspace) -> None:
    other_workspace = Workspace(workspace.session)
    try:
        async with harness(workspace) as it, harness(other_workspace) as other:
            await it.create()
            second = await other.create()
            await it.kill()
            await it.one_exit(137)
            assert await other.executor.is_running("a")
            assert await other.pid() == second
            assert not other.exits.seen
            with pytest.raises(errors.NotFound):
                await it.executor.is_running("a")
            await other.kill()
            await other.one_exit(137)
    finally:
        await other_workspace.close()


async def restart(it: Harness, times: int) -> list[str]:
    """Let one id end and be created again from its exit handler, so often."""
    runs: list[str] = []
    done = anyio.Event()

    async def again(id: str, exit: Exit) -> None:
        runs.append(exit.run)
        if len(runs) == times:
            done.set()
        else:
            await it.executor.create(id, it.workspace.command(id, ["/bin/true"]), *it.pair())

    it.exits.handle_exit_event = again  # type: ignore[method-assign]  # the handler of this test
    await it.executor.create("a", it.workspace.command("a", ["/bin/true"]), *it.pair())
    with anyio.fail_after(TIMEOUT_SECONDS):
        await done.wait()
    return runs


async def test_a_handler_may_create_the_same_id_again(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        assert len(set(await restart(it, 10))) == 10
        await workspace.assert_nothing_left()

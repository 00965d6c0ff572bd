"""What people hit elsewhere, as far as an executor alone can show that it does not happen here."""

import os
import random
import signal
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.containerd.types import TaskExit
from moorage.embedding import open_executor
from support.conditions import eventually
from support.kills import kill, kill_containerd, replace_containerd
from support.limits import limit
from support.scenario import FULL, ID, KILLED, scenario
from support.sinks import Exits, Memory
from support.workspace import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(limit(600 if FULL else 120))]


@pytest.mark.parametrize("left", ["record", "stopped task", "directory"])
async def test_case_016_what_a_crash_left_under_the_id_is_replaced(workspace: Workspace, left: str) -> None:
    async with workspace.containers() as containers:
        if left == "directory":
            (workspace.task_directories / ID).mkdir(parents=True)
        else:
            await containers.create(ID, workspace.shell(ID, "exec sleep 1000000"), workspace.runtime)
    if left == "stopped task":
        await create_stopped_task(workspace)
    async with scenario(workspace) as it:
        await it.create()
        await it.end()


async def create_stopped_task(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        await it.create()  # replaces the record
        pid = await it.pid()
    await kill(pid)


async def test_case_016_a_running_task_under_the_id_is_not_killed_but_can_be_taken_over(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
    async with scenario(workspace) as it:
        with pytest.raises(errors.Conflict):
            await it.create()
        assert await it.pid() == pid
        assert await it.restore()
        await it.end()


async def test_case_017_no_shim_stays_after_kills_of_containerd_at_any_moment(workspace: Workspace) -> None:
    rounds = 200 if FULL else 12
    draw = random.Random(17)
    async with scenario(workspace) as it:
        for _ in range(rounds):
            before = len(it.exits.seen)
            async with anyio.create_task_group() as tasks:

                async def kill_sometime() -> None:
                    await anyio.sleep(draw.uniform(0, 0.15))  # the moment is what is tried
                    await replace_containerd(workspace.containerd)

                tasks.start_soon(kill_sometime)
                try:
                    await it.create()
                except errors.MoorageError:
                    continue
            os.kill(await it.pid(), signal.SIGKILL)
            await eventually(lambda: len(it.exits.seen) == before + 1)  # noqa: B023 - awaited in this round
        await eventually(lambda: not workspace.shims())
        # A containerd that is killed while it deletes a directory of its own leaves it; the next creates clear that.
        for _ in range(3):
            before = len(it.exits.seen)
            await it.create(ID, "exit 0")
            await eventually(lambda: len(it.exits.seen) == before + 1)  # noqa: B023 - awaited in this round
        await workspace.assert_nothing_left()
    it.assert_sinks_closed_once()


async def test_case_017_a_directory_that_containerd_hid_and_never_removed_goes_with_the_next_creates(
    workspace: Workspace,
) -> None:
    hidden = workspace.task_directories / f".{ID}"
    (hidden / "left").mkdir(parents=True)
    async with scenario(workspace) as it:
        for number in range(3):
            await it.create(ID, "exit 0")
            await eventually(lambda: len(it.exits.seen) == number + 1)  # noqa: B023 - awaited in this round
        await workspace.assert_nothing_left()


async def test_case_018_an_old_runs_exit_and_shim_do_not_touch_the_new_run(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        await it.create()
        old_pid, old_shims = await it.pid(), workspace.shims(ID)
        old = await it.end()
        await it.create()
        pid = await it.pid()
        await it.executor.process_event(ID, TaskExit(ID, ID, old_pid, KILLED, old.exited_at))
        for shim in old_shims:
            await kill(shim)
        assert await it.pid() == pid
        assert await it.executor.is_running(ID)
        assert it.exits.seen == [old]
        new = await it.end()
        assert new.run != old.run


async def test_case_019_the_end_of_an_added_process_is_not_the_end(workspace: Workspace) -> None:
    rounds = 100 if FULL else 10
    async with scenario(workspace) as it, workspace.client() as client:
        await it.create()
        pid = await it.pid()

        async def add(name: str) -> None:
            process = {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
            await client.exec_process(ID, name, process)
            await client.start_process(ID, name)
            await client.wait(ID, name, within=limit(20))
            await client.delete_process(ID, name)

        for number in range(0, rounds, 5):
            async with anyio.create_task_group() as tasks:
                for beside in range(5):
                    tasks.start_soon(add, f"e{number + beside}")
        assert await it.pid() == pid
        assert not it.exits.seen
        await it.end()


async def test_case_031_a_plugin_continues_to_write_while_its_output_is_not_read_and_the_order_stays(
    workspace: Workspace,
) -> None:
    text = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"
    async with scenario(workspace) as it:
        await it.create(ID, text)
        pid = await it.pid()
        first = it.sinks[0]
        await eventually(lambda: first.data.count(b"\n") > 3)
    async with scenario(workspace) as it:
        assert await it.restore()
        assert await it.pid() == pid
        second = it.sinks[0]
        await eventually(lambda: second.data.count(b"\n") > 3)
        await it.end()
    lines = (first.data + second.data).split()
    assert [int(line) for line in lines] == list(range(1, len(lines) + 1))


async def test_case_037_a_restart_of_our_process_keeps_what_runs_and_every_operation_works_at_once(
    workspace: Workspace,
) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
    async with scenario(workspace) as it:
        assert await it.restore()
        assert await it.executor.is_running(ID)
        await it.executor.signal(ID, signal.SIGCONT)
        assert (await it.end()).pid == pid
        await it.create()
        await it.end()


async def test_case_039_a_process_that_ends_at_once_is_a_success_and_one_exit(workspace: Workspace) -> None:
    rounds = 200 if FULL else 20
    async with scenario(workspace) as it:
        for number in range(rounds):
            await it.executor.create(ID, workspace.command(ID, ["/bin/true"]), *it.two_sinks())
            await eventually(lambda: len(it.exits.seen) == number + 1)  # noqa: B023 - awaited in this round
        await workspace.assert_nothing_left()
        assert [exit.code for exit in it.exits.seen] == [0] * rounds
    it.assert_sinks_closed_once()


async def test_case_040_a_missing_command_fails_alike_twice_and_leaves_nothing(workspace: Workspace) -> None:
    said = set()
    async with scenario(workspace) as it:
        for _ in range(2):
            with pytest.raises(errors.MoorageError, match="/no/such") as caught:
                await it.executor.create(ID, workspace.command(ID, ["/no/such"]), *it.two_sinks())
            said.add(str(caught.value))
            await workspace.assert_nothing_left()
        assert not it.exits.seen
    assert len(said) == 1


async def test_case_098_an_executor_opened_before_containerd_fails_by_kind_and_later_opens(
    workspace: Workspace,
) -> None:
    await kill_containerd(workspace.containerd)
    with pytest.raises(errors.Unavailable, match="cannot create containerd exec client"):
        async with workspace.executor(Exits()):
            pytest.fail("nothing is there to be opened")
    await workspace.containerd.ensure()
    exits = Exits()
    async with workspace.executor(exits) as executor:
        await executor.create(ID, workspace.command(ID, ["/bin/true"]), Memory(), Memory())
        await eventually(lambda: exits.seen)


async def test_case_098_a_socket_that_is_no_containerd_fails_by_kind(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable):
        async with open_executor(str(tmp_path / "nobody.sock"), tmp_path / "root", Exits()):
            pytest.fail("nothing is there to be opened")

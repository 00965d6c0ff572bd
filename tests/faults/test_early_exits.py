"""Whatever breaks after the exit of a run is reported and before it is removed, while the next run is created."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from moorage import errors
from moorage.containerd.types import Status
from moorage.executor import Executor
from support.awaits import Awaits, drive, drive_inboxes
from support.conditions import TIMEOUT_SECONDS, eventually
from support.early_exits import NEXT, early_executor
from support.limits import limit
from support.operation_process import operation_process
from support.scenario import FAULTS, FULL, ID, KILLED, Scenario, run_with_fault, scenario
from support.sinks import Exits, Memory
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(limit(300))]

# Those that differ in what they leave; the others differ in how the failure is reported.
HARMS = FAULTS if FULL else [(fault, when) for fault, when in FAULTS if fault in ("cut", "killed")]

# So many awaits the removal and the creation make at least; each test finds the true number by continuing.
CREATE, BOTH = 8, 12
CALLS = 7  # status, OOM counter; then two of the removal beside three of the creation
RUNS = 20

Points = Callable[[str, object], None]
"""Writes how many points there were into the report (``--junitxml``)."""


@asynccontextmanager
async def early(workspace: Workspace, exits: Exits) -> AsyncIterator[Executor]:
    address, namespace = workspace.containerd.address, workspace.namespace
    async with early_executor(address, workspace.root, exits, namespace, TIMEOUTS) as executor:
        yield executor


async def create(executor: Executor, workspace: Workspace, id: str, text: str = "exec sleep 1000000") -> None:
    await executor.create(id, workspace.shell(id, text), Memory(), Memory())


async def leave_running(workspace: Workspace) -> int:
    async with early(workspace, Exits()) as executor:
        await create(executor, workspace, ID)
        pid = executor.pid(ID)
    assert pid
    return pid


async def running_pid(workspace: Workspace, id: str) -> int | None:
    """The pid of a container that runs."""
    async with workspace.client() as client:
        try:
            task = await client.get_task(id)
        except errors.NotFound:
            return None
    return task.pid if task.status is Status.RUNNING else None


async def take_over(workspace: Workspace) -> bool:
    """Be the next process: it has the next run, if that runs, with its pid, and nothing of the old one stays."""
    exits, pid = Exits(), await running_pid(workspace, NEXT)
    async with early(workspace, exits) as executor:
        assert not await executor.restore(ID, Memory(), Memory())
        found = executor.last_exit(ID)
        assert found is None or found.code == KILLED
        assert await executor.restore(NEXT, Memory(), Memory()) == (pid is not None)
        assert executor.pid(NEXT) == pid
        assert executor.last_exit(NEXT) is None, "what never ran has no exit"
        await eventually(lambda: workspace.shims(ID) == [])
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            await executor.wait_removed(NEXT)
        await workspace.assert_nothing_left()
    assert [(exit.id, exit.code) for exit in exits.seen] == [(NEXT, KILLED)] * (pid is not None)
    return pid is not None


async def test_i17_killed_at_every_await_of_the_window_the_next_process_has_the_next_run(
    workspace: Workspace, record_property: Points
) -> None:
    async with operation_process(workspace) as it:
        at, killed, taken_over = 0, True, 0
        while killed:
            pid = await leave_running(workspace)
            with anyio.fail_after(TIMEOUT_SECONDS):
                await it.begin("replace", at)
                await it.ready()
                os.kill(pid, signal.SIGKILL)
                child = await it.end()
            killed = child.killed
            assert child.reported == [KILLED]
            taken_over += await take_over(workspace)
            at += 1
    assert at > BOTH
    assert 0 < taken_over < at
    record_property("points", at - 1)


async def test_i17_closed_at_every_await_of_the_window_the_next_process_has_the_next_run(
    workspace: Workspace, record_property: Points
) -> None:
    at, reached = 0, True
    while reached:
        pid, exits = await leave_running(workspace), Exits()
        async with early(workspace, exits) as executor, anyio.create_task_group() as tasks:
            awaits = Awaits(at, lambda: tasks.start_soon(executor.aclose), lambda: exits.seen)  # noqa: B023 - as below
            created = True
            with drive_inboxes(awaits):
                assert await executor.restore(ID, Memory(), Memory())
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda: exits.seen)  # noqa: B023 - awaited in this round
                try:
                    await drive(create(executor, workspace, NEXT), awaits)
                except errors.Conflict:
                    created = False
                await executor.wait_removed(ID)
        reached = awaits.reached
        assert [(exit.id, exit.code) for exit in exits.seen] == [(ID, KILLED)]
        assert await take_over(workspace) == created
        at += 1
    assert at > BOTH
    record_property("points", at - 1)


async def test_i17_a_next_run_cancelled_at_every_await_leaves_the_removal_alone(
    workspace: Workspace, record_property: Points
) -> None:
    exits = Exits()
    async with early(workspace, exits) as executor:
        at, reached = 0, True
        while reached:
            await create(executor, workspace, ID)
            await executor.signal(ID, signal.SIGKILL)
            await eventually(lambda: exits.of(ID))
            with anyio.CancelScope() as scope:
                awaits = Awaits(at, scope.cancel)
                await drive(create(executor, workspace, NEXT), awaits)
            reached = awaits.reached
            await executor.wait_removed(ID)
            if not scope.cancelled_caught:
                await executor.signal(NEXT, signal.SIGKILL)
                await executor.wait_removed(NEXT)
            await workspace.assert_nothing_left()
            assert [exit.id for exit in exits.seen] == [ID, *[NEXT] * (not scope.cancelled_caught)]
            exits.seen.clear()
            at += 1
    assert at > CREATE
    record_property("points", at - 1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("fault", "when"), HARMS)
async def test_i17_a_call_that_fails_in_the_window_costs_neither_an_exit_nor_the_removal(
    workspace: Workspace, fault: str, when: str, record_property: Points
) -> None:
    async def replace(it: Scenario) -> None:
        os.kill(await it.pid(), signal.SIGKILL)
        await eventually(lambda: it.exits.seen)
        try:
            await it.create(NEXT)
        finally:
            await it.executor.wait_removed(ID)

    number, reached = 0, True
    while reached:
        async with scenario(workspace, exits_early=True) as it:
            await it.create()
            result = await run_with_fault(it, replace, number, fault, when)
            assert [exit.code for exit in it.exits.of(ID)] == [KILLED]
            assert not it.executor.owns(ID)
            if result.failure is not None:
                await workspace.assert_nothing_left()
                await it.create(NEXT)
            assert not it.exits.of(NEXT)
            assert (await it.end(NEXT)).code == KILLED
            assert len(it.exits.of(ID)) == 1
        it.assert_sinks_closed_once()
        number, reached = number + 1, result.reached
    assert number > CALLS
    record_property("points", number - 1)


async def test_i17_runs_that_exit_at_once_do_not_accumulate(workspace: Workspace) -> None:
    """The caller waits for the removal of the run before the last one, as an engine does."""
    exits, most = Exits(), 0
    async with early(workspace, exits) as executor:
        for number in range(RUNS):
            await create(executor, workspace, f"r{number}", "exit 3")
            await eventually(lambda: len(exits.seen) > number)  # noqa: B023 - awaited in this round
            most = max(most, len(os.listdir(workspace.bundles)))
            await executor.wait_removed(f"r{number - 1}")
        await executor.wait_removed(f"r{RUNS - 1}")
        await workspace.assert_nothing_left()
    assert most <= 2
    assert [(exit.id, exit.code) for exit in exits.seen] == [(f"r{number}", 3) for number in range(RUNS)]

"""Every await of every operation: cancelled there, closed there, killed there."""

import os
import signal
from collections.abc import Callable

import anyio
import pytest

from moorage import errors
from support.awaits import Awaits, drive, drive_inboxes
from support.conditions import TIMEOUT_SECONDS, eventually
from support.kills import kill_task
from support.limits import limit
from support.operation_process import operation_process
from support.scenario import ID, KILLED
from support.sinks import Exits, Memory
from support.workspace import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(limit(300))]

Points = Callable[[str, object], None]
"""Writes how many points there were into the report (``--junitxml``)."""

# So many awaits the operations make at least; each test finds the true number by continuing until none is left.
CREATE, RESTORE, EXIT = 8, 7, 8
LOST = 2  # awaits of an exit after the directory is gone and before the handler is called


async def leave_running(workspace: Workspace) -> int:
    async with workspace.executor(Exits()) as executor:
        await executor.create(ID, workspace.shell(ID, "exec sleep 1000000"), Memory(), Memory())
        async with workspace.client() as client:
            return (await client.get_task(ID)).pid


async def known_exits(workspace: Workspace, already: int = 0) -> list[int | None]:
    """Take over as the next process, end what lives; the exits that this process learns of. Nothing is left."""
    exits = Exits()
    async with workspace.executor(exits) as executor:
        if await executor.restore(ID, Memory(), Memory()):
            await executor.signal(ID, signal.SIGKILL)
            await eventually(lambda: exits.seen)
        last = executor.last_exit(ID)
        await workspace.assert_nothing_left()
    assert len(exits.seen) <= 1
    return [last.code] if last else []


async def test_e09_a_create_cancelled_at_every_await_leaves_nothing(
    workspace: Workspace, record_property: Points
) -> None:
    exits = Exits()
    async with workspace.executor(exits) as executor:
        at, reached = 0, True
        while reached:
            sinks = Memory(), Memory()
            with anyio.CancelScope() as scope:
                awaits = Awaits(at, scope.cancel)
                await drive(executor.create(ID, workspace.shell(ID, "exec sleep 1000000"), *sinks), awaits)
            reached = awaits.reached
            if scope.cancelled_caught:
                await workspace.assert_nothing_left()
                assert [sink.closes for sink in sinks] == [1, 1]
                assert not exits.seen
            else:
                # the last await had its answer already
                await executor.signal(ID, signal.SIGKILL)
                await eventually(lambda: exits.seen)
                await workspace.assert_nothing_left()
                exits.seen.clear()
            at += 1
    assert at > CREATE
    record_property("points", at - 1)


async def test_e09_a_create_during_which_the_executor_closes_leaves_nothing(
    workspace: Workspace, record_property: Points
) -> None:
    at, reached = 0, True
    while reached:
        exits, sinks = Exits(), (Memory(), Memory())
        async with workspace.executor(exits) as executor, anyio.create_task_group() as tasks:
            awaits = Awaits(at, lambda: tasks.start_soon(executor.aclose))
            try:
                await drive(executor.create(ID, workspace.shell(ID, "exec sleep 1000000"), *sinks), awaits)
                created = True
            except errors.Conflict:
                created = False
        reached = awaits.reached
        assert [sink.closes for sink in sinks] == [1, 1]
        codes = await known_exits(workspace)
        assert codes == [KILLED] * created
        assert not exits.seen
        at += 1
    assert at > CREATE
    record_property("points", at - 1)


async def test_a_restore_cancelled_at_every_await_can_be_repeated(
    workspace: Workspace, record_property: Points
) -> None:
    pid = await leave_running(workspace)
    exits = Exits()
    at, reached = 0, True
    while reached:
        async with workspace.executor(exits) as executor:
            sinks = Memory(), Memory()
            with anyio.CancelScope() as scope:
                awaits = Awaits(at, scope.cancel)
                assert await drive(executor.restore(ID, *sinks), awaits)
            reached = awaits.reached
            if scope.cancelled_caught:
                await eventually(lambda: [sink.closes for sink in sinks] == [1, 1])  # noqa: B023 - awaited in this round
                assert await executor.restore(ID, Memory(), Memory())
            assert await executor.is_running(ID)
        at += 1
    assert at > RESTORE
    record_property("points", at - 1)
    assert await known_exits(workspace) == [KILLED]
    assert not exits.seen
    assert pid


async def test_a_restore_of_a_stopped_one_cancelled_at_every_await_loses_no_exit(
    workspace: Workspace, record_property: Points
) -> None:
    at, reached = 0, True
    while reached:
        await leave_running(workspace)
        async with workspace.client() as client:
            await kill_task(client, ID)
        async with workspace.executor(Exits()) as executor:
            with anyio.CancelScope() as scope:
                awaits = Awaits(at, scope.cancel)
                assert not await drive(executor.restore(ID, Memory(), Memory()), awaits)
            reached = awaits.reached
            if scope.cancelled_caught:
                assert not await executor.restore(ID, Memory(), Memory())
            exit = executor.last_exit(ID)
            assert exit
            assert exit.code == KILLED
            await workspace.assert_nothing_left()
        at += 1
    assert at > RESTORE
    record_property("points", at - 1)


async def test_e50_an_exit_during_which_the_executor_closes_is_reported_once(
    workspace: Workspace, record_property: Points
) -> None:
    at, reached = 0, True
    while reached:
        pid = await leave_running(workspace)
        exits = Exits()
        async with workspace.executor(exits) as executor, anyio.create_task_group() as tasks:
            awaits = Awaits(at, lambda: tasks.start_soon(executor.aclose))
            with drive_inboxes(awaits):
                assert await executor.restore(ID, Memory(), Memory())
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda: awaits.reached or exits.seen)  # noqa: B023 - awaited in this round
        reached = awaits.reached
        reported = [exit.code for exit in exits.seen]
        assert reported + await known_exits(workspace) == [KILLED]
        at += 1
    assert at > EXIT
    record_property("points", at - 1)


@pytest.mark.parametrize("operation", ["create", "restore"])
async def test_e51_killed_at_every_await_the_next_process_takes_over(
    workspace: Workspace, operation: str, record_property: Points
) -> None:
    async with operation_process(workspace) as it:
        at, killed = 0, True
        while killed:
            if operation == "restore":
                await leave_running(workspace)
            with anyio.fail_after(TIMEOUT_SECONDS):
                await it.begin(operation, at)
                child_exit = await it.end()
            killed = child_exit.killed
            codes = await known_exits(workspace)
            assert codes in ([], [KILLED])
            assert codes or operation == "create"
            assert not child_exit.reported
            at += 1
    assert at > (CREATE if operation == "create" else RESTORE)
    record_property("points", at - 1)


async def test_e51_killed_at_every_await_of_an_exit_it_is_never_reported_twice(
    workspace: Workspace, record_property: Points
) -> None:
    """Between the removal of the last file and the handler's call there is no trace of it any more."""
    async with operation_process(workspace) as it:
        at, killed, lost = 0, True, 0
        while killed:
            pid = await leave_running(workspace)
            with anyio.fail_after(TIMEOUT_SECONDS):
                await it.begin("exit", at)
                await it.ready()
                os.kill(pid, signal.SIGKILL)
                child_exit = await it.end()
            killed = child_exit.killed
            reported = child_exit.reported + await known_exits(workspace)
            assert reported in ([KILLED], [])
            lost += not reported
            at += 1
    assert at > EXIT
    record_property("points", at - 1)
    assert lost <= LOST

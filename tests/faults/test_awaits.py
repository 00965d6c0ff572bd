"""Every await of every operation: cancelled there, closed there, killed there."""

import os
import signal
from collections.abc import Callable

import anyio
import pytest

from moorage import errors
from support.awaits import Awaits, drive, drive_inboxes
from support.kills import kill_task
from support.places import Place
from support.scenes import ID, KILLED
from support.sinks import Exits, Memory
from support.victim import victim
from support.waiting import PATIENCE_SECONDS, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(300)]

Points = Callable[[str, object], None]
"""Writes how many points there were into the report (``--junitxml``)."""

# So many awaits the operations make at least; each test finds the true number by going on until none is left.
CREATE, RESTORE, EXIT = 8, 7, 8
LOST = 2  # awaits of an exit after the directory is gone and before the handler is called


async def leave_running(place: Place) -> int:
    async with place.executor(Exits()) as executor:
        await executor.create(ID, place.shell(ID, "exec sleep 1000000"), Memory(), Memory())
        async with place.client() as client:
            return (await client.get_task(ID)).pid


async def known_exits(place: Place, already: int = 0) -> list[int | None]:
    """Take over as the next process, end what lives; the exits that this process learns of. Nothing is left."""
    exits = Exits()
    async with place.executor(exits) as executor:
        if await executor.restore(ID, Memory(), Memory()):
            await executor.signal(ID, signal.SIGKILL)
            await eventually(lambda: exits.seen)
        last = executor.last_exit(ID)
        await place.assert_nothing_left()
    assert len(exits.seen) <= 1
    return [last.code] if last else []


async def test_e09_a_create_cancelled_at_every_await_leaves_nothing(place: Place, record_property: Points) -> None:
    exits = Exits()
    async with place.executor(exits) as executor:
        at, reached = 0, True
        while reached:
            sinks = Memory(), Memory()
            with anyio.CancelScope() as scope:
                awaits = Awaits(at, scope.cancel)
                await drive(executor.create(ID, place.shell(ID, "exec sleep 1000000"), *sinks), awaits)
            reached = awaits.reached
            if scope.cancelled_caught:
                await place.assert_nothing_left()
                assert [sink.closes for sink in sinks] == [1, 1]
                assert not exits.seen
            else:
                # the last await had its answer already
                await executor.signal(ID, signal.SIGKILL)
                await eventually(lambda: exits.seen)
                await place.assert_nothing_left()
                exits.seen.clear()
            at += 1
    assert at > CREATE
    record_property("points", at - 1)


async def test_e09_a_create_during_which_the_executor_closes_leaves_nothing(
    place: Place, record_property: Points
) -> None:
    at, reached = 0, True
    while reached:
        exits, sinks = Exits(), (Memory(), Memory())
        async with place.executor(exits) as executor, anyio.create_task_group() as tasks:
            awaits = Awaits(at, lambda: tasks.start_soon(executor.aclose))
            try:
                await drive(executor.create(ID, place.shell(ID, "exec sleep 1000000"), *sinks), awaits)
                created = True
            except errors.Conflict:
                created = False
        reached = awaits.reached
        assert [sink.closes for sink in sinks] == [1, 1]
        codes = await known_exits(place)
        assert codes == [KILLED] * created
        assert not exits.seen
        at += 1
    assert at > CREATE
    record_property("points", at - 1)


async def test_a_restore_cancelled_at_every_await_can_be_repeated(place: Place, record_property: Points) -> None:
    pid = await leave_running(place)
    exits = Exits()
    at, reached = 0, True
    while reached:
        async with place.executor(exits) as executor:
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
    assert await known_exits(place) == [KILLED]
    assert not exits.seen
    assert pid


async def test_a_restore_of_an_ended_one_cancelled_at_every_await_loses_no_exit(
    place: Place, record_property: Points
) -> None:
    at, reached = 0, True
    while reached:
        await leave_running(place)
        async with place.client() as client:
            await kill_task(client, ID)
        async with place.executor(Exits()) as executor:
            with anyio.CancelScope() as scope:
                awaits = Awaits(at, scope.cancel)
                assert not await drive(executor.restore(ID, Memory(), Memory()), awaits)
            reached = awaits.reached
            if scope.cancelled_caught:
                assert not await executor.restore(ID, Memory(), Memory())
            exit = executor.last_exit(ID)
            assert exit
            assert exit.code == KILLED
            await place.assert_nothing_left()
        at += 1
    assert at > RESTORE
    record_property("points", at - 1)


async def test_e50_an_exit_during_which_the_executor_closes_is_told_once(place: Place, record_property: Points) -> None:
    at, reached = 0, True
    while reached:
        pid = await leave_running(place)
        exits = Exits()
        async with place.executor(exits) as executor, anyio.create_task_group() as tasks:
            awaits = Awaits(at, lambda: tasks.start_soon(executor.aclose))
            with drive_inboxes(awaits):
                assert await executor.restore(ID, Memory(), Memory())
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda: awaits.reached or exits.seen)  # noqa: B023 - awaited in this round
        reached = awaits.reached
        told = [exit.code for exit in exits.seen]
        assert told + await known_exits(place) == [KILLED]
        at += 1
    assert at > EXIT
    record_property("points", at - 1)


@pytest.mark.parametrize("operation", ["create", "restore"])
async def test_e51_killed_at_every_await_the_next_process_takes_over(
    place: Place, operation: str, record_property: Points
) -> None:
    async with victim(place) as it:
        at, killed = 0, True
        while killed:
            if operation == "restore":
                await leave_running(place)
            with anyio.fail_after(PATIENCE_SECONDS):
                await it.begin(operation, at)
                fate = await it.end()
            killed = fate.killed
            codes = await known_exits(place)
            assert codes in ([], [KILLED])
            assert codes or operation == "create"
            assert not fate.told
            at += 1
    assert at > (CREATE if operation == "create" else RESTORE)
    record_property("points", at - 1)


async def test_e51_killed_at_every_await_of_an_exit_it_is_never_told_twice(
    place: Place, record_property: Points
) -> None:
    """Between the removal of the last file and the handler's call nobody can know of it any more."""
    async with victim(place) as it:
        at, killed, lost = 0, True, 0
        while killed:
            pid = await leave_running(place)
            with anyio.fail_after(PATIENCE_SECONDS):
                await it.begin("exit", at)
                await it.ready()
                os.kill(pid, signal.SIGKILL)
                fate = await it.end()
            killed = fate.killed
            told = fate.told + await known_exits(place)
            assert told in ([KILLED], [])
            lost += not told
            at += 1
    assert at > EXIT
    record_property("points", at - 1)
    assert lost <= LOST

"""Every call that an operation makes to containerd fails, in every way, before and after it took effect."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from moorage import errors
from moorage.containerd.shims import groups
from support.conditions import eventually
from support.kills import kill_task
from support.scenario import FAULTS, FULL, ID, KILLED, Scenario, run_with_fault, scenario
from support.sinks import Exits, Memory
from support.workspace import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.real]

every_harm = pytest.mark.parametrize(("fault", "when"), FAULTS)
most_harms = pytest.mark.parametrize(  # the others differ in how the failure is reported, which every_harm covers
    ("fault", "when"), FAULTS if FULL else [(fault, when) for fault, when in FAULTS if fault in ("cut", "killed")]
)

Points = Callable[[str, object], None]
"""Writes how many points there were into the report (``--junitxml``)."""

CREATE = ["Containers/Create", "Tasks/Create", "Tasks/Start"]
RESTORE = ["Containers/Get", "Containers/Get", "Tasks/Get", "Tasks/Get"]
EXIT = ["Tasks/Get", "Tasks/Metrics", "Tasks/Delete", "Containers/Delete"]
MISSING = "/missing/command"


async def leave_running(workspace: Workspace) -> int:
    """Start a container and release it; its pid."""
    async with scenario(workspace) as it:
        await it.create()
        return await it.pid()


async def clear_as_the_next_process(workspace: Workspace) -> None:
    exits = Exits()
    async with workspace.executor(exits) as executor:
        alive = await executor.restore(ID, Memory(), Memory())
        if alive:
            await executor.signal(ID, signal.SIGKILL)
            await eventually(lambda: exits.seen)
        await workspace.assert_nothing_left()
    assert len(exits.seen) == alive


@pytest.mark.sampled(3)
@every_harm
async def test_create_is_whole_or_nothing(workspace: Workspace, fault: str, when: str, record_property: Points) -> None:
    async with scenario(workspace) as it:
        it.proxy.arm()
        await it.create()
        assert it.proxy.calls == CREATE
        await it.end()
        for number in range(len(CREATE)):
            result = await run_with_fault(it, Scenario.create, number, fault, when)
            assert result.reached, f"call {number} was never made"
            if result.failure is not None:
                await workspace.assert_nothing_left()
                await it.create()
            await it.end()
    it.assert_sinks_closed_once()
    record_property("points", len(CREATE))


@pytest.mark.sampled(2)
@most_harms
async def test_a_failing_create_leaves_nothing(
    workspace: Workspace, fault: str, when: str, record_property: Points
) -> None:
    async def fail(it: Scenario) -> None:
        await it.executor.create(ID, workspace.command(ID, [MISSING]), *it.two_sinks())

    async with scenario(workspace) as it:
        number, reached, failure = 0, True, ""
        while reached:
            result = await run_with_fault(it, fail, number, fault, when)
            assert result.failure is not None
            await workspace.assert_nothing_left()
            number, reached, failure = number + 1, result.reached, str(result.failure)
        assert MISSING in failure
        assert number > len(CREATE), "the undo makes calls too"
        assert not it.exits.seen
    it.assert_sinks_closed_once()
    record_property("points", number - 1)


@pytest.mark.sampled(2)
@most_harms
async def test_a_restore_is_whole_or_can_be_repeated(
    workspace: Workspace, fault: str, when: str, record_property: Points
) -> None:
    async def restore(it: Scenario) -> None:
        assert await it.restore()

    for number in range(len(RESTORE)):
        pid = await leave_running(workspace)
        async with scenario(workspace) as it:
            result = await run_with_fault(it, restore, number, fault, when)
            assert result.reached, f"call {number} was never made"
            if result.failure is not None:
                await restore(it)
            assert (await it.end()).pid == pid
        it.assert_sinks_closed_once()
    record_property("points", len(RESTORE))


@pytest.mark.sampled(2)
@most_harms
async def test_a_restore_of_a_stopped_one_reports_its_exit_once(
    workspace: Workspace, fault: str, when: str, record_property: Points
) -> None:
    number, reached = 0, True
    while reached:
        await leave_running(workspace)
        async with workspace.client() as client:
            await kill_task(client, ID)
        async with scenario(workspace) as it:
            result = await run_with_fault(it, Scenario.restore, number, fault, when)
            if result.failure is not None:
                assert not await it.restore()
            exit = it.executor.last_exit(ID)
            assert exit
            assert exit.code in (KILLED, None)
            assert exit.code == KILLED or result.failure, "without a failure the code is known"
            await workspace.assert_nothing_left()
            assert not it.exits.seen
        it.assert_sinks_closed_once()
        number, reached = number + 1, result.reached
    assert number > len(RESTORE)
    record_property("points", number - 1)


@pytest.mark.sampled(2)
@most_harms
async def test_an_exit_is_reported_once_and_everything_removed(
    workspace: Workspace, fault: str, when: str, record_property: Points
) -> None:
    async def end(it: Scenario) -> None:
        os.kill(await it.pid(), signal.SIGKILL)
        await eventually(lambda: it.exits.seen)

    number, reached = 0, True
    while reached:
        async with scenario(workspace) as it:
            await it.create()
            result = await run_with_fault(it, end, number, fault, when)
            await workspace.assert_nothing_left()
            assert [exit.code for exit in it.exits.seen] == [KILLED]
            assert result.failure is None
            await it.create()
            await it.end()
        it.assert_sinks_closed_once()
        number, reached = number + 1, result.reached
    assert number > len(EXIT)
    record_property("points", number - 1)


@most_harms
async def test_a_signal_fails_by_kind_and_is_no_exit(
    workspace: Workspace, fault: str, when: str, record_property: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(it: Scenario) -> None:
        await it.executor.signal(ID, signal.SIGCONT)

    async def kill(it: Scenario) -> None:
        await it.executor.signal(ID, signal.SIGKILL)

    async with scenario(workspace) as it:
        await it.create()
        result = await run_with_fault(it, interrupt, 0, fault, when)
        assert (result.reached, result.failure) == (False, None)  # the process is known, and containerd not needed
        monkeypatch.setattr(groups, "is_first_process", lambda *_: False)  # as of a container with the host's pids
        result = await run_with_fault(it, interrupt, 0, fault, when)
        assert result.reached
        assert result.failure is not None
        assert not it.exits.seen
        result = await run_with_fault(it, kill, 0, fault, when)
        assert result.reached
        with suppress(errors.NotFound):
            await kill(it)
        await eventually(lambda: it.exits.seen)
        await workspace.assert_nothing_left()
        assert [exit.code for exit in it.exits.seen] == [KILLED]
    it.assert_sinks_closed_once()
    record_property("points", 2)


@most_harms
async def test_what_a_broken_create_left_is_found_by_the_next_process(
    workspace: Workspace, fault: str, when: str, record_property: Points
) -> None:
    for number in range(len(CREATE)):
        async with scenario(workspace) as it:
            result = await run_with_fault(it, Scenario.create, number, fault, when)
            assert result.reached
        await clear_as_the_next_process(workspace)
    record_property("points", len(CREATE))

"""Many rounds, after which every count is back where it began."""

import threading

import pytest

from moorage import errors
from support import leftovers
from support.conditions import eventually
from support.limits import limit
from support.scenario import FULL, ID, Scenario, scenario
from support.workspace import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(limit(600))]

ROUNDS = 500 if FULL else 30


def counts() -> tuple[int, dict[str, int]]:
    return threading.active_count(), dict(leftovers.descriptors())


async def warm_up(it: Scenario) -> tuple[int, dict[str, int]]:
    """The counts after what is made once (worker threads, connections) is made."""
    for _ in range(3):
        await it.create()
        await it.end()
    return counts()


async def test_e05_case_032_failing_creates_leave_threads_descriptors_and_fifos_as_they_were(
    workspace: Workspace,
) -> None:
    async with scenario(workspace) as it:
        before = await warm_up(it)
        for _ in range(ROUNDS):
            with pytest.raises(errors.MoorageError, match="/missing"):
                await it.executor.create(ID, workspace.command(ID, ["/missing"]), *it.two_sinks())
        await workspace.assert_nothing_left()
        await eventually(lambda: counts() == before)
        assert not leftovers.fifos_below(workspace.root)
    it.assert_sinks_closed_once()


async def test_e40_rounds_of_create_and_exit_leave_every_count_as_it_was(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        before, exits_before = await warm_up(it), len(it.exits.seen)
        for number in range(ROUNDS):
            await it.create(ID, "exit 3")
            await eventually(lambda: len(it.exits.seen) == exits_before + number + 1)  # noqa: B023 - awaited in this round
        await workspace.assert_nothing_left()
        await eventually(lambda: counts() == before)
        assert [exit.code for exit in it.exits.seen[exits_before:]] == [3] * ROUNDS
    it.assert_sinks_closed_once()

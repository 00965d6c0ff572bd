"""Every call that an operation makes to containerd fails, in every way, before and after it took effect."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from moorage import errors
from support.kills import kill_task
from support.places import Place
from support.scenes import FULL, HARMS, ID, KILLED, Scene, broken, scene
from support.sinks import Exits, Memory
from support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real]

every_harm = pytest.mark.parametrize(("harm", "when"), HARMS)
most_harms = pytest.mark.parametrize(  # the others differ in how the failure is told, which every_harm looks at
    ("harm", "when"), HARMS if FULL else [(harm, when) for harm, when in HARMS if harm in ("cut", "killed")]
)

Points = Callable[[str, object], None]
"""Writes how many points there were into the report (``--junitxml``)."""

CREATE = ["Containers/Create", "Tasks/Create", "Tasks/Start"]
RESTORE = ["Containers/Get", "Containers/Get", "Tasks/Get", "Tasks/Get"]
EXIT = ["Tasks/Get", "Tasks/Metrics", "Tasks/Get", "Tasks/Delete", "Tasks/Get", "Containers/Delete"]
MISSING = "/missing/command"


async def leave_running(place: Place) -> int:
    """Start a container and let go of it; its pid."""
    async with scene(place) as it:
        await it.create()
        return await it.pid()


async def clear_as_the_next_process(place: Place) -> None:
    exits = Exits()
    async with place.executor(exits) as executor:
        alive = await executor.restore(ID, Memory(), Memory())
        if alive:
            await executor.signal(ID, signal.SIGKILL)
            await eventually(lambda: exits.seen)
        await place.assert_nothing_left()
    assert len(exits.seen) == alive


@every_harm
async def test_create_is_whole_or_nothing(place: Place, harm: str, when: str, record_property: Points) -> None:
    async with scene(place) as it:
        it.proxy.arm()
        await it.create()
        assert it.proxy.calls == CREATE
        await it.end()
        for number in range(len(CREATE)):
            result = await broken(it, Scene.create, number, harm, when)
            assert result.reached, f"call {number} was never made"
            if result.failure is not None:
                await place.assert_nothing_left()
                await it.create()
            await it.end()
    it.assert_sinks_closed_once()
    record_property("points", len(CREATE))


@most_harms
async def test_a_failing_create_leaves_nothing(place: Place, harm: str, when: str, record_property: Points) -> None:
    async def fail(it: Scene) -> None:
        await it.executor.create(ID, place.command(ID, [MISSING]), *it.two_sinks())

    async with scene(place) as it:
        number, reached, failure = 0, True, ""
        while reached:
            result = await broken(it, fail, number, harm, when)
            assert result.failure is not None
            await place.assert_nothing_left()
            number, reached, failure = number + 1, result.reached, str(result.failure)
        assert MISSING in failure
        assert number > len(CREATE), "the undo makes calls too"
        assert not it.exits.seen
    it.assert_sinks_closed_once()
    record_property("points", number - 1)


@most_harms
async def test_a_restore_is_whole_or_can_be_repeated(
    place: Place, harm: str, when: str, record_property: Points
) -> None:
    async def restore(it: Scene) -> None:
        assert await it.restore()

    for number in range(len(RESTORE)):
        pid = await leave_running(place)
        async with scene(place) as it:
            result = await broken(it, restore, number, harm, when)
            assert result.reached, f"call {number} was never made"
            if result.failure is not None:
                await restore(it)
            assert (await it.end()).pid == pid
        it.assert_sinks_closed_once()
    record_property("points", len(RESTORE))


@most_harms
async def test_a_restore_of_an_ended_one_tells_its_exit_once(
    place: Place, harm: str, when: str, record_property: Points
) -> None:
    number, reached = 0, True
    while reached:
        await leave_running(place)
        async with place.client() as client:
            await kill_task(client, ID)
        async with scene(place) as it:
            result = await broken(it, Scene.restore, number, harm, when)
            if result.failure is not None:
                assert not await it.restore()
            exit = it.executor.last_exit(ID)
            assert exit
            assert exit.code in (KILLED, None)
            assert exit.code == KILLED or result.failure, "without a failure the code is known"
            await place.assert_nothing_left()
            assert not it.exits.seen
        it.assert_sinks_closed_once()
        number, reached = number + 1, result.reached
    assert number > len(RESTORE)
    record_property("points", number - 1)


@most_harms
async def test_an_exit_is_told_once_and_everything_removed(
    place: Place, harm: str, when: str, record_property: Points
) -> None:
    async def end(it: Scene) -> None:
        os.kill(await it.pid(), signal.SIGKILL)
        await eventually(lambda: it.exits.seen)

    number, reached = 0, True
    while reached:
        async with scene(place) as it:
            await it.create()
            result = await broken(it, end, number, harm, when)
            await place.assert_nothing_left()
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
    place: Place, harm: str, when: str, record_property: Points
) -> None:
    async def interrupt(it: Scene) -> None:
        await it.executor.signal(ID, signal.SIGCONT)

    async def kill(it: Scene) -> None:
        await it.executor.signal(ID, signal.SIGKILL)

    async with scene(place) as it:
        await it.create()
        result = await broken(it, interrupt, 0, harm, when)
        assert result.reached
        assert result.failure is not None
        assert not it.exits.seen
        result = await broken(it, kill, 0, harm, when)
        assert result.reached
        with suppress(errors.NotFound):
            await kill(it)
        await eventually(lambda: it.exits.seen)
        await place.assert_nothing_left()
        assert [exit.code for exit in it.exits.seen] == [KILLED]
    it.assert_sinks_closed_once()
    record_property("points", 2)


@most_harms
async def test_what_a_broken_create_left_is_found_by_the_next_process(
    place: Place, harm: str, when: str, record_property: Points
) -> None:
    for number in range(len(CREATE)):
        async with scene(place) as it:
            result = await broken(it, Scene.create, number, harm, when)
            assert result.reached
        await clear_as_the_next_process(place)
    record_property("points", len(CREATE))

"""What the log says of a plugin's life: one line for each step, of one form, at a level by which it can be filtered."""

import logging
import re
from typing import Any

import pytest

from moorage import errors
from moorage.engine.changes.values import PolicyChange
from moorage.engine.telemetry import log_exit, log_step
from moorage.engine.values import LastExit
from support.engine_scenario import P, script, state, until
from support.engine_scenario import play as play
from support.engine_world import Script, World

pytestmark = pytest.mark.quick

TRY = r"next_try=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The lines of plugins so far, each with its level; and forgets them."""
    caplog.set_level(logging.INFO, "moorage.engine")

    def take() -> list[str]:
        found = [f"{each.levelname} {each.getMessage()}" for each in caplog.records]
        caplog.clear()
        return [each for each in found if f"plugin {P} " in each]

    return take


def test_m13_each_step_of_a_life_has_its_line(play: Any, lines: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            for name in (P.partition(":")[0], world.id(1)[:12]):  # whichever name the caller uses
                await engine.enable(name, 5)
                await engine.restart(name)
                await engine.disable(name, force=False)
            await engine.remove(P, force=False)
        steps = ("is enabled", "is ready", "is started again", "is ready", "is disabled")
        assert lines() == [f"INFO plugin {P} {step}" for step in (*steps, *steps, "is removed")]

    play(scene)


def test_m13_a_death_has_one_line_with_how_and_what_follows(play: Any, lines: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(most=2))
            await engine.enable(P, 5)
            lines()
            world.host.end_all(3)
            await until(lambda: state(engine) == "ready" and engine.get(P).restarts == 1)
            died, *others = lines()
            assert re.fullmatch(rf"WARNING plugin {P} exited: exit=3 oom=no restarts=0 {TRY}", died)
            assert [each.split()[0] for each in others] == ["INFO"] * len(others)
            (alive,) = world.host.alive()
            world.host.end(alive, 137, "SIGKILL")
            await until(lambda: state(engine) == "ready" and engine.get(P).restarts == 2)
            found = lines()
            assert re.fullmatch(
                rf"WARNING plugin {P} exited: exit=137 signal=SIGKILL oom=no restarts=1 {TRY}", found[0]
            )
            world.host.end_all(0)
            await until(lambda: state(engine) == "failed")
            assert lines() == [f"ERROR plugin {P} exited: exit=0 oom=no restarts=2 next_try=never"]

    play(scene)


def test_m13_a_start_that_fails_has_its_reason_and_what_follows(play: Any, lines: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            script(world, Script.EXITS)
            with pytest.raises(errors.MoorageError):
                await engine.enable(P, 5)
            (refused,) = lines()
            begin = "it exited with status 3 before it accepted a connection on"
            assert refused.startswith(f"WARNING plugin {P} is not enabled: exit=3 oom=no: {begin}")
            script(world, Script.LISTENS)
            await engine.enable(P, 5)
            script(world, Script.EXITS)
            lines()
            world.host.end_all(1)
            await until(lambda: engine.get(P).restarts == 2)
            (failed,) = (each for each in lines() if "does not start" in each)
            expected = rf"WARNING plugin {P} does not start: exit=3 oom=no restarts=1 {TRY}: {begin}"
            assert re.match(expected, failed)

    play(scene)


def test_m13_an_oom_kill_is_named(caplog: pytest.LogCaptureFixture) -> None:
    log_exit("p:1", LastExit(137, "SIGKILL", oom=True), 2, None)
    log_exit("p:1", LastExit(), 0, None)
    expected = ("exit=137 signal=SIGKILL oom=yes restarts=2", "exit=unknown oom=no restarts=0")
    assert caplog.messages == [f"plugin p:1 exited: {each} next_try=never" for each in expected]


def test_m13_a_value_can_forge_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_step("p:1", "is tagged", {"reference": "a\n<3>plugin q died\x1b[2J", "empty": "", "none": None})
    assert caplog.messages == ['plugin p:1 is tagged: reference="a\\n<3>plugin q died\\u001b[2J"']

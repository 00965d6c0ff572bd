"""What follows a stop that failed: nothing is forgotten, and nothing that is healthy is stopped."""

from typing import Any

import anyio
import pytest

from moorage import errors
from support.engine_scenario import P, actions, script, state, until
from support.engine_scenario import play as play
from support.engine_world import Script, World

pytestmark = pytest.mark.quick


def test_d14_a_restart_whose_stop_failed_starts_one_healthy_run(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable, match="still there 10 s after SIGKILL"):
                await engine.restart(P)
            assert state(engine) == "stopping"
            script(world, Script.LISTENS)
            world.host.end_all(137)
            await until(lambda: state(engine) == "ready")
            await anyio.sleep(100)
            view = engine.get(P)
            assert (view.enabled, view.state.value, view.restarts, view.problem) == (True, "ready", 0, "")
            assert world.host.alive() == [f"{view.id}.2"]
            assert world.host.started == 2
            assert actions(world) == ["enable", "ready", "ready"]

    play(scene)


def test_d14_the_end_of_the_run_after_that_is_still_seen(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable):
                await engine.restart(P)
            script(world, Script.LISTENS)
            world.host.end_all(137)
            await until(lambda: state(engine) == "ready")
            world.host.end_all(5)
            await until(lambda: state(engine) == "ready" and world.host.started == 3)
            view = engine.get(P)
            assert view.last_exit is not None
            assert (view.last_exit.code, view.restarts) == (5, 1)
            assert actions(world)[2:] == ["ready", "die", "restart", "ready"]

    play(scene)


@pytest.mark.parametrize("what", [Script.EXITS, Script.REFUSED])
def test_d14_a_start_after_a_failed_stop_that_fails_is_tried_again_once(play: Any, what: Script) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable):
                await engine.restart(P)
            script(world, what)
            world.host.end_all(137)
            await until(lambda: actions(world).count("restart") >= 2)
            script(world, Script.LISTENS)
            await until(lambda: state(engine) == "ready")
            await anyio.sleep(100)
            assert ("die" in actions(world)) is (what is Script.EXITS)
            assert len(world.host.alive()) == 1

    play(scene)


def test_d14_a_disable_after_a_failed_restart_counts(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable):
                await engine.restart(P)
            with pytest.raises(errors.Unavailable):
                await engine.disable(P, force=False)
            world.host.end_all(137)
            await until(lambda: state(engine) == "disabled")
            await anyio.sleep(100)
            assert (engine.get(P).enabled, world.host.started, actions(world)) == (False, 1, ["enable", "ready"])

    play(scene)


def test_d14_what_an_earlier_engine_has_added_is_removed_once_containerd_answers(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        left = world.host.base / "run/p" / world.id(1)[:12] / "exec-abc"
        left.mkdir()
        world.host.unremovable = 3
        async with world.run() as engine:
            assert (state(engine), engine.get(P).pid) == ("ready", 1001)
            assert left.exists(), "the only trace of a process that may run"
            await until(lambda: not left.exists())
            assert world.host.killed_processes == [(f"{world.id(1)}.1", "abc")] * 4

    play(scene)


@pytest.mark.parametrize("verb", ["restart", "disable"])
def test_d14_a_stop_that_containerd_prevented_is_finished_once_it_answers(play: Any, verb: str) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            world.host.is_unavailable = True
            with pytest.raises(errors.Unavailable):
                await (engine.restart(P) if verb == "restart" else engine.disable(P, force=False))
            assert state(engine) == "stopping"
            await anyio.sleep(300)
            assert (state(engine), world.host.started) == ("stopping", 1)
            world.host.is_unavailable = False
            expected = "ready" if verb == "restart" else "disabled"
            await until(lambda: state(engine) == expected, 30)
            assert engine.get(P).enabled is (verb == "restart")
            assert len(world.host.alive()) == (1 if verb == "restart" else 0)
            assert world.host.started == (2 if verb == "restart" else 1)

    play(scene)

"""When the engine makes, starts and discards the standby of a plugin: on a host in memory with a clock that jumps."""

from typing import Any

import anyio
import pytest

from moorage import errors
from moorage.engine.changes.values import PolicyChange
from moorage.engine.engine import Engine
from moorage.engine.lifecycle import STANDBY_AFTER, STEADY_AFTER, standby_delay
from moorage.plugins import Confinement
from support.engine_scenario import P, script, state, until
from support.engine_scenario import play as play
from support.engine_world import Script, World

pytestmark = pytest.mark.quick


async def with_standby(world: World, engine: Engine) -> str:
    """Enable the plugin; the container of its standby."""
    await engine.set_policy(P, PolicyChange(standby=True))
    if not engine.get(P).enabled:
        await engine.enable(P, 5)
    await until(lambda: engine.get(P).standby_pid)
    (container,) = prepared(world)
    return container


def prepared(world: World) -> list[str]:
    return sorted(each.id for each in world.host.containers.values() if each.is_prepared)


async def settled(world: World, engine: Engine) -> None:
    """A crash has led to a run that is ready."""
    await until(lambda: state(engine) == "ready" and world.host.alive())


def test_i17_a_standby_is_made_a_moment_after_ready_and_its_process_becomes_the_next_run(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(standby=True))
            await engine.enable(P, 5)
            id = engine.get(P).id
            assert world.host.prepared == 0
            waited = await until(lambda: engine.get(P).standby_pid)
            assert STANDBY_AFTER <= waited < STANDBY_AFTER + 0.2
            pid = engine.get(P).standby_pid
            assert prepared(world) == [f"{id}.2"]
            for code in (1, 2):
                started = world.host.started
                world.host.end_all(code)
                await settled(world, engine)
                assert world.host.started == started, "nothing was created for it"
                assert engine.get(P).pid == pid
                assert engine.get(P).standby_pid is None
                await until(lambda: engine.get(P).standby_pid)
                pid = engine.get(P).standby_pid
            await engine.disable(P, force=False)
            assert not world.host.containers

    play(scene)


def test_i17_without_the_policy_none_is_made_and_a_change_of_it_makes_and_discards_one(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            await anyio.sleep(60)
            assert world.host.prepared == 0
            await with_standby(world, engine)
            await engine.set_policy(P, PolicyChange(standby=False))
            assert not prepared(world)
            assert engine.get(P).standby_pid is None
            await anyio.sleep(60)
            assert world.host.prepared == 1
            world.host.end_all(1)
            await settled(world, engine)

    play(scene)


def test_i17_a_crash_loop_makes_none() -> None:
    assert [standby_delay(failures) for failures in (0, 1, 2, 9)] == [STANDBY_AFTER, STANDBY_AFTER, 10.0, 10.0]


def test_i17_a_plugin_that_crashes_again_and_again_gets_one_when_it_is_steady(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await with_standby(world, engine)
            for _ in range(2):
                world.host.end_all(1)
                await settled(world, engine)
            assert world.host.prepared == 1
            for _ in range(5):
                world.host.end_all(1)
                await settled(world, engine)
                await anyio.sleep(2 * STANDBY_AFTER)
            assert world.host.prepared == 1
            assert await until(lambda: engine.get(P).standby_pid) < STEADY_AFTER

    play(scene)


@pytest.mark.parametrize("how", ["disable", "remove", "stop all", "give up", "restart"])
def test_i17_what_ends_a_plugin_discards_its_standby(play: Any, how: str) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            before = await with_standby(world, engine)
            if how == "disable":
                await engine.disable(P, force=False)
            elif how == "remove":
                await engine.remove(P, force=True)
            elif how == "stop all":
                assert not await engine.stop_all()
            elif how == "restart":
                await engine.restart(P)
                assert [*world.host.containers] == [before]  # the usual way, under the id that the next run has
                assert engine.get(P).pid == 1002
                return
            else:
                await engine.set_policy(P, PolicyChange(restarts="never"))
                world.host.end_all(1)
                await until(lambda: state(engine) == "failed" and not world.host.containers)
            assert not world.host.containers

    play(scene)


def test_i17_a_stop_does_not_wait_for_a_standby_that_is_being_made(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(standby=True))
            await engine.enable(P, 5)
            executor = world.host.executor
            assert executor
            id = f"{engine.get(P).id}.2"
            await until(lambda: executor.owns(id) and not prepared(world))
            await engine.disable(P, force=False)
            assert not world.host.containers
            assert not executor.owns(id)
            await anyio.sleep(60)
            assert world.host.prepared == 0

    play(scene)


@pytest.mark.parametrize("what", ["sources", "limits", "lost", "refused"])
def test_i17_a_standby_that_is_not_what_a_start_would_create_now_is_not_used(play: Any, what: str) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            container = await with_standby(world, engine)
            owner, executor = engine.get(P).id, world.host.executor
            assert executor
            if what == "sources":
                (world.host.base / "sources").write_text("another file\n")
            elif what == "limits":
                plugin = engine._plugins.get(P)
                await plugin.save(confinement=Confinement(oom_score_adj=7))
            elif what == "refused":
                world.host.start_refusals[owner] = errors.MoorageError("its process has exited")
            else:
                executor.lose(container)
            started = world.host.started
            world.host.end_all(1)
            await settled(world, engine)
            assert world.host.started == started + 1, "it was created the usual way"
            assert world.host.alive() == [container]
            assert not prepared(world)

    play(scene)


def test_i17_a_change_of_limits_makes_another_one(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await with_standby(world, engine)
            await engine.set_policy(P, PolicyChange(confinement=Confinement(oom_score_adj=7)))
            assert not prepared(world)
            await until(lambda: engine.get(P).standby_pid)
            started = world.host.started
            world.host.end_all(1)
            await settled(world, engine)
            assert world.host.started == started

    play(scene)


def test_i17_one_that_is_lost_or_cannot_be_made_is_made_later(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            container = await with_standby(world, engine)
            owner, executor = engine.get(P).id, world.host.executor
            assert executor
            world.host.standby_refusals[owner] = errors.MoorageError("in this test")
            executor.lose(container)
            await anyio.sleep(30)
            assert not prepared(world)
            assert state(engine) == "ready"
            world.host.standby_refusals.clear()
            await until(lambda: prepared(world))
            assert prepared(world) == [container]

    play(scene)


def test_i17_a_standby_that_is_started_and_does_not_become_ready_is_a_failed_start_as_any(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await with_standby(world, engine)
            script(world, Script.EXITS)
            world.host.end_all(1)
            await until(lambda: state(engine) == "restarting")
            assert not prepared(world)
            script(world, Script.LISTENS)
            await settled(world, engine)

    play(scene)


def test_i17_the_next_engine_removes_what_it_finds_and_makes_another_one(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            container = await with_standby(world, engine)
            pid = engine.get(P).standby_pid
        assert prepared(world) == [container]
        async with world.run() as engine:
            await until(lambda: engine.get(P).standby_pid)
            assert engine.get(P).standby_pid != pid
            assert prepared(world) == [container]
            assert len(world.host.containers) == 2
            await engine.disable(P, force=False)
            assert not world.host.containers

    play(scene)


@pytest.mark.parametrize("do", ["make", "start", "discard"])
def test_i17_an_engine_that_is_killed_at_any_moment_leaves_a_run_and_a_standby_at_most(play: Any, do: str) -> None:
    async def scene(world: World) -> None:
        for number in range(24):
            async with world.run() as engine:
                await engine.set_policy(P, PolicyChange(standby=True))
                if engine.get(P).enabled:
                    await engine.disable(P, force=False)
                await engine.enable(P, 5)
                if do != "make":
                    await until(lambda: engine.get(P).standby_pid)
                if do == "start":
                    world.host.end_all(1)
                await anyio.sleep(0.005 * number + (STANDBY_AFTER - 0.02 if do == "make" else 0.0))
                if do == "discard":
                    with anyio.move_on_after(0.003 * number):
                        await engine.disable(P, force=False)
            async with world.run() as engine:
                await anyio.sleep(3 * STANDBY_AFTER)
                view = engine.get(P)
                assert view.state.value == ("ready" if view.enabled else "disabled"), number
                assert len(world.host.alive()) == view.enabled, number
                if not view.enabled:
                    assert not world.host.containers, number
                    continue
                await until(lambda: engine.get(P).standby_pid)
                assert len(world.host.containers) == 2, number

    play(scene)

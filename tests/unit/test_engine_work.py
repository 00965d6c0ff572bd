"""What the engine does with one plugin, step by step, on a host in memory with a clock that jumps."""

import re
from contextlib import suppress
from typing import Any

import anyio
import pytest

from moorage import errors
from moorage.engine.changes.values import PolicyChange
from moorage.engine.lifecycle import BACK_OFF_LIMIT, STEADY_AFTER
from support.engine_scenario import P, actions, script, state, until
from support.engine_scenario import play as play
from support.engine_world import TIMEOUTS, Container, Script, World

pytestmark = pytest.mark.quick


def test_enable_disable_and_enable_again(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            view = engine.get(P)
            assert (view.enabled, view.state.value, view.restarts, view.pid) == (True, "ready", 0, 1001)
            assert world.host.alive() == [f"{view.id}.1"]
            with pytest.raises(errors.Conflict, match=r"plugin already enabled: plugin p1:latest is enabled"):
                await engine.enable(P, 5)
            await engine.disable(P, force=False)
            assert (engine.get(P).enabled, state(engine), world.host.alive()) == (False, "disabled", [])
            with pytest.raises(errors.Conflict, match=r"already disabled: plugin p1:latest found but disabled"):
                await engine.disable(P, force=False)
            await engine.enable(P, 5)
            assert world.host.alive() == [f"{view.id}.2"]
            assert actions(world) == ["enable", "ready", "disable", "enable", "ready"]

    play(scene)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (Script.SILENT, r"it did not accept a connection on \S+ within 5 s; it wrote nothing"),
        (Script.EXITS, r"it exited with status 3 before it accepted a connection on \S+"),
        (Script.REFUSED, r"no such file or directory"),
    ],
)
def test_m04_a_failed_enable_gives_its_reason_and_leaves_it_disabled(play: Any, what: Script, words: str) -> None:
    async def scene(world: World) -> None:
        script(world, what)
        async with world.run() as engine:
            with pytest.raises(errors.MoorageError, match=f"cannot enable plugin p1:latest: .*{words}"):
                await engine.enable(P, 5)
            view = engine.get(P)
            assert (view.enabled, view.state.value, world.host.alive()) == (False, "disabled", [])
            assert view.last_exit is not None
            assert (view.last_exit.code == 3) is (what is Script.EXITS)
            assert world.store.load().records[0].enabled is False
            assert actions(world) == (["failed"] if what is Script.REFUSED else ["die", "failed"])
            assert re.search(words, world.events[-1].attributes["error"] + "; it wrote nothing")

    play(scene)


def test_m05_pauses_double_up_to_a_minute_and_a_steady_run_begins_anew(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            script(world, Script.EXITS)
            pauses = []
            for _ in range(15):
                started = world.host.started
                world.host.end_all(1)
                pauses.append(await until(lambda started=started: world.host.started > started))  # type: ignore[misc]
            limits = [0.0, *(min(BACK_OFF_LIMIT, 0.1 * 2**number) for number in range(14))]
            for pause, limit in zip(pauses, limits, strict=True):
                assert limit / 2 <= pause <= limit + 0.3, (pauses, limits)
            assert engine.get(P).next_try_at is None or state(engine) == "restarting"
            assert world.store.load().records[0].failures >= 14
            script(world, Script.LISTENS)
            await until(lambda: state(engine) == "ready")
            await anyio.sleep(STEADY_AFTER)
            world.host.end_all(1)
            assert await until(lambda: state(engine) != "ready" and world.host.alive()) < 0.2
            assert world.store.load().records[0].failures == 1

    play(scene)


@pytest.mark.parametrize(
    ("policy", "code", "is_started_again"),
    [
        ("always", 0, True),
        ("always", 1, True),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
        ("never", 0, False),
        ("never", 1, False),
    ],
)
def test_m05_the_policy_says_what_is_started_again(play: Any, policy: str, code: int, is_started_again: bool) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(policy))
            await engine.enable(P, 5)
            world.host.end_all(code)
            await anyio.sleep(5)
            view = engine.get(P)
            assert view.enabled
            assert view.state.value == ("ready" if is_started_again else "failed")
            assert view.restarts == int(is_started_again)
            assert view.last_exit is not None
            assert view.last_exit.code == code
            assert actions(world)[2:] == (["die", "restart", "ready"] if is_started_again else ["die", "failed"])
            await engine.restart(P)
            assert state(engine) == "ready"

    play(scene)


def test_m05_a_number_of_restarts_in_a_row_ends_it(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(most=3))
            await engine.enable(P, 5)
            script(world, Script.EXITS)
            world.host.end_all(1)
            await until(lambda: state(engine) == "failed")
            assert world.host.started == 4
            await engine.disable(P, force=False)
            assert engine.get(P).enabled is False

    play(scene)


def test_m06_a_process_that_cannot_be_killed_is_reported_and_never_taken_for_exited(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            started_at = anyio.current_time()
            with pytest.raises(errors.Unavailable, match=r"its process \(pid 1001\) is still there 10 s after SIGKILL"):
                await engine.disable(P, force=False)
            assert anyio.current_time() - started_at == pytest.approx(TIMEOUTS.stop + TIMEOUTS.killed, abs=0.1)
            view = engine.get(P)
            assert (view.enabled, view.state.value) == (False, "stopping")
            assert "still there" in view.problem
            with pytest.raises(errors.Conflict):
                await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable):
                await engine.remove(P, force=True)
            assert len(world.host.alive()) == 1
            world.host.end_all(137)
            await until(lambda: state(engine) == "disabled")
            script(world, Script.LISTENS)
            await engine.enable(P, 5)
            assert engine.get(P).problem == ""

    play(scene)


def test_m06_one_that_ignores_term_is_killed_after_its_own_time(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.DEAF)
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(stop_timeout=3))
            await engine.enable(P, 5)
            started_at = anyio.current_time()
            await engine.disable(P, force=False)
            assert anyio.current_time() - started_at == pytest.approx(3, abs=0.1)

    play(scene)


def test_m12_a_disable_cuts_a_start_off_and_a_pause_too(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.SILENT)
        async with world.run() as engine:
            refused: list[str] = []

            async def enable() -> None:
                try:
                    await engine.enable(P, 1000)
                except errors.Conflict as error:
                    refused.append(str(error))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(enable)
                await anyio.sleep(1)
                await engine.disable(P, force=False)
            assert refused == ["cannot enable plugin p1:latest: a stop was requested while it started"]
            assert (engine.get(P).enabled, world.host.alive()) == (False, [])
            script(world, Script.LISTENS)
            await engine.enable(P, 5)
            script(world, Script.REFUSED)
            world.host.end_all(1)
            await anyio.sleep(30)
            assert state(engine) == "restarting"
            started_at = anyio.current_time()
            await engine.disable(P, force=False)
            assert anyio.current_time() - started_at < 0.1
            started = world.host.started
            await anyio.sleep(300)
            assert (state(engine), world.host.started) == ("disabled", started)

    play(scene)


def test_while_containerd_is_unavailable_starts_are_tried_every_second(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            world.host.end_all(1)
            world.host.is_unavailable = True
            await anyio.sleep(20)
            assert state(engine) == "restarting"
            world.host.is_unavailable = False
            assert await until(lambda: state(engine) == "ready") < 1.5
            assert engine.get(P).restarts == 1

    play(scene)


def test_m08_the_next_engine_takes_over_what_runs_and_counts_what_exited(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        async with world.run() as engine:
            assert (state(engine), engine.get(P).pid, world.host.started) == ("ready", 1001, 1)
            assert actions(world) == []
        world.host.end_all(9)
        async with world.run(start=False) as engine:
            view = engine.get(P)
            assert (view.enabled, view.state.value, world.host.started) == (True, "disabled", 1)
        async with world.run() as engine:
            await until(lambda: state(engine) == "ready")
            assert world.host.started == 2

    play(scene)


def test_m10_an_exit_while_no_engine_ran_is_the_last_exit(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        world.host.end_all(9)
        async with world.run() as engine:
            await until(lambda: state(engine) == "ready")
            view = engine.get(P)
            assert view.last_exit is not None
            assert (view.last_exit.code, view.restarts) == (9, 1)

    play(scene)


def test_case_231_a_container_of_another_program_is_reported_and_left_alone(play: Any) -> None:
    async def scene(world: World) -> None:
        world.host.containers["web"] = Container("web", "", Script.LISTENS, 7)
        async with world.run() as engine:
            await engine.enable(P, 5)
            assert engine.info().notices == (
                "container web (of another program) in namespace test is not this engine's",
            )
            assert world.host.alive() == [f"{world.id(1)}.1", "web"]
            await engine.remove(P, force=True)
        assert world.host.alive() == ["web"]

    play(scene)


def test_m16_what_is_left_of_a_plugin_is_removed_before_it_starts(play: Any) -> None:
    async def scene(world: World) -> None:
        orphan = f"{world.id(1)}.7"
        world.host.containers[orphan] = Container(orphan, world.id(1), Script.LISTENS, 7)
        async with world.run() as engine:
            assert world.host.containers == {}
            world.host.containers[orphan] = Container(orphan, world.id(1), Script.LISTENS, 7)
            await engine.enable(P, 5)
            assert world.host.alive() == [f"{world.id(1)}.1"]

    play(scene)


def test_m13_a_plugin_in_use_is_disabled_only_by_force(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            with pytest.raises(errors.Conflict, match="cannot add a holder to plugin p1:latest: it is disabled"):
                await engine.acquire(P, "v1", is_attached=False)
            await engine.enable(P, 5)
            user = await engine.acquire(P, "v1", is_attached=False)
            await engine.acquire(P, "a2", is_attached=True)
            with pytest.raises(errors.Conflict, match="plugin p1:latest is in use by a2, v1"):
                await engine.disable(P, force=False)
            with pytest.raises(errors.Conflict, match="plugin p1:latest is in use by a2, v1"):
                await engine.remove(P, force=False)
            assert state(engine) == "ready"
        async with world.run() as engine:
            assert [holder.owner for holder in engine.get(P).holders] == ["v1"]
            await engine.release(P, user.token)
            with pytest.raises(errors.NotFound):
                await engine.release(P, user.token)
            await engine.acquire(P, "v1", is_attached=False)
            await engine.disable(P, force=True)
            assert engine.get(P).holders == ()

    play(scene)


def test_m17_two_forced_stops_wait_for_one_that_is_attached_and_both_see_it_go(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            holder = await engine.acquire(P, "a2", is_attached=True)

            async def let_go() -> None:
                await engine.wait_release_requested(P, holder.token)
                await anyio.sleep(1)
                await engine.release(P, holder.token)

            async def disable() -> None:
                with suppress(errors.Conflict):  # the second one finds it disabled
                    await engine.disable(P, force=True)

            started_at = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for each in (let_go, disable, disable):
                    tasks.start_soon(each)
            assert anyio.current_time() - started_at == pytest.approx(1, abs=0.5)
            assert state(engine) == "disabled"

    play(scene)


def test_a_removal_that_something_stands_in_the_way_of_is_tried_again(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Conflict, match="plugin p1:latest is enabled"):
                await engine.remove(P, force=False)
            world.host.stuck_images = 3
            with pytest.raises(errors.Unavailable, match="cannot remove plugin p1:latest yet, it is tried again"):
                await engine.remove(P, force=True)
            assert state(engine) == "removing"
            await until(lambda: not engine.list())
            assert world.host.images == set()
            assert list(world.store.plugins.iterdir()) == []

    play(scene)


def test_a_removal_that_was_cut_off_goes_on_with_the_next_engine(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            world.host.stuck_images = 100
            with pytest.raises(errors.Unavailable):
                await engine.remove(P, force=False)
        world.host.stuck_images = 0
        async with world.run() as engine:
            assert engine.list() == []
            assert world.host.images == set()

    play(scene)


def test_m14_stop_all_changes_no_desired_state(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            assert await engine.stop_all() == []
            assert (engine.get(P).enabled, world.host.alive()) == (True, [])
        async with world.run() as engine:
            await until(lambda: state(engine) == "ready")

    play(scene)


def test_without_containerd_nothing_is_promised(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            pass
        with pytest.raises(errors.Unavailable, match="cannot do that now: the engine is being stopped"):
            engine._context.availability.require()

    play(scene)


def test_a_restart_of_one_that_does_not_come_up_goes_on_trying(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            with pytest.raises(errors.Conflict, match="cannot restart plugin p1:latest: it is disabled"):
                await engine.restart(P)
            await engine.enable(P, 5)
            script(world, Script.REFUSED)
            with pytest.raises(errors.MoorageError, match=r"cannot restart plugin p1:latest: .*it is tried again"):
                await engine.restart(P)
            assert engine.get(P).enabled
            script(world, Script.LISTENS)
            await until(lambda: state(engine) == "ready")

    play(scene)


def _leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group

"""What the engine promises where things go wrong: words, events, what is on disk, and when it tries again."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from moorage import errors
from moorage.engine.changes.values import PolicyChange
from moorage.engine.engine import Engine
from moorage.engine.lifecycle import RestartPolicy, Restarts, State
from moorage.engine.values import LastExit, PluginRecord
from moorage.executor import Exit
from moorage.runs.exit_text import describe_exit
from support.engine_scenario import P, actions, script, state, until
from support.engine_scenario import play as play
from support.engine_world import EPOCH, TIMEOUTS, Container, Script, Taker, World

pytestmark = pytest.mark.quick

NO_PROGRAM = "there is no /p in the plugin's root file system"
REFUSAL = 'exec: "/p": no such file or directory'


def record(world: World) -> PluginRecord:
    """What is on disk."""
    return world.store.load().records[0]


async def failure_of(engine: Engine, within: float = 5) -> errors.MoorageError:
    """Why an enable failed."""
    with pytest.raises(errors.MoorageError) as caught:
        await engine.enable(P, within)
    return caught.value


def last_error(engine: Engine) -> str:
    last = engine.get(P).last_exit
    assert last is not None
    return last.error


# ---- words


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (None, "exited with unknown status"),
        (Exit("c", "r", None), "exited with unknown status"),
        (Exit("c", "r", 137, "SIGKILL", oom=True), "was OOM-killed (exit status 137)"),
        (Exit("c", "r", 143, "SIGTERM"), "was killed by SIGTERM (exit status 143)"),
        (Exit("c", "r", 0), "exited with status 0"),
    ],
)
def test_m04_an_end_in_words(exit: Exit | None, words: str) -> None:
    assert describe_exit(exit) == words


@pytest.mark.parametrize("what", [Script.EXITS, Script.SILENT])
def test_m04_a_failed_enable_has_the_last_ten_lines_of_this_run(play: Any, what: Script) -> None:
    async def scene(world: World) -> None:
        script(world, what)
        world.host.output[world.id(1)] = [f"line {number}" for number in range(12)]
        async with world.run() as engine:
            logs = world.store.root / "logs" / world.id(1)
            logs.mkdir(parents=True)
            long_ago = datetime.now(UTC) - timedelta(hours=1)
            (logs / "current").write_text(f"{long_ago.isoformat(timespec='microseconds')} stdout of an earlier run\n")
            failure = str(await failure_of(engine))
            last_lines = "; its last output:\n" + "\n".join(f"line {number}" for number in range(2, 12))
            assert failure.endswith(last_lines)
            assert failure == f"cannot enable plugin {P}: {last_error(engine)}"
            world.host.output[world.id(1)] = ["only this"]
            failure = str(await failure_of(engine))
            assert failure.endswith("; its last output:\nonly this")

    play(scene)


def test_m04_what_is_wrong_with_the_program_is_reported(play: Any) -> None:
    async def scene(world: World) -> None:
        program = world.host.base / "program"
        async with world.run() as engine:
            script(world, Script.REFUSED)
            assert str(await failure_of(engine)) == f"cannot enable plugin {P}: {NO_PROGRAM} ({REFUSAL})"
            script(world, Script.EXITS)
            socket = engine.get(P).socket
            before = f"cannot enable plugin {P}: it exited with status 3 before it accepted a connection on {socket}"
            assert str(await failure_of(engine)) == f"{before}: {NO_PROGRAM}; it wrote nothing"
            program.write_bytes(b"#!/p\n")
            assert str(await failure_of(engine)) == f"{before}; it wrote nothing"
            script(world, Script.REFUSED)
            assert str(await failure_of(engine)) == f"cannot enable plugin {P}: {REFUSAL}"

    play(scene)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (errors.NotFound("no such snapshot"), errors.MoorageError),
        (errors.Conflict("container exists"), errors.MoorageError),
        (errors.Invalid("bad mount"), errors.Invalid),
        (errors.Unavailable("containerd is away"), errors.Unavailable),
    ],
)
def test_a02_what_containerd_lacks_is_no_plugin_that_is_unknown(
    play: Any, refusal: errors.MoorageError, kind: type[errors.MoorageError]
) -> None:
    async def scene(world: World) -> None:
        world.host.refusals[world.id(1)] = refusal
        async with world.run() as engine:
            failure = await failure_of(engine)
            assert type(failure) is kind
            assert str(refusal) in str(failure)

    play(scene)


def test_m06_a_process_that_does_not_exit_is_reported_without_an_unknown_pid(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        world.host.hides_pids = True
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable, match="its process is still there 10 s after SIGKILL"):
                await engine.disable(P, force=False)

    play(scene)


def test_m13_events_have_the_name_that_the_caller_used(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable("p1", 5)
            await engine.restart("p1")
            await engine.disable("p1", force=False)
            script(world, Script.SILENT)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(failure_of, engine, 100)
                await anyio.sleep(1)
                await engine.disable("p1", force=False)
            await engine.remove("p1", force=False)
            assert [(each.action, each.name) for each in world.events] == [
                ("enable", "p1"),
                ("ready", P),
                ("restart", P),
                ("ready", P),
                ("disable", "p1"),
                ("disable", "p1"),
                ("remove", "p1"),
            ]

    play(scene)


def test_m13_an_exit_reports_its_code_its_signal_and_the_pause(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            world.host.end_all(137)
            await until(lambda: actions(world).count("ready") == 2)
            before = datetime.now(UTC)
            world.host.end_all(3)
            await until(lambda: "backoff" in actions(world))
            deaths = [each.attributes for each in world.events if each.action == "die"]
            assert deaths == [{"code": "137", "oom": "false", "signal": "SIGKILL"}, {"code": "3", "oom": "false"}]
            (pause,) = [each.attributes for each in world.events if each.action == "backoff"]
            assert list(pause) == ["seconds"]
            assert 0.05 <= float(pause["seconds"]) <= 0.1
            assert actions(world) == ["enable", "ready", "die", "restart", "ready", "die", "backoff"]
            next_try = engine.get(P).next_try_at
            assert next_try is not None
            assert record(world).next_try_at == next_try
            assert (next_try - before).total_seconds() > float(pause["seconds"]) - 0.001
            assert (next_try - datetime.now(UTC)).total_seconds() < 60
            await until(lambda: state(engine) == "ready")
            assert (engine.get(P).next_try_at, record(world).next_try_at) == (None, None)
            assert actions(world)[-2:] == ["restart", "ready"]

    play(scene)


# ---- starts that fail


@pytest.mark.parametrize("what", [Script.DEAF_AND_SILENT, Script.SILENT])
def test_m04_a_failed_start_is_killed_without_a_stop_signal(play: Any, what: Script) -> None:
    async def scene(world: World) -> None:
        script(world, what)
        async with world.run() as engine:
            started_at = anyio.current_time()
            await failure_of(engine, within=5)
            assert anyio.current_time() - started_at == pytest.approx(5, abs=0.2)
            assert world.host.exits == {}
            started_at = anyio.current_time()
            failure = await failure_of(engine, within=0)
            assert anyio.current_time() - started_at == pytest.approx(TIMEOUTS.ready, abs=0.2)
            assert f"within {TIMEOUTS.ready:g} s" in str(failure)

    play(scene)


def test_m05_a_restart_that_does_not_come_up_is_killed_at_once_and_keeps_its_root(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            root = world.host.base / "run/p" / world.id(1)[:12] / "root"
            mark = root / "mounted"
            mark.touch()
            script(world, Script.DEAF_AND_SILENT)
            world.host.output[world.id(1)] = ["nobody listens"]
            world.host.end_all(1)
            await until(lambda: world.host.started == 2)
            took = await until(lambda: world.host.started == 3)
            assert took == pytest.approx(TIMEOUTS.ready, abs=0.5)
            assert last_error(engine).endswith("within 30 s; its last output:\nnobody listens")
            assert mark.exists()
            assert engine.get(P).restarts == 2
            await engine.disable(P, force=False)
            assert not root.exists()

    play(scene)


def test_m05_a_start_that_cannot_be_undone_is_tried_every_second_and_counts_as_none(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            script(world, Script.IMMORTAL_AND_SILENT)
            world.host.end_all(1)
            await until(lambda: "still there" in engine.get(P).problem)
            await anyio.sleep(60)
            assert (engine.get(P).restarts, world.host.started) == (1, 2)
            script(world, Script.LISTENS)
            world.host.end_all(137)
            await until(lambda: state(engine) == "ready")
            assert (engine.get(P).problem, world.host.started) == ("", 3)

    play(scene)


def test_m05_a_restart_of_the_user_begins_a_new_row(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            for _ in range(3):
                world.host.end_all(1)
                await until(lambda: state(engine) == "restarting" or bool(world.host.alive()))
                await until(lambda: state(engine) == "ready")
            assert record(world).failures == 3
            await engine.restart(P)
            assert record(world).failures == 0
            script(world, Script.SILENT)
            started_at = anyio.current_time()
            with pytest.raises(errors.MoorageError, match="within 30 s"):
                await engine.restart(P)
            assert anyio.current_time() - started_at == pytest.approx(TIMEOUTS.ready, abs=0.5)
            assert "did not accept" in last_error(engine)
            assert (record(world).failures, record(world).enabled) == (1, True)

    play(scene)


def test_m06_a_restart_is_cut_off_by_a_disable(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            script(world, Script.SILENT)
            refused: list[str] = []

            async def restart() -> None:
                try:
                    await engine.restart(P)
                except errors.Conflict as error:
                    refused.append(str(error))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(restart)
                await anyio.sleep(1)
                await engine.disable(P, force=False)
            assert refused == [f"cannot restart plugin {P}: a stop was requested while it started"]
            assert (state(engine), record(world).enabled, world.host.alive()) == ("disabled", False, [])

    play(scene)


def test_m01_a_restart_whose_stop_failed_goes_on_when_the_process_ends_at_last(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(errors.Unavailable, match="still there"):
                await engine.restart(P)
            script(world, Script.LISTENS)
            world.host.end_all(137)
            await until(lambda: state(engine) == "ready")
            assert engine.get(P).enabled

    play(scene)


def test_m05_a_restart_that_ends_before_it_is_ready_is_a_failure_with_its_code(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange("on-failure"))
            await engine.enable(P, 5)
            script(world, Script.EXITS)
            world.host.end_all(1)
            await until(lambda: engine.get(P).restarts == 3)
            last = engine.get(P).last_exit
            assert (last and last.code, last and last.error[:23]) == (3, "it exited with status 3")

    play(scene)


# ---- stops


def test_m01_an_enabled_one_that_does_not_run_is_disabled_too(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            await engine.stop_all()
            await engine.disable(P, force=False)
            assert (engine.get(P).enabled, record(world).enabled) == (False, False)
            assert actions(world)[-1] == "disable"
            with pytest.raises(errors.Conflict, match="already disabled"):
                await engine.disable(P, force=False)

    play(scene)


def test_m05_a_disable_during_a_pause_leaves_no_pause_and_no_row(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            script(world, Script.REFUSED)
            world.host.end_all(1)
            await until(lambda: record(world).failures > 5 and state(engine) == "restarting")
            assert record(world).next_try_at is not None
            await engine.disable(P, force=False)
            assert (record(world).failures, record(world).next_try_at) == (0, None)

    play(scene)


@pytest.mark.parametrize("timeout", [0.0, 0.5])
def test_m06_a_short_stop_timeout_is_obeyed_and_zero_kills_at_once(play: Any, timeout: float) -> None:
    async def scene(world: World) -> None:
        script(world, Script.DEAF if timeout else Script.LISTENS)
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(stop_timeout=timeout))
            await engine.enable(P, 5)
            (container,) = world.host.containers.values()
            started_at = anyio.current_time()
            await engine.disable(P, force=False)
            assert anyio.current_time() - started_at == pytest.approx(timeout, abs=0.1)
            assert container.exit is not None
            assert container.exit.signal == "SIGKILL"

    play(scene)


def test_m06_a_stop_waits_for_a_containerd_that_is_unavailable_for_a_moment(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            (container,) = world.host.containers.values()
            world.host.is_unavailable = True

            async def come_back() -> None:
                await anyio.sleep(3)
                world.host.is_unavailable = False

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(come_back)
                await engine.disable(P, force=False)
            assert (state(engine), container.exit and container.exit.signal) == ("disabled", "SIGTERM")

    play(scene)


@pytest.mark.parametrize("verb", ["disable", "remove"])
def test_m06_m17_a_quicker_holder_is_not_cut_off(play: Any, verb: str) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            script(world, Script.REFUSED)
            world.host.end_all(1)
            await until(lambda: record(world).failures > 9 and state(engine) == "restarting")
            script(world, Script.LISTENS)
            refused: list[str] = []

            async def stop() -> None:
                try:
                    await getattr(engine, verb)(P, force=False)
                except errors.Conflict as error:
                    refused.append(str(error))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(engine.acquire, P, "v1", is_attached=False))
                tasks.start_soon(stop)
            assert refused == [f"plugin {P} is in use by v1"]
            if verb == "disable":  # it cut the pause off, so that it continues soon
                assert await until(lambda: state(engine) == "ready") < 1.5
            assert engine.get(P).enabled

    play(scene)


def test_m06_a_refused_stop_leaves_what_runs_alone(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(engine.acquire, P, "v1", is_attached=False))
                tasks.start_soon(_refused, engine)
            await anyio.sleep(5)
            assert (state(engine), world.host.started, engine.get(P).restarts) == ("ready", 1, 0)
            assert actions(world) == ["enable", "ready"]

    async def _refused(engine: Engine) -> None:
        with pytest.raises(errors.Conflict, match="is in use by v1"):
            await engine.disable(P, force=False)

    play(scene)


def test_m06_a_stop_that_the_disk_refuses_lets_the_start_that_it_cut_off_go_on(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            script(world, Script.SILENT)
            world.host.end_all(1)
            await until(lambda: state(engine) == "starting" and world.host.started == 2)
            store = engine._store
            store.is_full = True  # type: ignore[attr-defined]  # a KilledStore
            with pytest.raises(errors.Unavailable, match="no space left"):
                await engine.disable(P, force=False)
            assert engine.get(P).enabled
            store.is_full = False  # type: ignore[attr-defined]
            script(world, Script.LISTENS)
            assert await until(lambda: state(engine) == "ready") < 2.5
            assert world.host.alive() == [record(world).container]
            assert engine.get(P).restarts == 1

    play(scene)


def test_m17_a_forced_stop_waits_five_seconds_for_a_holder_that_does_not_release(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            holder = await engine.acquire(P, "a2", is_attached=True)
            requested: list[float] = []

            async def wait() -> None:
                await engine.wait_release_requested(P, holder.token)
                requested.append(anyio.current_time())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(50)
                assert requested == []
                started_at = anyio.current_time()
                await engine.disable(P, force=True)
            assert requested == [started_at]
            assert anyio.current_time() - started_at == pytest.approx(TIMEOUTS.let_go, abs=0.2)
            await engine.wait_release_requested(P, holder.token)  # there is none of this token any more

    play(scene)


# ---- removals


def test_m07_a_forced_removal_of_what_cannot_be_killed_leaves_it_disabled_without_holders(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.IMMORTAL)
        async with world.run() as engine:
            await engine.enable(P, 5)
            await engine.acquire(P, "v1", is_attached=False)
            with pytest.raises(errors.Unavailable, match="still there"):
                await engine.remove(P, force=True)
            assert (state(engine), record(world).enabled, record(world).holders) == ("stopping", False, ())

    play(scene)


def test_m07_a_removal_that_is_requested_again_is_the_same_one(play: Any, caplog: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            world.host.stuck_images = 2
            for _ in range(2):
                with pytest.raises(errors.Unavailable, match="cannot remove plugin p1:latest yet"):
                    await engine.remove(P, force=False)
            await engine.remove(P, force=False)
            assert engine.list() == []
            assert world.host.collections == 1
            await anyio.sleep(60)  # what was planned after the failures finds nothing to do

    play(scene)
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []


def test_m07_a_removed_one_is_disabled_whatever_its_state(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            await engine.stop_all()
            world.host.stuck_images = 1
            with pytest.raises(errors.Unavailable):
                await engine.remove(P, force=True)
            assert (engine.get(P).enabled, record(world).enabled, record(world).removing) == (False, False, True)

    play(scene)


# ---- taking over


def test_m08_a_run_that_was_cut_off_while_it_started_is_waited_for_and_then_started_again(play: Any) -> None:
    async def scene(world: World) -> None:
        script(world, Script.SILENT)
        async with world.run() as engine, anyio.create_task_group() as tasks:
            tasks.start_soon(_try_to_enable, engine)
            await until(lambda: world.host.started == 1)
            tasks.cancel_scope.cancel()
        world.host.output[world.id(1)] = ["nobody listens"]
        orphan = f"{world.id(1)}.7"

        async def fill() -> None:
            await anyio.sleep(10)
            script(world, Script.LISTENS)
            world.host.containers[orphan] = Container(orphan, world.id(1), Script.LISTENS, 7)

        started_at = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill)
            async with world.run() as engine:
                assert anyio.current_time() - started_at == pytest.approx(TIMEOUTS.ready, abs=0.5)
                assert "did not accept a connection" in last_error(engine)
                await until(lambda: state(engine) == "ready")
                assert world.host.alive() == [record(world).container]

    async def _try_to_enable(engine: Engine) -> None:
        with suppress(errors.MoorageError):
            await engine.enable(P, 100)

    play(scene)


def test_m16_what_is_there_beside_the_run_that_is_taken_over_is_removed(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        orphan = f"{world.id(1)}.7"
        world.host.containers[orphan] = Container(orphan, world.id(1), Script.LISTENS, 7)
        async with world.run() as engine:
            assert world.host.alive() == [f"{world.id(1)}.1"]
            taker = world.host.attached[f"{world.id(1)}.1"]
            assert isinstance(taker, Taker)
            assert (taker.key, taker.log.directory.name) == (f"{world.id(1)}.1", world.id(1))

    play(scene)


def test_m08_what_an_earlier_engine_has_added_to_a_plugin_is_stopped(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        left = world.host.base / "run/p" / world.id(1)[:12] / "exec-abc"
        left.mkdir()
        async with world.run() as engine:
            assert (state(engine), engine.get(P).pid) == ("ready", 1001)
            assert world.host.killed_processes == [(f"{world.id(1)}.1", "abc")]
            assert not left.exists()
        async with world.run():
            assert len(world.host.killed_processes) == 1

    play(scene)


def test_m08_an_exit_without_a_record_is_still_an_exit(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange("on-failure"))
            await engine.enable(P, 5)
        world.host.end_all(0)
        container = world.host.containers[f"{world.id(1)}.1"]
        container.exit = Exit(container.id, "run", None)
        async with world.run() as engine:
            await until(lambda: state(engine) == "ready")
            last = engine.get(P).last_exit
            assert last is not None
            assert (last.code, last.signal, engine.get(P).restarts) == (None, None, 1)

    play(scene)


def test_m08_what_containerd_cannot_report_is_queried_again(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        world.host.unrestorable = 3
        async with world.run() as engine:
            assert (state(engine), engine.get(P).problem) == ("disabled", "cannot reach containerd")
            assert await until(lambda: state(engine) == "ready") == pytest.approx(1 + 2 + 4, abs=0.5)
            view = engine.get(P)
            assert (view.pid, view.problem, world.host.started, view.restarts) == (1001, "", 1, 0)
        world.host.unrestorable = 1
        async with world.run() as engine:
            world.host.is_unavailable = True
            await anyio.sleep(20)
            world.host.is_unavailable = False
            assert await until(lambda: state(engine) == "ready") < 40
            assert (engine.get(P).pid, world.host.started) == (1001, 1)
        world.host.unrestorable = 1
        async with world.run() as engine:
            await engine.disable(P, force=False)
            await anyio.sleep(10)
            assert (state(engine), engine.get(P).enabled) == ("disabled", False)

    play(scene)


@pytest.mark.parametrize(
    ("policy", "code", "state_then"), [("on-failure", 0, "failed"), ("on-failure", 1, "ready"), ("never", 1, "failed")]
)
def test_m05_the_policy_applies_to_exits_while_no_engine_ran(
    play: Any, policy: str, code: int, state_then: str
) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.set_policy(P, PolicyChange(policy))
            await engine.enable(P, 5)
        world.host.end_all(code)
        async with world.run() as engine:
            assert state(engine) == state_then

    play(scene)


@pytest.mark.parametrize("failures", [0, 5])
def test_m05_a_row_of_failures_goes_on_over_a_restart_of_the_engine(play: Any, failures: int) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            while record(world).failures < failures or state(engine) != "ready":
                world.host.end_all(1)
                await anyio.sleep(0.05)
        started_at = anyio.current_time()
        world.host.end_all(1)
        async with world.run() as engine:
            await until(lambda: state(engine) == "ready")
            assert record(world).failures == failures + 1
        pause = anyio.current_time() - started_at
        assert 0.8 <= pause <= 2 if failures else pause < 0.3  # 0.1 s, doubled four times, or half of that

    play(scene)


def test_m08_a_plugin_restarted_before_the_next_query_is_left_alone(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        world.host.unrestorable = 1
        async with world.run() as engine:
            await engine.restart(P)
            await anyio.sleep(5)
            assert (state(engine), engine.get(P).pid, world.host.started) == ("ready", 1002, 2)
            assert world.host.alive() == [record(world).container]

    play(scene)


def test_m08_without_live_restore_what_runs_is_stopped_and_started_again(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        async with world.run(live_restore=False) as engine:
            await until(lambda: state(engine) == "ready")
            assert (engine.get(P).pid, engine.get(P).restarts, world.host.started) == (1002, 0, 2)
            assert world.host.alive() == [f"{world.id(1)}.2"]
            assert engine.info().live_restore is False
        async with world.run(start=False, live_restore=False) as engine:  # as `moorage down` does
            assert world.host.alive() == [f"{world.id(1)}.2"]
            assert (await engine.stop_all(), world.host.alive()) == ([], [])

    play(scene)


def test_m18_down_does_not_wait_for_one_that_does_not_come_up(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        world.host.containers[f"{world.id(1)}.1"].close()
        started_at = anyio.current_time()
        async with world.run(start=False) as engine:
            assert state(engine) == "starting"
            assert await engine.stop_all() == []
        assert anyio.current_time() - started_at < 1
        assert (world.host.alive(), world.host.started) == ([], 1)

    play(scene)


def test_m08_nothing_is_created_while_what_was_left_is_swept(play: Any) -> None:
    async def scene(world: World) -> None:
        world.host.sweeping = anyio.Event()

        async def serve() -> None:
            async with world.run():
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await anyio.sleep(5)
            with pytest.raises(errors.Unavailable, match="cannot do that now: containerd is not running yet"):
                await world.engine.create("q", _nothing())
            world.host.sweeping.set()
            await anyio.sleep(1)
            with pytest.raises(AttributeError):  # the host in memory takes no content: it got as far as that
                await world.engine.create("q", _nothing())
            tasks.cancel_scope.cancel()

    async def _nothing() -> AsyncIterator[bytes]:
        yield b""

    play(scene)


# ---- what is reported


def test_a05_a_view_has_all_that_is_known_of_a_plugin(play: Any) -> None:
    async def scene(world: World) -> None:
        made = replace(record(world), warnings=("odd",), digest="sha256:d", reference="reg.lan/p1:1")
        world.store.save(made)
        async with world.run() as engine:
            await engine.set(P, ["A=1"], [])
            await engine.set_policy(P, PolicyChange("on-failure", 3, 2.5))
            await engine.enable(P, 5)
            await engine.acquire(P, "kept", is_attached=False)
            await engine.acquire(P, "attached", is_attached=True)
            before = datetime.now(UTC)
            view = engine.get(P)
            assert (view.id, view.name, view.reference) == (world.id(1), P, "reg.lan/p1:1")
            assert (view.enabled, view.state, view.restarts, view.pid) == (True, State.READY, 0, 1001)
            assert (view.last_exit, view.next_try_at, view.problem) == (None, None, "")
            assert view.ready_at is not None
            assert abs((before - view.ready_at).total_seconds()) < 60
            assert view.socket == str(world.host.base / "run/p" / world.id(1)[:12] / "s/p.sock")
            assert view.policy == RestartPolicy(Restarts.ON_FAILURE, 3, 2.5)
            assert [each.owner for each in view.holders] == ["kept", "attached"]
            assert (view.warnings, view.digest) == (("odd",), "sha256:d")
            assert view.config.interface.socket == "p.sock"
            assert [each.name for each in view.privileges] == ["network"]
            assert ("A", "1") in view.settings.env
            world.host.end_all(3)
            await until(lambda: engine.get(P).restarts == 1)
            last = LastExit(3, None, False, EPOCH, "")
            assert engine.get(P).last_exit == last == record(world).last_exit
            await engine.disable(P, force=True)
            view = engine.get(P)
            assert (view.pid, view.ready_at, view.holders) == (None, None, ())

    play(scene)


def test_m05_an_exit_is_stored_completely() -> None:
    exit = Exit("c", "r", 137, "SIGKILL", oom=True, exited_at=EPOCH)
    assert LastExit.of(exit) == LastExit(137, "SIGKILL", True, EPOCH, "")
    assert LastExit.of(exit, "why") == LastExit(137, "SIGKILL", True, EPOCH, "why")


def test_m13_a_mount_whose_server_is_missing_is_reported(play: Any) -> None:
    async def scene(world: World) -> None:
        (world.host.base / "dead").write_text("/var/a\n/var/b\n")
        async with world.run() as engine:
            await engine.enable(P, 5)
            reported = [(each.name, each.attributes) for each in world.events if each.action == "unmount"]
            assert reported == [(P, {"path": "/var/a"}), (P, {"path": "/var/b"})]

    play(scene)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/run/x"), "/run/x: No space left on device"),
        (OSError("the disk is gone"), "the disk is gone"),
    ],
)
def test_m04_what_the_host_refuses_is_reported_with_its_path(play: Any, error: OSError, words: str) -> None:
    async def scene(world: World) -> None:
        world.host.refusals[world.id(1)] = error
        async with world.run() as engine:
            assert str(await failure_of(engine)) == f"cannot enable plugin {P}: {words}"
            assert (last_error(engine), engine.get(P).pid) == (words, None)

    play(scene)


def test_m06_without_containerd_a_stop_says_so_and_can_be_repeated(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            runtime = engine._availability.runtime
            engine._availability.set(None)
            with pytest.raises(errors.Unavailable, match=f"cannot stop plugin {P}: containerd is unavailable"):
                await engine.disable(P, force=False)
            assert (state(engine), engine.get(P).enabled) == ("stopping", False)
            assert engine.get(P).problem == f"cannot stop plugin {P}: containerd is unavailable"
            with pytest.raises(errors.Conflict, match=f"plugin already enabled: plugin {P} is stopping"):
                await engine.enable(P, 5)
            engine._availability.set(runtime)
            await engine.disable(P, force=False)
            assert (state(engine), engine.get(P).problem, world.host.alive()) == ("disabled", "", [])

    play(scene)


def test_m05_a_full_disk_stops_no_restart_and_loses_no_exit(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            store = engine._store
            store.is_full = True  # type: ignore[attr-defined]  # a KilledStore
            world.host.end_all(4)
            await until(lambda: state(engine) == "restarting")
            last = engine.get(P).last_exit
            assert (last and last.code, engine.get(P).restarts) == (4, 1)
            await anyio.sleep(20)
            store.is_full = False  # type: ignore[attr-defined]
            assert await until(lambda: state(engine) == "ready") < 1.5
            last = record(world).last_exit
            assert (last and last.code, record(world).restarts, record(world).next_try_at) == (4, 1, None)

    play(scene)

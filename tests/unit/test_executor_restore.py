"""The executor's restore, questions and signals on the fake (rows E20 to E31)."""

import signal

import anyio
import pytest

from moorage import errors
from moorage.containerd.types import RuntimeOptions, Status
from moorage.executor import RUN_LABEL, Exit
from support.conditions import eventually, settled
from support.fake_containerd import Call, FakeContainerd, Record
from support.fake_harness import at_call, fake_harness, leave, spec
from support.fake_streams import FakeInput
from support.sinks import Gate, Memory

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.PAUSING])
async def test_e20_what_lives_is_taken_over_with_its_output_and_its_exit(status: Status) -> None:
    world = FakeContainerd()
    await leave(world, status)
    task, run = world.tasks["a"], world.records["a"].labels[RUN_LABEL]
    task.stdout.data += b"while nobody read, "
    async with fake_harness(world) as it:
        assert await it.restore()
        await task.stdout.write(b"and after")
        world.end("a", 3)
        await eventually(lambda: it.exits.seen)
        assert it.sinks[0].data == b"while nobody read, and after"
        exit = it.exits.seen[0]
        assert (exit.id, exit.run, exit.code, exit.pid, exit.exited_at) == ("a", run, 3, task.pid, task.exited_at)
        assert not world.left()
    assert len(it.exits.seen) == 1


def half(world: FakeContainerd, what: str) -> None:
    """What a process that was killed, or a meddling user, may leave."""
    match what:
        case "no record":
            del world.records["a"]
        case "no record and no task":
            del world.records["a"], world.tasks["a"]
        case "no task":
            del world.tasks["a"]
        case "no fifos":
            del world.pipes["a"]
        case "no directory":
            del world.pipes["a"]
            world.bundles.clear()
        case "never started":
            world.tasks["a"].status = Status.CREATED
        case "stopped":
            world.end("a", 4)
        case "stopped without fifos":
            world.end("a", 4)
            del world.pipes["a"]
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("no record", 137),
        ("no record and no task", None),
        ("no task", None),
        ("no fifos", 137),
        ("no directory", 137),
        ("never started", None),
        ("stopped", 4),
        ("stopped without fifos", 4),
    ],
)
async def test_e21_what_does_not_live_is_removed_and_its_exit_remembered(what: str, code: int | None) -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    half(world, what)
    async with fake_harness(world) as it:
        assert not await it.restore()
        assert not world.left()
        exit = it.executor.last_exit("a")
        assert (exit.code if exit else None) == code
        assert (exit is None) == (code is None)
        await it.create()
        assert it.executor.last_exit("a") is None
    assert not it.exits.seen


async def test_e21_what_a_stopped_one_wrote_arrives_before_it_is_removed() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    world.tasks["a"].stdout.data += b"last words"
    world.end("a", 4)
    async with fake_harness(world) as it:
        assert not await it.restore()
        assert it.sinks[0].data == b"last words"


async def test_e21_nothing_at_all_is_no_error() -> None:
    async with fake_harness() as it:
        assert not await it.restore()
        assert it.executor.last_exit("a") is None


async def test_e21_a_stopped_one_keeps_its_run_signal_and_memory() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    run = world.records["a"].labels[RUN_LABEL]
    world.end("a", 137, oom=True)
    async with fake_harness(world) as it:
        assert not await it.restore()
        exited_at = (it.executor.last_exit("a") or Exit("a", run, 0)).exited_at
        assert exited_at
        assert it.executor.last_exit("a") == Exit("a", run, 137, "SIGKILL", True, exited_at)


async def test_e21_an_exit_that_was_found_stays_known_when_the_removal_fails() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    world.end("a", 4)
    async with fake_harness(world) as it:
        it.client.fault = at_call("delete_container", world.go_down)
        with pytest.raises(errors.Unavailable):
            await it.restore()
        world.come_up()
        assert not await it.restore()
        exit = it.executor.last_exit("a")
        assert exit
        assert exit.code == 4


async def test_e21_any_other_error_is_raised_the_sinks_are_closed_and_nothing_is_touched() -> None:
    world = FakeContainerd()
    await leave(world, Status.UNKNOWN)
    async with fake_harness(world) as it:
        with pytest.raises(errors.Unavailable, match="shim"):
            await it.restore()
        world.tasks["a"].hung = False
        assert world.tasks["a"].status is Status.RUNNING
        assert world.tasks["a"].stdout.readers == 0
        assert await it.restore()


async def test_e13_an_input_makes_a_restore_fail_and_leaves_the_container() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    async with fake_harness(world) as it:
        it.client.stdin = FakeInput()
        with pytest.raises(errors.MoorageError, match="bug"):
            await it.restore()
        assert it.client.stdin.closed
        it.client.stdin = None
        assert await it.restore()


@pytest.mark.parametrize("call", ["get_container", "get_task", "get_task after"])
async def test_e23_dying_around_the_attach_is_false_or_one_exit(call: str) -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    async with fake_harness(world) as it:
        seen = 0
        name, _, after = call.partition(" ")

        def die() -> None:
            world.end("a", 5)

        it.client.fault = at_call(name, die, after=bool(after))
        alive = await it.restore()
        await eventually(lambda: not world.left())
        seen = len(it.exits.seen)
        found = it.executor.last_exit("a")
        assert found
        assert found.code == 5
        assert seen == alive


async def test_e23_dying_between_the_attach_and_the_status_check_is_false() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)

    async with fake_harness(world) as it:
        gets = 0

        async def fault(call: Call) -> None:
            nonlocal gets
            if call.name == "get_task" and not call.after:
                gets += 1
                if gets == 2:
                    world.end("a", 6)

        it.client.fault = fault
        assert not await it.restore()
        assert not world.left()
        exit = it.executor.last_exit("a")
        assert exit
        assert exit.code == 6
        await settled()
        assert not it.exits.seen


async def test_e24_an_id_that_is_in_use_is_a_conflict_and_has_one_reader() -> None:
    async with fake_harness() as it:
        await it.create()
        for second in (it.create, it.restore):
            with pytest.raises(errors.Conflict, match="already in use"):
                await second()
        assert it.world.tasks["a"].stdout.readers == 1
        assert it.called() == ["subscribe", "create_container", "create_task", "start_task"]
        assert [sink.closes for sink in it.sinks] == [0, 0, 1, 1, 1, 1]


async def test_e24_two_at_once_are_one_and_a_conflict() -> None:
    async with fake_harness() as it:
        conflicts = 0

        async def create() -> None:
            nonlocal conflicts
            try:
                await it.create()
            except errors.Conflict:
                conflicts += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(create)
        assert conflicts == 4
        assert it.world.tasks["a"].status is Status.RUNNING


async def test_e48_a_container_of_another_owner_is_not_taken_over() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    world.records["a"] = Record(spec("a"), {"io.somebody": "else"}, RuntimeOptions(), ())
    async with fake_harness(world) as it:
        with pytest.raises(errors.Conflict, match="not created by Moorage"):
            await it.restore()
        assert it.called() == ["subscribe", "get_container"]
    assert world.tasks["a"].status is Status.RUNNING


@pytest.mark.parametrize("status", list(Status))
async def test_e30_running_is_what_containerd_calls_running(status: Status) -> None:
    async with fake_harness() as it:
        await it.create()
        task = it.world.tasks["a"]
        task.status, task.hung = status, status is Status.UNKNOWN
        assert await it.executor.is_running("a") == (status is Status.RUNNING)


async def test_e30_an_unknown_id_is_not_found() -> None:
    async with fake_harness() as it:
        with pytest.raises(errors.NotFound):
            await it.executor.is_running("b")


async def test_e31_a_signal_goes_to_init_and_not_found_means_done() -> None:
    async with fake_harness() as it:
        await it.create()
        await it.executor.signal("a", 0)
        await it.executor.signal("a", signal.SIGTERM)
        assert await it.executor.is_running("a")
        await it.executor.signal("a", signal.SIGKILL)
        for id in ("a", "b"):
            with pytest.raises(errors.NotFound):
                await it.executor.signal(id, signal.SIGKILL)
        await eventually(lambda: it.exits.seen)
        assert it.exits.seen[0].signal == "SIGKILL"


@pytest.mark.parametrize("number", [-1, 65, 1000])
async def test_e31_a_number_that_is_no_signal_is_invalid_and_not_sent(number: int) -> None:
    async with fake_harness() as it:
        await it.create()
        with pytest.raises(errors.Invalid, match=str(number)):
            await it.executor.signal("a", number)
        assert not it.called("kill")


async def test_a_slow_sink_does_not_keep_a_restore_waiting() -> None:
    world = FakeContainerd()
    await leave(world, Status.RUNNING)
    world.tasks["a"].stdout.data += b"much"
    async with fake_harness(world) as it:
        slow = Gate()
        assert await it.executor.restore("a", slow, Memory())
        await slow.waiting.wait()
        slow.opened.set()

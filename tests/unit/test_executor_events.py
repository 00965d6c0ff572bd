"""The executor's exits and its close on the fake (rows E06, E40 to E50)."""

import itertools
import logging
from dataclasses import replace

import anyio
import pytest

from moorage import errors
from moorage.containerd.types import (
    Envelope,
    Event,
    Status,
    TaskDeleted,
    TaskExit,
    TaskOOM,
    TaskPaused,
    TaskStarted,
)
from moorage.executor import Executor, Exit
from support.conditions import eventually, settled
from support.fake_containerd import Call, FakeContainerd
from support.fake_harness import QUICK, FakeHarness, at_call, fake_harness, spec
from support.sinks import Exits, Gate, Memory

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


async def one_exit(it: FakeHarness, code: int | None, id: str = "a") -> Exit:
    """Wait for the id's end and for everything to be gone; then there was one exit, with this code."""
    await eventually(lambda: it.exits.of(id) and not it.world.left())
    await settled()
    assert [exit.code for exit in it.exits.of(id)] == [code]
    return it.exits.of(id)[0]


def own_exit(it: FakeHarness, code: int = 3) -> TaskExit:
    return TaskExit("a", "a", it.world.tasks["a"].pid, code, None)


@pytest.mark.parametrize("order", ["during create", "late", "never, but the kernel tells", "twice"])
async def test_e06_a_process_that_exits_at_once_is_a_success_and_then_one_exit(order: str) -> None:
    world = FakeContainerd(blind="kernel" not in order)
    async with fake_harness(world) as it:
        if order != "during create":
            world.delayed = []
        await it.create(out=b"bye", code=0)
        assert not it.exits.seen, "the exit comes after create has returned"
        match order:
            case "late":
                world.release()
            case "twice":
                assert world.delayed is not None
                world.delayed += world.delayed
                world.release()
            case _:
                pass
        await one_exit(it, 0)
        assert it.sinks[0].data == b"bye"


async def test_e40_an_exit_drains_reads_the_counter_deletes_then_calls_the_handler() -> None:
    gate = Gate()
    async with fake_harness(timeouts=replace(QUICK, exit_drain=30, stream_wait=30)) as it:
        await it.executor.create("a", spec("a", out=b"all of it", code=3), gate, Memory())
        await gate.waiting.wait()
        await settled()
        assert not it.called("metrics", "delete_task"), "output first"
        gate.opened.set()
        exit = await one_exit(it, 3)
        assert gate.data == b"all of it"
        assert it.called("metrics", "delete_task", "delete_container") == ["metrics", "delete_task", "delete_container"]
        assert it.executor.last_exit("a") == exit


async def test_e11_output_that_never_ends_delays_an_exit_only_for_a_bounded_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with fake_harness() as it:
        await it.create()
        task = it.world.tasks["a"]
        it.world.end("a", 3)
        task.stdout.closed = False  # another process has the FIFO open
        await one_exit(it, 3)
        assert "the output of a stdout was cut off" in caplog.messages


@pytest.mark.parametrize(
    "event",
    [
        TaskStarted("a", 1000),
        TaskDeleted("a", 1000, 0),
        TaskOOM("a"),
        TaskPaused("a"),
        TaskExit("b", "b", 1000, 0),
        TaskExit("a", "exec", 1000, 0),
        TaskExit("a", "exec", 4711, 0),
        TaskExit("a", "a", 999, 0),
    ],
    ids=str,
)
async def test_e40_e41_e42_e48_other_events_are_ignored(event: Event) -> None:
    async with fake_harness() as it:
        await it.create()
        assert it.world.tasks["a"].pid == 1000
        calls = it.called()
        it.world.publish(event)
        await it.executor.process_event("a", event)
        await settled()
        assert it.called() == calls, "nothing is even asked"
        assert not it.exits.seen


async def test_e41_an_added_process_may_end_a_hundred_times() -> None:
    async with fake_harness() as it:
        await it.create()
        for number in range(100):
            it.world.publish(TaskExit("a", f"exec{number}", 5000 + number, 0))
        await settled()
        assert it.world.tasks["a"].status is Status.RUNNING
        it.world.end("a", 3)
        await one_exit(it, 3)


async def test_e42_a_late_exit_of_an_earlier_run_is_ignored() -> None:
    async with fake_harness() as it:
        await it.create()
        late = own_exit(it)
        it.world.end("a", 3)
        first = await one_exit(it, 3)
        await it.create()
        it.world.publish(late)
        await it.executor.process_event("a", late)
        await settled()
        assert it.world.tasks["a"].status is Status.RUNNING
        it.world.end("a", 4)
        await eventually(lambda: len(it.exits.seen) == 2)
        assert it.exits.seen[1].run != first.run


async def test_e42_an_exit_event_of_a_process_that_runs_is_not_believed() -> None:
    async with fake_harness() as it:
        await it.create()
        await it.executor.process_event("a", own_exit(it))
        assert not it.exits.seen
        assert it.world.tasks["a"].status is Status.RUNNING
        it.world.end("a", 4)
        await one_exit(it, 4)


HINTS = ["event", "event again", "kernel", "lost stream", "reconcile"]


@pytest.mark.parametrize("hints", list(itertools.combinations(HINTS, 1)) + list(itertools.permutations(HINTS, 2)))
async def test_e43_any_hints_in_any_order_deliver_one_exit(hints: tuple[str, ...]) -> None:
    world = FakeContainerd(deaf=True, blind=True)
    timeouts = replace(QUICK, reconcile=0.01 if "reconcile" in hints else 3600)
    async with fake_harness(world, timeouts=timeouts) as it:
        await it.create()
        event = own_exit(it)
        pid = world.tasks["a"].pid
        world.end("a", 3)
        world.deaf = False
        for hint in hints:
            match hint:
                case "event" | "event again":
                    world.publish(event)
                case "kernel":
                    world.ends[pid].set()
                case "lost stream":
                    world.end_subscriptions()
                case _:
                    pass  # the periodic comparison comes by itself
        await one_exit(it, 3)


@pytest.mark.parametrize("name", ["get_task", "delete_task", "delete_container"])
@pytest.mark.parametrize("times", [2, 1000])
async def test_e43_an_exit_is_reported_whatever_the_machine_refuses_and_how_often(name: str, times: int) -> None:
    refused = 0

    async def fault(call: Call) -> None:
        nonlocal refused
        if call.name == name and refused < times and "a" in it.world.records:
            refused += 1
            raise OSError(28, "No space left on device") if name != "get_task" else errors.MoorageError("no")

    async with fake_harness() as it:
        await it.create()
        it.client.fault = fault
        it.world.end("a", 3)
        if name == "get_task" and times > 2:
            await eventually(lambda: refused > 5)
            assert not it.exits.seen, "nobody has said that it ended"
            it.client.fault = None
        await eventually(lambda: it.exits.seen)
        assert [exit.code for exit in it.exits.seen] in ([3], [None])
        it.client.fault = None


@pytest.mark.parametrize("event", ["replayed", "lost"])
async def test_e43_an_exit_while_containerd_is_unavailable_is_delivered_once_it_is_back(event: str) -> None:
    world = FakeContainerd(blind=True)
    async with fake_harness(world) as it:
        await it.create()
        world.go_down()
        world.delayed = []
        world.end("a", 3)
        await it.executor.process_event("a", own_exit(it))
        assert not it.exits.seen
        world.come_up()
        await eventually(lambda: world.subscribers)
        if event == "replayed":
            world.release()
        await one_exit(it, 3)


OFTEN = replace(QUICK, reconcile=0.005, exit_drain=0.001, stream_wait=0.001)


async def compared(it: FakeHarness) -> None:
    """Wait for a few comparisons: whatever was planned has been done by then."""
    begin = it.called().count("get_task")
    await eventually(lambda: it.called().count("get_task") > begin + 5)


async def test_e44_containerd_going_and_coming_ten_times_is_no_exit() -> None:
    async with fake_harness(timeouts=OFTEN) as it:
        await it.create()
        task, record = it.world.tasks["a"], it.world.records["a"]
        for _ in range(10):
            it.world.go_down()
            await it.executor.process_event("a", own_exit(it))  # nothing can be queried now
            it.world.come_up()
            await eventually(lambda: it.world.subscribers)
        await compared(it)
        assert not it.exits.seen
        assert (it.world.tasks["a"], it.world.records["a"], task.status) == (task, record, Status.RUNNING)
        it.world.end("a", 3)
        await one_exit(it, 3)


async def test_e44_a_shim_that_does_not_answer_is_no_exit() -> None:
    async with fake_harness(timeouts=OFTEN) as it:
        await it.create()
        task = it.world.tasks["a"]
        task.hung = True
        await it.executor.process_event("a", own_exit(it))
        await compared(it)
        task.hung = False
        await compared(it)
        assert not it.exits.seen
        assert task.status is Status.RUNNING
        it.world.end("a", 3)
        await one_exit(it, 3)


async def test_e44_a_shim_that_does_not_answer_is_not_queried_too_often() -> None:
    async with fake_harness(timeouts=replace(QUICK, reconnect_first=0.01, reconnect_limit=0.01)) as it:
        await it.create()
        task = it.world.tasks["a"]
        task.hung = True
        for _ in range(20):
            await it.executor.process_event("a", own_exit(it))
            it.world.end_subscriptions()
            await eventually(lambda: it.world.subscribers)
        begin = len(it.called("get_task"))
        await anyio.sleep(0.2)  # the time is the measure here: a storm would ask hundreds of times
        assert len(it.called("get_task")) - begin < 60, "the pauses of one question only"
        task.hung = False
        it.world.end("a", 3)
        await one_exit(it, 3)


async def test_e45_reconnecting_for_ever_logs_each_change_once_and_ends_with_one_subscription(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "moorage.executor.watch")
    async with fake_harness() as it:
        for _ in range(3):
            begin = len(it.called("subscribe"))
            it.world.go_down()
            await eventually(lambda: len(it.called("subscribe")) > begin + 20)  # noqa: B023 - waited for here
            it.world.come_up()
            await eventually(lambda: it.world.subscribers)
            await settled()
            assert len(it.world.subscribers) == 1
        assert [message.partition(",")[0] for message in caplog.messages] == [
            "containerd is unavailable",
            "containerd is available again",
        ] * 3


async def test_e46_a_slow_handler_delays_no_other_id_but_its_own() -> None:
    exits = Exits(waits={"slow": anyio.Event()})
    async with fake_harness(exits=exits) as it:
        for id in ("slow", "a", "b"):
            await it.create(id)
        for id in ("slow", "a", "b"):
            it.world.end(id, 3)
        await eventually(lambda: len(exits.seen) == 3)
        await it.create("slow")
        it.world.end("slow", 4)
        await settled()
        assert [exit.code for exit in exits.of("slow")] == [3], "one at a time"
        exits.waits["slow"].set()
        await eventually(lambda: [exit.code for exit in exits.of("slow")] == [3, 4])


async def test_e46_what_containerd_reports_goes_through_process_event(monkeypatch: pytest.MonkeyPatch) -> None:
    processed: list[Event] = []
    process_event = Executor.process_event

    async def recording(executor: Executor, id: str, event: Event) -> None:
        processed.append(event)
        await process_event(executor, id, event)

    monkeypatch.setattr(Executor, "process_event", recording)
    async with fake_harness(FakeContainerd(blind=True)) as it:
        await it.create()
        it.world.end("a", 3)
        await one_exit(it, 3)
    assert [type(event) for event in processed] == [TaskExit]


async def test_e46_what_the_handler_raises_is_raised_by_process_event_and_logged_by_the_pump(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fake_harness(FakeContainerd(deaf=True, blind=True), exits=Exits(fail=True)) as it:
        await it.create()
        event = own_exit(it)
        it.world.end("a", 3)
        with pytest.raises(RuntimeError, match="the handler fails"):
            await it.executor.process_event("a", event)
        assert not caplog.records
        it.world.deaf = False
        for _ in range(2):
            await it.create()
            it.world.end("a", 3)
            await eventually(lambda: not it.world.left())
            await settled()
        assert len(it.exits.seen) == 3
        assert [record.exc_info is not None for record in caplog.records] == [True, True]


@pytest.mark.parametrize(("code", "oom", "expected"), [(137, True, True), (137, False, False), (1, True, False)])
async def test_e47_oom_is_reported_where_the_counter_says_so_and_it_was_killed(
    code: int, oom: bool, expected: bool
) -> None:
    async with fake_harness() as it:
        await it.create()
        it.world.end("a", code, oom=oom)
        exit = await one_exit(it, code)
        assert exit.oom is expected
        assert exit.signal == ("SIGKILL" if code == 137 else None)


@pytest.mark.parametrize(("code", "expected"), [(137, True), (1, False)])
async def test_e47_an_oom_event_counts_where_systemd_has_removed_the_counter_with_the_scope(
    code: int, expected: bool
) -> None:
    async with fake_harness() as it:
        await it.create()
        it.world.publish(TaskOOM("a"))
        it.world.end("a", code)
        assert (await one_exit(it, code)).oom is expected


async def test_e48_events_of_foreign_containers_are_not_even_queried() -> None:
    async with fake_harness() as it:
        for namespace in ("test", "moby"):
            it.world.send(Envelope(namespace, "/tasks/exit", None, TaskExit("b", "b", 1, 0)))
        await settled()
        assert it.called() == ["subscribe"]


@pytest.mark.parametrize("down", [False, True])
async def test_e49_a_killed_shim_ends_the_run_with_no_code_and_frees_the_id(down: bool) -> None:
    async with fake_harness() as it:
        await it.create()
        if down:
            it.world.go_down()
            it.world.deaf = True
        it.world.kill_shim("a")
        if down:
            await settled()
            assert not it.exits.seen
            it.world.come_up()
        exit = await one_exit(it, None)
        assert (exit.signal, exit.exited_at) == (None, None)
        it.world.deaf = False
        await it.create()
        it.world.end("a", 3)
        await eventually(lambda: [exit.code for exit in it.exits.seen] == [None, 3])


async def test_e49_a_task_that_never_started_has_no_exit() -> None:
    async with fake_harness() as it:

        def die() -> None:
            it.world.end("a", 2)
            raise errors.MoorageError("cannot start a stopped process")

        it.client.fault = at_call("start_task", die)
        with pytest.raises(errors.MoorageError, match="cannot start"):
            await it.create()
        await settled()
        assert not it.exits.seen
        assert it.executor.last_exit("a") is None


async def test_a_task_whose_record_was_deleted_keeps_running_and_its_exit_is_reported() -> None:
    async with fake_harness() as it:
        await it.create()
        del it.world.records["a"]
        it.world.end_subscriptions()
        await eventually(lambda: it.world.subscribers)
        await settled()
        assert it.world.tasks["a"].status is Status.RUNNING
        it.world.end("a", 3)
        await one_exit(it, 3)

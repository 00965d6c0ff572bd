"""The executor's opening and end on the fake, and what handlers may do (row E50)."""

import ast
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage import executor as executor_package
from moorage.containerd.types import Status, TaskExit
from moorage.executor import Executor, Exit, open_executor
from moorage.executor._container import LastExits
from support.conditions import TIMEOUT_SECONDS, eventually, settled
from support.fake_containerd import Call, FakeContainerd, FakeContainers
from support.fake_harness import QUICK, RUNTIME, FakeHarness, fake_harness, leave, spec
from support.sinks import Exits, Gate, Memory

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


async def test_opening_without_containerd_fails_by_kind_and_says_what_failed() -> None:
    world = FakeContainerd(up=False)
    with pytest.raises(errors.Unavailable, match=r"^cannot create containerd exec client: cannot reach"):
        async with open_executor(FakeContainers(world), Exits(), runtime=RUNTIME, timeouts=QUICK):
            raise AssertionError("not reached")
    assert not world.subscribers


async def test_what_the_block_raises_comes_out_as_itself() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_executor(FakeContainers(FakeContainerd()), Exits(), runtime=RUNTIME):
            raise LookupError("mine")


async def test_e50_the_end_detaches_and_leaves_the_tasks_for_the_next_process() -> None:
    world = FakeContainerd()
    async with fake_harness(world) as it:
        await it.create("a", out=b"first")
        await settled()
        await it.executor.aclose()
        await it.executor.aclose()
        assert [sink.closes for sink in it.sinks] == [1, 1]
        assert it.sinks[0].data == b"first"
        assert not world.subscribers
        assert world.tasks["a"].status is Status.RUNNING
        assert world.tasks["a"].stdout.readers == 0
        for late in (it.create, it.restore):
            with pytest.raises(errors.Conflict, match="closed"):
                await late("b")
        with pytest.raises(errors.Conflict, match="closed"):
            await it.create("a")
        world.end("a", 3)
        await it.executor.process_event("a", TaskExit("a", "a", world.tasks["a"].pid, 3))
    assert not it.exits.seen
    async with fake_harness(world) as it:
        assert not await it.restore("a")
        found = it.executor.last_exit("a")
        assert found
        assert found.code == 3
        assert not world.left()


async def test_e50_a_create_after_the_executor_was_cancelled_is_a_conflict() -> None:
    with anyio.CancelScope() as scope:
        async with fake_harness() as it:
            scope.cancel()
            with anyio.CancelScope(shield=True):  # as a worker thread that is waited for, and does not notice
                await settled()
                with pytest.raises(errors.Conflict, match="the executor is closed"):
                    await it.create()
    assert not it.world.left()


async def test_e50_process_events_that_wait_are_released() -> None:
    exits = Exits(waits={"a": anyio.Event()})
    async with fake_harness(FakeContainerd(deaf=True, blind=True), exits=exits) as it:
        await it.create()
        event = TaskExit("a", "a", it.world.tasks["a"].pid, 3)
        it.world.end("a", 3)
        reported = 0

        async def wait() -> None:
            nonlocal reported
            with pytest.raises(errors.Conflict):
                await it.executor.process_event("a", event)
            reported += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await eventually(lambda: exits.seen)
            await it.create()
            tasks.start_soon(wait)
            await settled()
            await it.executor.aclose()
        assert reported == 2


async def create(it: FakeHarness) -> None:
    await it.create("b")


async def restore(it: FakeHarness) -> None:
    await it.restore("b")


async def close_at(
    it: FakeHarness, act: Callable[[FakeHarness], Awaitable[None]], number: int, after: bool
) -> tuple[bool, str]:
    """End the executor while an operation waits in this call; whether it came that far, and what it raised."""
    reached, said = False, ""
    async with anyio.create_task_group() as tasks:

        async def fault(call: Call) -> None:
            nonlocal reached
            if (call.number, call.after) == (number, after):
                reached = True
                tasks.start_soon(it.executor.aclose)
                await anyio.sleep_forever()

        it.client.fault = fault
        try:
            await act(it)
        except errors.Conflict as error:
            said = str(error)
    return reached, said


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", [create, restore])
async def test_e50_an_operation_under_way_at_the_end_is_undone(
    act: Callable[[FakeHarness], Awaitable[None]], after: bool
) -> None:
    number, reached = 1, True
    while reached:
        world = FakeContainerd()
        if act is restore:
            await leave(world, Status.RUNNING, "b")
        async with fake_harness(world) as it:
            reached, said = await close_at(it, act, number, after)
            assert ("closed" in said) == reached
        assert not [left for left in world.left() if left.startswith("reader")]
        if reached and act is create:
            assert not world.left()
        else:
            assert world.tasks["b"].status is Status.RUNNING
        number += 1
    assert number > 3


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("get_task", False),
        ("get_task", True),
        ("metrics", False),
        ("metrics", True),
        ("delete_task", False),
        ("delete_task", True),
        ("delete_container", False),
        ("delete_container", True),
    ],
)
async def test_e50_an_exit_that_is_being_handled_at_the_end_is_not_lost(name: str, after: bool) -> None:
    world, reached = FakeContainerd(), anyio.Event()

    async def fault(call: Call) -> None:
        if (call.name, call.after) == (name, after):
            reached.set()
            await settled()

    async with fake_harness(world) as it:
        await it.create()
        it.client.fault = fault
        world.end("a", 3)
        await reached.wait()
        await it.executor.aclose()
    async with fake_harness(world) as next_one:
        assert not await next_one.restore()
        found = next_one.executor.last_exit("a")
        # either this handler was called, or the next process finds the exit
        assert [exit.code for exit in (*it.exits.seen, *([found] if found else []))] == [3]
        assert not world.left()


class Restarting:
    """Creates the same id again when it ends, as long as there are lives."""

    def __init__(self, lives: int) -> None:
        self.lives = lives
        self.exits: list[Exit] = []
        self.executor: Executor

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        self.exits.append(exit)
        if len(self.exits) < self.lives:
            await self.executor.create(id, spec(id, code=len(self.exits)), Memory(), Memory())


async def test_a_handler_may_create_the_same_id_again() -> None:
    world, handler = FakeContainerd(), Restarting(5)
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with open_executor(
            FakeContainers(world), handler, runtime=RUNTIME, timeouts=QUICK, wait_for_exit=world.wait_for_end
        ) as handler.executor:
            await handler.executor.create("a", spec("a", code=0), Memory(), Memory())
            await eventually(lambda: len(handler.exits) == 5 and not world.left())
    assert [exit.code for exit in handler.exits] == [0, 1, 2, 3, 4]
    assert len({exit.run for exit in handler.exits}) == 5


async def test_a_handler_may_end_the_executor() -> None:
    world = FakeContainerd()
    async with fake_harness(world) as it:

        async def end(id: str, exit: Exit) -> None:
            it.exits.seen.append(exit)
            await it.executor.aclose()

        it.exits.handle_exit_event = end  # type: ignore[method-assign]  # the handler of this test
        await it.create("a")
        await it.create("b")
        world.end("a", 3)
        await eventually(lambda: it.exits.seen)
        await it.executor.aclose()
    assert "b" in world.tasks


async def test_the_end_waits_for_no_sink_that_is_stuck() -> None:
    stuck = Gate()
    async with fake_harness() as it:
        await it.executor.create("a", spec("a", out=b"x"), stuck, Memory())
        await stuck.waiting.wait()
    assert stuck.closes == 1


async def test_an_id_that_is_none_harms_no_other_caller() -> None:
    async with fake_harness() as it:
        await it.create("a")
        for bad in ("..", "", "a/b"):
            with pytest.raises(errors.Invalid):
                await it.create(bad)
        assert it.world.bundles == {"a"}


async def test_remembered_exits_are_bounded_and_the_newest_stay() -> None:
    exits = LastExits()
    for number in range(LastExits.LIMIT + 10):
        exits.add(Exit(f"a{number}", "run", 0))
    assert exits.find("a9") is None
    assert exits.find("a10")
    assert exits.find(f"a{LastExits.LIMIT + 9}")


def test_e43_nothing_in_the_executor_reads_the_wall_clock_so_setting_it_back_changes_nothing() -> None:
    for path in Path(executor_package.__file__).parent.glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime"}, path


async def test_a_kernel_that_calls_a_living_process_dead_is_not_believed() -> None:
    # so it looks where containerd counts processes in another pid namespace than we do
    async with fake_harness() as it:
        await it.create()
        it.world.ends[it.world.tasks["a"].pid].set()
        await eventually(lambda: it.called().count("get_task") > 3)
        assert not it.exits.seen
        assert await it.executor.is_running("a")
        it.world.end("a", 3)
        await eventually(lambda: it.exits.seen)


async def test_a_kernel_that_gives_no_descriptor_is_a_warning_and_the_exit_is_still_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, exits = FakeContainerd(), Exits()

    async def refuse(pid: int) -> None:
        raise OSError(24, "Too many open files")

    async with open_executor(
        FakeContainers(world), exits, runtime=RUNTIME, timeouts=QUICK, wait_for_exit=refuse
    ) as executor:
        await executor.create("a", spec("a"), Memory(), Memory())
        await settled()
        assert "Too many open files" in caplog.text
        world.end("a", 3)
        await eventually(lambda: exits.seen)

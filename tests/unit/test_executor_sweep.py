"""Removals that fail at first, on the fake: undone later, repeated, or given up with a message (rows E04, E40, E43)."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from moorage import errors
from moorage.containerd.types import Mount, RuntimeOptions, Status, TaskExit
from moorage.executor import RUN_LABEL, Attached, Stdio
from moorage.executor._container import MAX_REFUSALS, signal_name
from support.conditions import eventually, settled
from support.fake_containerd import Call, FakeContainerd, cancel_at
from support.fake_harness import QUICK, RUNTIME, FakeHarness, at_call, fake_harness, spec
from support.sinks import Memory

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


def refuse_all(name: str, error: type[errors.MoorageError], seen: list[Call]) -> Callable[[Call], Awaitable[None]]:
    """Every call of this name fails."""

    async def fault(call: Call) -> None:
        if call.name == name and not call.after:
            seen.append(call)
            raise error("in this test")

    return fault


async def fail_to_start(it: FakeHarness) -> None:
    """A create whose start is cut, and whose undo reaches no containerd."""
    it.client.fault = at_call("start_task", it.world.go_down, after=True)
    with pytest.raises(errors.Unavailable):
        await it.create()
    it.client.fault = None


async def test_e04_a_task_that_could_not_be_undone_is_removed_when_containerd_is_back() -> None:
    async with fake_harness() as it:
        await fail_to_start(it)
        assert it.world.tasks["a"].status is Status.RUNNING
        it.world.come_up()
        await eventually(lambda: not it.world.left())
        await settled()
        assert not it.exits.seen
        calls = len(it.client.calls)
        await anyio.sleep(QUICK.reconnect_limit * 3)  # as long as it would take to try once more
        assert len(it.client.calls) == calls, "it goes on trying though all is gone"


async def test_e04_an_id_with_leftovers_is_unavailable_until_they_are_removed() -> None:
    async with fake_harness() as it:
        await fail_to_start(it)
        for operation in (it.create, it.restore):
            with pytest.raises(errors.Unavailable, match="cannot use container a: its leftovers"):
                await operation()
        await it.create_again("b")
        it.world.come_up()
        await eventually(it.create_again)
        assert it.world.tasks["a"].status is Status.RUNNING
        run = it.world.records["a"].labels[RUN_LABEL]
        await settled()
        await anyio.sleep(QUICK.reconnect_limit * 3)  # as long as a sweep would take to come by
        assert it.world.records["a"].labels[RUN_LABEL] == run, "the next run was swept away"


async def test_e04_a_process_that_does_not_end_is_tried_again_until_it_does() -> None:
    async with fake_harness() as it:

        def live_on() -> None:
            it.world.tasks["a"].immortal = True
            raise errors.MoorageError("no start")

        it.client.fault = at_call("start_task", live_on)
        with pytest.raises(errors.MoorageError, match=r"^no start$"):
            await it.create()
        await eventually(lambda: len(it.called("kill")) > 3)
        assert "a" in it.world.records
        it.world.tasks["a"].immortal = False
        await eventually(lambda: not it.world.left())


async def test_e04_tries_in_the_background_say_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_harness() as it:
        await fail_to_start(it)
        said = len([record for record in caplog.records if record.levelno >= logging.ERROR])
        assert said == 1
        it.world.come_up()
        seen: list[Call] = []
        it.client.fault = refuse_all("delete_task", errors.MoorageError, seen)
        await eventually(lambda: len(seen) > 3)
        refused: list[Call] = []
        it.client.fault = refuse_all("delete_container", errors.MoorageError, refused)
        await eventually(lambda: len(refused) > 3)
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == said
        it.client.fault = None
        await eventually(lambda: not it.world.left())


async def test_e09_a_record_whose_undo_failed_is_removed_when_containerd_is_back() -> None:
    async with fake_harness() as it:
        it.client.fault = at_call("create_container", it.world.go_down, after=True)
        with pytest.raises(errors.Unavailable):
            await it.create()
        it.client.fault = None
        assert list(it.world.records) == ["a"]
        it.world.come_up()
        await eventually(lambda: not it.world.left())


@pytest.mark.parametrize("labels", [{}, {RUN_LABEL: "somebody"}])
async def test_e02_a_sweep_touches_no_record_that_is_not_its_own(labels: dict[str, str]) -> None:
    world = FakeContainerd()
    async with fake_harness(world) as it, fake_harness(world) as other:
        it.client.fault = at_call("create_container", world.go_down)
        with pytest.raises(errors.Unavailable):
            await it.create()
        it.client.fault = None
        world.up = True
        await other.client.create("a", spec("a"), RUNTIME, labels=labels)
        await eventually(lambda: "get_container" in it.called())
        await settled()
        await anyio.sleep(QUICK.reconnect_limit * 3)  # as long as another try would take
        assert list(world.records) == ["a"]
        assert not it.called("delete_container", "delete_task")
        await other.client.delete("a")


async def test_e09_a_create_cancelled_while_containerd_is_down_is_removed_when_it_is_back() -> None:
    async with fake_harness() as it:
        with anyio.CancelScope() as scope:

            async def fault(call: Call) -> None:
                if (call.name, call.after) == ("create_container", True):
                    it.world.go_down()
                await cancel_at(1, scope, after=True)(call)

            it.client.fault = fault
            await it.create()
        it.client.fault = None
        assert scope.cancelled_caught
        it.world.come_up()
        await eventually(lambda: not it.world.left())


async def test_a_definite_refusal_leaves_nothing_to_be_swept() -> None:
    async with fake_harness() as it:
        it.client.fault = refuse_all("create_container", errors.Invalid, [])
        with pytest.raises(errors.Invalid):
            await it.create()
        it.client.fault = None
        calls = len(it.client.calls)
        await settled()
        await anyio.sleep(QUICK.reconnect_limit * 3)  # as long as a sweep would take to come by
        assert len(it.client.calls) == calls


@pytest.mark.parametrize("name", ["delete_task", "delete_container"])
async def test_e40_a_refused_removal_is_tried_again_and_the_exit_reported_once(name: str) -> None:
    async with fake_harness() as it:
        await it.create()
        it.client.fault = at_call(name, refusal)
        it.world.end("a", 3)
        await eventually(lambda: it.exits.seen)
        assert not it.world.left(), "told before all was removed"
        assert [exit.code for exit in it.exits.seen] == [3]


def refusal() -> None:
    raise errors.MoorageError("in this test")


@pytest.mark.parametrize("name", ["delete_task", "delete_container"])
async def test_e43_a_removal_that_is_always_refused_is_still_reported(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_harness() as it:
        await it.create()
        seen: list[Call] = []
        it.client.fault = refuse_all(name, errors.MoorageError, seen)
        it.world.end("a", 3)
        await eventually(lambda: it.exits.seen)
        assert len(seen) == MAX_REFUSALS
        assert any(record.levelno == logging.ERROR and "a" in record.getMessage() for record in caplog.records)
        assert [exit.code for exit in it.exits.seen] == [3 if name == "delete_container" else None]
        it.client.fault = None


@pytest.mark.parametrize("name", ["delete_task", "delete_container"])
async def test_e43_an_absent_containerd_is_waited_for_longer_than_refusals_are(name: str) -> None:
    async with fake_harness() as it:
        await it.create()
        seen: list[Call] = []
        it.client.fault = refuse_all(name, errors.Unavailable, seen)
        it.world.end("a", 3)
        await eventually(lambda: len(seen) > MAX_REFUSALS * 3)
        assert not it.exits.seen
        it.client.fault = None
        await eventually(lambda: it.exits.seen)
        assert [exit.code for exit in it.exits.seen] == [3]
        assert not it.world.left()


async def test_e47_memory_that_was_short_is_remembered_over_a_second_try() -> None:
    async with fake_harness() as it:
        await it.create()
        it.client.fault = at_call("delete_task", lose_the_answer, after=True)
        it.world.end("a", 137, oom=True)
        await eventually(lambda: it.exits.seen)
        assert [(exit.code, exit.oom) for exit in it.exits.seen] == [(137, True)]


def lose_the_answer() -> None:
    raise errors.Unavailable("in this test")


async def test_e21_an_exit_that_was_found_survives_a_lost_answer() -> None:
    world = FakeContainerd()
    async with fake_harness(world) as before:
        await before.create()
    world.end("a", 3)
    async with fake_harness(world) as it:
        it.client.fault = at_call("delete_task", lose_the_answer, after=True)
        with pytest.raises(errors.Unavailable):
            await it.restore()
        found = it.executor.last_exit("a")
        assert found
        assert (found.id, found.run, found.code) == ("a", found.run, None)
        assert found.run
        assert not await it.restore()
        last = it.executor.last_exit("a")
        assert last
        assert (last.run, last.code, last.exited_at is not None) == (found.run, 3, True)
        assert not world.left()


async def test_e44_comparisons_of_a_dead_process_that_is_not_confirmed_do_not_pile_up() -> None:
    async with fake_harness() as it:
        await it.create()
        await settled()
        it.world.tasks["a"].hung = True
        it.world.ends[it.world.tasks["a"].pid].set()  # the kernel says so
        for _ in range(50):
            queries = len(it.called("get_task"))
            it.executor._check_all()
            await eventually(lambda: len(it.called("get_task")) > queries)  # noqa: B023 - awaited in this round
        begin = len(it.called("get_task"))
        await anyio.sleep(QUICK.reconnect_limit * 20)  # in which one chain of looks makes some twenty to forty
        assert 2 < len(it.called("get_task")) - begin < 60
        it.world.tasks["a"].hung = False
        it.world.end("a", 3)
        await eventually(lambda: it.exits.seen)


class Hanging:
    """A call that has no answer until it is released."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.calls = 0
        self.let_go = anyio.Event()

    async def __call__(self, call: Call) -> None:
        if call.name == self._name and not call.after:
            self.calls += 1
            await self.let_go.wait()


async def test_e46_an_event_of_an_id_waits_for_what_is_done_for_it() -> None:
    async with fake_harness() as it, anyio.create_task_group() as tasks:
        await it.create()
        await settled()
        it.client.fault = hanging = Hanging("get_task")
        for _ in range(20):
            it.executor._check_all()
            await anyio.lowlevel.checkpoint()
        pid = it.world.tasks["a"].pid
        tasks.start_soon(it.executor.process_event, "a", TaskExit("a", "a", pid, 0))
        await settled()
        assert hanging.calls == 1
        it.world.end("a", 0)
        hanging.let_go.set()
        await eventually(lambda: it.exits.seen)
        assert hanging.calls <= 4, "comparisons have piled up"


async def test_e04_an_undo_that_hangs_is_given_up_in_time_and_done_later() -> None:
    async with fake_harness(timeouts=replace(QUICK, cleanup=0.05)) as it:
        it.client.fault = hanging = Hanging("delete_task")
        it.client.fault = both(hanging, at_call("start_task", refusal))
        with pytest.raises(errors.MoorageError, match="in this test"):
            await it.create()
        assert it.world.tasks
        hanging.let_go.set()
        it.client.fault = None
        await eventually(lambda: not it.world.left())


async def test_e43_a_removal_that_hangs_is_given_up_in_time_and_done_later() -> None:
    async with fake_harness(timeouts=replace(QUICK, cleanup=0.05)) as it:
        await it.create()
        it.client.fault = hanging = Hanging("delete_task")
        it.world.end("a", 3)
        await eventually(lambda: hanging.calls > 1)
        assert not it.exits.seen
        hanging.let_go.set()
        await eventually(lambda: it.exits.seen)
        assert [exit.code for exit in it.exits.seen] == [3]
        assert not it.world.left()


def both(*faults: Callable[[Call], Awaitable[None]]) -> Callable[[Call], Awaitable[None]]:
    async def fault(call: Call) -> None:
        for each in faults:
            await each(call)

    return fault


async def test_e47_a_restored_end_by_a_kill_is_not_for_want_of_memory() -> None:
    world = FakeContainerd()
    async with fake_harness(world) as before:
        await before.create()
    world.end("a", 137)
    async with fake_harness(world) as it:
        assert not await it.restore()
        found = it.executor.last_exit("a")
        assert found
        assert (found.code, found.oom) == (137, False)


class Taker:
    """An ``attach`` that keeps what it is given and takes nothing."""

    def __init__(self) -> None:
        self.taken: list[Stdio] = []

    async def __call__(self, stdio: Stdio) -> Attached:
        self.taken.append(stdio)
        return self

    async def wait(self) -> None:
        """Nothing is finished."""


async def test_e01_e20_a_taker_may_stand_in_for_the_sinks() -> None:
    world = FakeContainerd()
    for restored in (False, True):
        taker = Taker()
        async with fake_harness(world) as it:
            if restored:
                assert await it.executor.restore("a", attach=taker)
            else:
                await it.executor.create("a", spec("a"), attach=taker)
            assert len(taker.taken) == 1


async def test_e02_what_lives_is_queried_once_and_its_error_is_the_first() -> None:
    world = FakeContainerd()
    async with fake_harness(world) as before:
        await before.create()
    async with fake_harness(world) as it:
        with pytest.raises(errors.Conflict) as caught:
            await it.create()
        assert "cannot create containerd container" not in str(caught.value)
        assert it.called("create_container").count("create_container") <= 1


@pytest.mark.parametrize(
    ("code", "name"), [(None, None), (0, None), (1, None), (128, None), (129, "SIGHUP"), (137, "SIGKILL"), (255, None)]
)
async def test_an_exit_code_names_its_signal(code: int | None, name: str | None) -> None:
    assert signal_name(code) == name


async def test_e31_the_words_for_a_wrong_signal_name_the_right_ones() -> None:
    async with fake_harness() as it:
        with pytest.raises(errors.Invalid, match=r"\(0 to 64\)"):
            await it.executor.signal("a", 65)


async def test_the_arguments_of_a_create_are_not_shared() -> None:
    async with fake_harness() as it:
        mounts = (Mount("bind", "/there", ("rbind",)),)
        await it.executor.create("a", spec("a"), Memory(), Memory(), rootfs=mounts, labels={"who": "me"})
        record = it.world.records["a"]
        assert (record.rootfs, record.labels["who"]) == (mounts, "me")
        assert record.options == RuntimeOptions(root="/runtime-root")

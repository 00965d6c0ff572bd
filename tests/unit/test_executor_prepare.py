"""Containers that are prepared first and started later, on the fake (rows E15 to E19)."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from moorage import errors
from moorage.containerd.types import Status
from support.conditions import eventually
from support.fake_containerd import FakeContainerd, cancel_at, fail_at
from support.fake_harness import FakeHarness, fake_harness, missing, spec

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]

SIDES = pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
KINDS = pytest.mark.parametrize("kind", [errors.Unavailable, errors.MoorageError, errors.NotFound, errors.Conflict])


async def prepare(it: FakeHarness, *, out: bytes = b"", code: int | None = None) -> None:
    await it.executor.prepare("a", spec("a", out=out, code=code), *it.pair())


async def start(it: FakeHarness) -> None:
    await it.executor.start("a")


async def discard(it: FakeHarness) -> None:
    await it.executor.discard("a")


async def test_e15_what_is_prepared_runs_only_when_it_is_started_and_is_then_as_any_other() -> None:
    async with fake_harness() as it:
        await prepare(it, out=b"hello", code=3)
        assert it.called() == ["subscribe", "create_container", "create_task"]
        assert it.world.tasks["a"].status is Status.CREATED
        pid = it.executor.pid("a")
        assert it.executor.owns("a")
        assert it.executor.is_prepared("a")
        assert not await it.executor.is_running("a")
        await start(it)
        assert not it.executor.is_prepared("a")
        await eventually(lambda: it.exits.seen)
        assert [(exit.code, exit.pid) for exit in it.exits.seen] == [(3, pid)]
        assert it.sinks[0].data == b"hello"
        assert it.called("create_container", "create_task", "start_task") == [
            *("create_container", "create_task"),
            "start_task",
        ]
        await it.executor.wait_removed("a")
        assert not it.world.left()


async def test_e15_a_create_makes_the_calls_that_it_made_before() -> None:
    async with fake_harness() as it:
        await it.create()
        assert it.called() == ["subscribe", "create_container", "create_task", "start_task"]


@pytest.mark.parametrize("do", [prepare, start, discard])
@SIDES
async def test_e16_each_half_leaves_nothing_when_it_is_cancelled_at_any_call(
    do: Callable[[FakeHarness], Awaitable[None]], after: bool
) -> None:
    number, cancelled = 0, True
    while cancelled:
        async with fake_harness() as it:
            if do is not prepare:
                await prepare(it)
            with anyio.CancelScope() as scope:
                it.client.fault = cancel_at(len(it.called()) + number, scope, after=after)
                await do(it)
            it.client.fault = None
            cancelled = scope.cancelled_caught
            if do is discard or cancelled:
                await it.executor.wait_removed("a")
                await eventually(lambda: not it.world.left())
            assert not it.exits.seen
            number += 1
    assert number > 1 or do is discard  # which is not interrupted


@pytest.mark.parametrize("do", [prepare, start, discard])
@SIDES
@KINDS
async def test_e16_each_half_leaves_nothing_when_any_call_fails(
    do: Callable[[FakeHarness], Awaitable[None]], after: bool, kind: type[errors.MoorageError]
) -> None:
    for number in range(4):
        async with fake_harness() as it:
            if do is not prepare:
                await prepare(it)
            it.client.fault = fail_at(len(it.called()) + number, kind("in this test"), after=after)
            with suppress(errors.MoorageError):
                await do(it)
            it.client.fault = None
            if not (it.executor.owns("a") and do is not discard):
                await eventually(lambda: not it.world.left())
                await eventually(it.create_again)  # the id is free
            assert not it.exits.seen


async def test_e16_a_start_that_the_runtime_refuses_removes_all_and_gives_the_reason() -> None:
    async with fake_harness() as it:
        with pytest.raises(errors.MoorageError, match="no such file"):
            await it.executor.prepare("a", missing("a"), *it.pair())
        await prepare(it)
        it.world.tasks["a"].status = Status.STOPPED  # and nothing has reported it
        with pytest.raises(errors.MoorageError, match="cannot start"):
            await start(it)
        assert not it.world.left()
        assert not it.executor.owns("a")
        with pytest.raises(errors.NotFound, match="not prepared"):
            await start(it)


async def test_e16_a_discard_may_be_repeated_and_touches_nothing_else() -> None:
    async with fake_harness() as it:
        await discard(it)
        await prepare(it)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(discard, it)
        assert not it.executor.owns("a")
        assert not it.world.left()
        await it.create()
        await discard(it)
        assert it.world.tasks["a"].status is Status.RUNNING
        assert not it.exits.seen


async def test_e16_what_a_discard_cannot_remove_is_removed_later() -> None:
    async with fake_harness() as it:
        await prepare(it)
        it.world.go_down()
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match="cannot use container a: its leftovers cannot be removed yet"):
                await discard(it)
        assert not it.executor.owns("a")
        it.world.come_up()
        await eventually(lambda: not it.world.left())
        await discard(it)


@pytest.mark.parametrize("how", ["event", "kernel", "reconnect", "shim"])
async def test_e17_a_prepared_process_that_exits_is_discarded_and_its_exit_reaches_no_handler(how: str) -> None:
    world = FakeContainerd()
    world.deaf, world.blind = how != "event", how not in ("kernel", "shim")
    async with fake_harness(world, exits_early=True) as it:
        await prepare(it)
        if how == "shim":
            world.kill_shim("a")
        else:
            world.end("a", 137)
        if how == "reconnect":
            world.end_subscriptions()
        await it.executor.wait_removed("a")
        assert not world.left()
        with pytest.raises(errors.NotFound):
            await start(it)
        assert not it.exits.seen
        assert it.executor.last_exit("a") is None


@pytest.mark.parametrize("call", [start, discard])
async def test_e17_the_id_is_free_when_a_call_finds_a_prepared_process_exited(
    call: Callable[[FakeHarness], Awaitable[None]],
) -> None:
    async with fake_harness() as it:
        await prepare(it)
        it.world.end("a", 137)
        for _ in range(1000):
            if it.executor.is_prepared("a"):
                await anyio.lowlevel.checkpoint()
        assert it.executor.owns("a"), "it is being removed"
        with suppress(errors.NotFound):
            await call(it)
        assert not it.world.left()
        await it.create()


async def test_e17_an_exit_at_the_start_is_reported_once() -> None:
    async with fake_harness() as it:
        await prepare(it)
        it.world.delayed = []
        await start(it)
        it.world.end("a", 4)
        it.world.release()
        await eventually(lambda: it.exits.seen)
        await it.executor.wait_removed("a")
        assert [exit.code for exit in it.exits.seen] == [4]


async def test_e18_a_close_leaves_what_is_prepared_and_the_next_process_removes_it() -> None:
    world = FakeContainerd()
    async with fake_harness(world) as it:
        await prepare(it)
    assert world.tasks["a"].status is Status.CREATED
    async with fake_harness(world) as it:
        assert not await it.restore("a")
        assert not world.left()
        assert it.executor.last_exit("a") is None
        assert not it.exits.seen


async def test_e19_an_id_that_is_prepared_is_in_use() -> None:
    async with fake_harness() as it:
        await prepare(it)
        for call in (it.create, it.restore, lambda: prepare(it)):
            with pytest.raises(errors.Conflict, match="already in use"):
                await call()
        await start(it)
        assert it.world.tasks["a"].status is Status.RUNNING

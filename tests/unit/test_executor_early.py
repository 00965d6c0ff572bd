"""Exits that are reported before the removal: the option of an executor whose runs have ids of their own."""

import anyio
import pytest

from moorage import errors
from support.conditions import eventually
from support.fake_containerd import Call, FakeContainerd
from support.fake_harness import FakeHarness, fake_harness
from support.sinks import Exits

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


async def test_i17_an_exit_is_reported_with_its_output_while_the_task_exists_and_removed_then() -> None:
    exits = Exits(waits={"a": anyio.Event()})
    async with fake_harness(exits=exits, exits_early=True) as it:
        await it.create("a", out=b"last words")
        it.world.end("a", 137, oom=True)
        await eventually(lambda: exits.seen)
        assert (exits.seen[0].code, exits.seen[0].signal, exits.seen[0].oom) == (137, "SIGKILL", True)
        assert it.sinks[0].data == b"last words"
        assert "a" in it.world.tasks
        assert it.executor.owns("a")
        with pytest.raises(errors.Conflict, match="already in use"):
            await it.create("a")
        await it.create("b")  # another run does not wait
        exits.waits["a"].set()
        await it.executor.wait_removed("a")
        assert not it.executor.owns("a")
        assert all(line.endswith(" b") for line in it.world.left())
        await it.create("a")
        assert len(exits.seen) == 1


async def test_i17_a_removal_that_fails_is_repeated_and_the_exit_is_not() -> None:
    async with fake_harness(exits_early=True) as it:
        await it.create()
        failures = 3

        async def fault(call: Call) -> None:
            nonlocal failures
            if call.name == "delete_task" and not call.after and failures:
                failures -= 1
                raise errors.Unavailable("cannot reach containerd")

        it.client.fault = fault
        it.world.end("a", 3)
        await it.executor.wait_removed("a")
        assert failures == 0
        assert [exit.code for exit in it.exits.seen] == [3]
        assert it.world.left() == []


async def test_i17_a_handler_that_raises_prevents_no_removal() -> None:
    async with fake_harness(exits=Exits(fail=True), exits_early=True) as it:
        await it.create()
        it.world.end("a", 3)
        await it.executor.wait_removed("a")
        assert it.world.left() == []
        assert len(it.exits.seen) == 1


async def kill_shim(it: FakeHarness) -> None:
    it.world.kill_shim("a")


async def test_i17_an_exit_that_only_the_removal_knows_is_reported_after_it() -> None:
    async with fake_harness(exits_early=True) as it:
        await it.create()
        await kill_shim(it)
        await eventually(lambda: it.exits.seen)
        assert it.world.left() == []
        assert not it.executor.owns("a")
        assert it.exits.seen[0].code is None


async def test_i17_the_next_process_finds_what_was_reported_and_not_removed() -> None:
    world, exits = FakeContainerd(), Exits(waits={"a": anyio.Event()})
    async with fake_harness(world, exits=exits, exits_early=True) as it:
        await it.create()
        world.end("a", 3)
        await eventually(lambda: exits.seen)
    async with fake_harness(world, exits_early=True) as it:
        assert not await it.restore("a")
        assert world.left() == []
        found = it.executor.last_exit("a")
        assert found is not None
        assert found.code == 3
        assert not it.exits.seen

"""The executor's create on the fake (rows E01 to E14)."""

import logging
from collections.abc import Callable

import pytest

from moorage import errors
from moorage.containerd.types import Mount, Status
from moorage.executor import RUN_LABEL
from support.conditions import eventually, settled
from support.fake_containerd import (
    HALF_MADE,
    RUNTIME_STATE,
    TASK_DIRECTORY,
    Call,
    FakeContainerd,
    fail_at,
)
from support.fake_harness import RUNTIME, at_call, fake_harness, leave, missing, spec
from support.fake_streams import FakeInput
from support.sinks import Memory

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def refuse(text: str) -> Callable[[], None]:
    def raise_it() -> None:
        raise errors.MoorageError(text)

    return raise_it


async def test_e01_create_makes_the_record_then_the_task_then_starts_it() -> None:
    async with fake_harness() as it:
        await it.executor.create("a", spec("a"), *it.pair(), labels={"who": "me", RUN_LABEL: "mine"})
        assert it.called() == ["subscribe", "create_container", "create_task", "start_task"]
        record = it.world.records["a"]
        assert record.spec == spec("a")
        assert record.options == RUNTIME
        assert record.labels["who"] == "me"
        assert record.labels[RUN_LABEL] not in ("", "mine")


async def test_e07_the_pipes_belong_to_the_specs_user() -> None:
    async with fake_harness() as it:
        expected = {
            **spec("a"),
            "process": {**spec("a")["process"], "user": {"uid": 5, "gid": 6}},
            "linux": {"uidMappings": [{"containerID": 0, "hostID": 100, "size": 10}]},
        }
        await it.executor.create("a", expected, *it.pair())
        options = it.world.records["a"].options
        assert (options.io_uid, options.io_gid, options.root) == (105, 6, RUNTIME.root)


async def test_e08_rootfs_mounts_are_handed_on() -> None:
    async with fake_harness() as it:
        mounts = [Mount("bind", "/somewhere")]
        await it.executor.create("a", spec("a"), *it.pair(), rootfs=mounts)
        assert it.world.records["a"].rootfs == mounts


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.PAUSING, Status.UNKNOWN])
async def test_e02_what_may_live_is_not_touched_and_the_first_error_stands(status: Status) -> None:
    world = FakeContainerd()
    await leave(world, status)
    task, record = world.tasks["a"], world.records["a"]
    async with fake_harness(world) as it:
        with pytest.raises(errors.Conflict, match="already"):
            await it.create()
        assert it.called() == ["subscribe", "get_task", "get_container"], "only asked"
    assert (world.tasks["a"], world.records["a"]) == (task, record)
    assert task.status is (Status.RUNNING if status is Status.UNKNOWN else status)


@pytest.mark.parametrize("status", [None, Status.CREATED, Status.STOPPED])
async def test_e02_what_does_not_live_is_replaced(status: Status | None) -> None:
    world = FakeContainerd()
    await leave(world, status)
    old = world.records["a"]
    async with fake_harness(world) as it:
        await it.create()
        assert it.called("create_container") == ["create_container"], "the directory alone refuses the first try"
        assert world.records["a"] is not old
        assert world.tasks["a"].status is Status.RUNNING


async def test_e02_the_record_is_created_once_more_and_no_oftener() -> None:
    async def fault(call: Call) -> None:
        if call.name == "create_container":
            raise errors.MoorageError("the database is broken")

    async with fake_harness() as it:
        it.client.fault = fault
        with pytest.raises(errors.MoorageError, match=r"^cannot create containerd container: the database is broken$"):
            await it.create()
        assert len(it.called("create_container")) == 2
        assert not it.world.left()


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.MoorageError, errors.NotFound])
async def test_e02_a_status_that_cannot_be_read_is_a_warning_and_leftovers_are_cleared(
    kind: type[errors.MoorageError], caplog: pytest.LogCaptureFixture
) -> None:
    world = FakeContainerd()
    await leave(world, None)
    async with fake_harness(world) as it:
        seen = False

        async def fault(call: Call) -> None:
            nonlocal seen
            if call.name == "get_task" and not seen:
                seen = True
                raise kind("in this test")

        it.client.fault = fault
        await it.create()
        assert world.tasks["a"].status is Status.RUNNING
    said = "cannot read the status of a, whose id is requested: in this test"
    assert warnings(caplog) == ([] if kind is errors.NotFound else [said])


@pytest.mark.parametrize("kind", [errors.MoorageError, errors.NotFound])
async def test_e02_a_deletion_that_fails_is_logged_and_the_rest_goes_on(
    kind: type[errors.MoorageError], caplog: pytest.LogCaptureFixture
) -> None:
    world = FakeContainerd()
    await leave(world, Status.STOPPED)
    async with fake_harness(world) as it:
        it.client.fault = fail_at(3, kind("in this test"))
        await it.create()
        assert world.tasks["a"].status is Status.RUNNING
    said = "cannot delete the task of a: in this test"
    assert warnings(caplog) == ([] if kind is errors.NotFound else [said])


@pytest.mark.parametrize("what", [HALF_MADE, RUNTIME_STATE, TASK_DIRECTORY, "task", "task and directory"])
async def test_e04_leftovers_that_refuse_the_task_are_cleared(what: str) -> None:
    world = FakeContainerd()
    if what.startswith("task"):
        await leave(world, Status.RUNNING)
        del world.records["a"]
        if what == "task":
            world.bundles.clear()
    else:
        world.obstacles.add(("a", what))
    async with fake_harness(world) as it:
        await it.create(out=b"hello")
        await settled()
        assert world.tasks["a"].status is Status.RUNNING
        assert not world.obstacles
        assert it.sinks[0].data == b"hello"


async def test_e03_a_task_that_cannot_be_made_leaves_nothing_and_fails_alike_every_time() -> None:
    async with fake_harness() as it:
        for _ in range(3):
            with pytest.raises(errors.MoorageError, match="/missing/command") as caught:
                await it.executor.create("a", missing("a"), *it.pair())
            assert type(caught.value) is errors.MoorageError
            assert not it.world.left()
        await it.create()
    assert not it.exits.seen


async def test_e04_the_task_goes_first_then_the_record() -> None:
    async with fake_harness() as it:
        it.client.fault = at_call("start_task", refuse("no start"))
        with pytest.raises(errors.MoorageError, match=r"^no start$"):
            await it.create()
        begin = it.called().index("start_task") + 1
        assert [name for name in it.called()[begin:] if name != "get_task"] == [
            "kill",
            "wait",
            "delete_task",
            "delete_container",
        ]
        assert not it.world.left()


@pytest.mark.parametrize("kind", [errors.MoorageError, OSError])
@pytest.mark.parametrize("failing", ["kill", "delete_task", "delete_container"])
async def test_e04_a_failing_clean_up_is_logged_and_hides_nothing(
    failing: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def fault(call: Call) -> None:
        if call.name == "start_task":
            raise errors.MoorageError("no start")
        if call.name == failing:
            raise kind("no clean-up")

    async with fake_harness() as it:
        it.client.fault = fault
        with pytest.raises(errors.MoorageError, match=r"^no start$"):
            await it.create()
        assert "no clean-up" in " ".join(warnings(caplog))
        assert "a" in " ".join(warnings(caplog))


async def test_e04_while_a_process_may_live_its_record_stays() -> None:
    async with fake_harness() as it:
        world = it.world

        def live_on() -> None:
            world.tasks["a"].immortal = True
            raise errors.MoorageError("no start")

        it.client.fault = at_call("start_task", live_on)
        with pytest.raises(errors.MoorageError, match=r"^no start$"):
            await it.create()
        assert "a" in world.records
        assert "a" in world.bundles
        assert not it.called("delete_container")


async def test_e13_an_input_is_a_bug_and_create_undoes_itself() -> None:
    async with fake_harness() as it:
        it.client.stdin = FakeInput()
        with pytest.raises(errors.MoorageError, match="bug"):
            await it.create()
        assert it.client.stdin.closed
        assert not it.world.left()


async def test_an_id_is_in_use_from_the_beginning_and_free_after_a_failure() -> None:
    async with fake_harness() as it:
        it.client.fault = at_call("create_task", refuse("no"))
        for broken in ({"process": None}, {"linux": {"uidMappings": 5}}, {}):
            with pytest.raises((errors.MoorageError, TypeError, KeyError)):
                await it.executor.create("a", broken, *it.pair())
        await it.create()


async def test_i21_output_without_a_sink_is_discarded() -> None:
    async with fake_harness() as it:
        await it.executor.create("b", spec("b"))
        await it.executor.create("c", spec("c", out=b"x", code=0), Memory())
        await eventually(lambda: it.executor.last_exit("c"))
        await it.create()

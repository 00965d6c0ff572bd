from functools import partial

import anyio
import pytest

from moorage import errors
from moorage._lib.inbox import Inboxes
from support.conditions import settled
from support.limits import limit

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


async def test_jobs_of_a_key_run_one_at_a_time_and_in_order() -> None:
    done: list[int] = []
    busy = 0

    async def job(number: int) -> None:
        nonlocal busy
        assert busy == 0
        busy += 1
        await anyio.lowlevel.checkpoint()
        busy -= 1
        done.append(number)

    async with anyio.create_task_group() as tasks:
        inboxes: Inboxes[str] = Inboxes(tasks)
        for number in range(20):
            inboxes.put("a", partial(job, number))
    assert done == list(range(20))


async def test_a_key_that_is_busy_keeps_no_other_waiting() -> None:
    async with anyio.create_task_group() as tasks:
        inboxes: Inboxes[str] = Inboxes(tasks)
        go_on = anyio.Event()
        inboxes.put("slow", go_on.wait)
        with anyio.fail_after(limit(5)):
            await inboxes.run("quick", anyio.lowlevel.checkpoint)
        go_on.set()


async def test_a_job_may_queue_one_for_its_own_key() -> None:
    done: list[str] = []

    async def second() -> None:
        done.append("second")

    async with anyio.create_task_group() as tasks:
        inboxes: Inboxes[str] = Inboxes(tasks)

        async def first() -> None:
            inboxes.put("a", second)
            done.append("first")

        await inboxes.run("a", first)
    assert done == ["first", "second"]


async def test_an_idle_key_costs_nothing_and_works_again() -> None:
    async with anyio.create_task_group() as tasks:
        inboxes: Inboxes[int] = Inboxes(tasks)
        for _ in range(2):
            for key in range(100):
                await inboxes.run(key, anyio.lowlevel.checkpoint)
            await settled()
            assert not inboxes._waiting


async def test_what_a_job_raises_is_raised_to_its_waiter_and_the_next_job_runs() -> None:
    async def fail() -> None:
        raise LookupError("here")

    async with anyio.create_task_group() as tasks:
        inboxes: Inboxes[str] = Inboxes(tasks)
        inboxes.put("a", fail)  # reported to no caller
        with pytest.raises(LookupError, match="here"):
            await inboxes.run("a", fail)
        await inboxes.run("a", anyio.lowlevel.checkpoint)


async def test_a_waiter_that_is_cancelled_leaves_the_job_running() -> None:
    go_on, done = anyio.Event(), anyio.Event()

    async def job() -> None:
        await go_on.wait()
        done.set()

    async with anyio.create_task_group() as tasks:
        inboxes: Inboxes[str] = Inboxes(tasks)
        with anyio.move_on_after(0):
            await inboxes.run("a", job)
        go_on.set()
        with anyio.fail_after(limit(5)):
            await done.wait()


async def test_when_the_workers_end_all_waiters_are_notified() -> None:
    reported: list[str] = []

    async def wait_for(inboxes: Inboxes[str], name: str) -> None:
        with pytest.raises(errors.Conflict):
            await inboxes.run("a", anyio.sleep_forever)
        reported.append(name)

    async with anyio.create_task_group() as waiters:
        async with anyio.create_task_group() as tasks:
            inboxes: Inboxes[str] = Inboxes(tasks)
            waiters.start_soon(wait_for, inboxes, "under way")
            await settled()
            waiters.start_soon(wait_for, inboxes, "queued")
            await settled()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(limit(5)):
            while len(reported) < 2:
                await anyio.lowlevel.checkpoint()

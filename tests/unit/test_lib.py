"""The small tools: locks between processes, the end of a process, directories, background tasks."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from moorage._lib.filelock import hold_lock, try_lock
from moorage._lib.groups import background_tasks
from moorage._lib.pidfd import wait_for_end
from moorage._lib.threads import mount_points_below, run_blocking
from moorage.host.beneath import remove_tree
from support.waiting import PATIENCE_SECONDS, settled

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000000"]) as process:
        yield process
        process.kill()


async def test_the_end_of_a_process_is_seen_also_where_it_has_ended_already(sleeper: subprocess.Popen[bytes]) -> None:
    ended = False

    async def wait() -> None:
        nonlocal ended
        await wait_for_end(sleeper.pid)
        ended = True

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settled()
            assert not ended
            os.kill(sleeper.pid, signal.SIGKILL)
        assert ended
        await wait_for_end(sleeper.pid)  # a zombie
        sleeper.wait()
        await wait_for_end(sleeper.pid)  # nobody


async def test_waiting_for_an_end_can_be_cancelled_and_keeps_no_descriptor(sleeper: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with anyio.move_on_after(0.001):
            await wait_for_end(sleeper.pid)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="Invalid argument"):
        await wait_for_end(-1)


async def test_a_lock_is_held_by_one_at_a_time_and_waiting_for_it_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = 0

    async def take() -> None:
        nonlocal inside
        async with hold_lock(path):
            inside += 1
            assert inside == 1
            await anyio.lowlevel.checkpoint()
            inside -= 1

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(take)
    async with hold_lock(path):
        assert try_lock(path) is None
        with anyio.move_on_after(0.03) as scope:
            await take()
        assert scope.cancelled_caught
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)


async def test_a_lock_is_free_when_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = "import sys; from moorage._lib.filelock import *; from pathlib import Path; try_lock(Path(sys.argv[1]))"
    script = f"{program}; print('held', flush=True); sys.stdin.read()"
    async with await anyio.open_process([sys.executable, "-c", script, str(path)]) as holder:
        assert holder.stdout
        assert (await holder.stdout.receive()).startswith(b"held")
        assert try_lock(path) is None
        holder.kill()
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)


async def test_a_directory_is_removed_with_all_below_it_and_one_that_is_gone_is_fine(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_text("x")
    (top / "link").symlink_to(tmp_path)
    os.mkfifo(top / "fifo")
    await remove_tree(top)
    assert not os.listdir(tmp_path)
    await remove_tree(top)


async def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        await remove_tree(tmp_path / "file" / "below")


def test_mount_points_are_found_deepest_first() -> None:
    assert Path("/proc") in mount_points_below(Path("/"))
    assert mount_points_below(Path("/proc"))[-1] == Path("/proc")
    found = mount_points_below(Path("/"))
    assert [len(point.parts) for point in found] == sorted((len(point.parts) for point in found), reverse=True)
    assert mount_points_below(Path("/nowhere")) == []


async def test_a_blocking_call_is_finished_also_when_it_is_cancelled() -> None:
    begun, may_end = threading.Event(), threading.Event()
    scope = anyio.CancelScope()
    finished_at_return: list[bool] = []
    finished = False

    def block() -> None:
        nonlocal finished
        begun.set()
        may_end.wait()
        finished = True

    async def call() -> None:
        with scope:
            await run_blocking(block)
        finished_at_return.append(finished)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        while not begun.is_set():
            await settled()
        scope.cancel()
        await settled()
        may_end.set()
    assert finished_at_return == [True]


async def test_background_tasks_end_with_the_block_and_its_failure_comes_out_as_itself() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("work")

    async def block() -> None:
        async with background_tasks() as tasks:
            tasks.start_soon(work)
            await settled()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await block()
    assert ended == ["work"]


async def test_a_background_task_that_fails_ends_the_block() -> None:
    async def fail() -> None:
        raise LookupError("its own")

    async def block() -> None:
        async with background_tasks() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(ExceptionGroup) as caught:
        await block()
    assert caught.group_contains(LookupError, match="its own")

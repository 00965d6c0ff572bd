"""The small tools: locks between processes, the exit of a process, directories, background tasks."""

import errno
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

from moorage._lib.task_groups import background_tasks, side_by_side
from moorage._lib.threads import run_blocking
from moorage.host.directory_tree import remove_tree
from moorage.host.files import file_lock, try_lock
from moorage.host.mounts import mount_points_below
from moorage.host.processes import open_process, send_signal, wait_for_exit
from support.conditions import TIMEOUT_SECONDS, settled

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000000"]) as process:
        yield process
        process.kill()


async def test_the_exit_of_a_process_is_seen_also_where_it_has_exited_already(sleeper: subprocess.Popen[bytes]) -> None:
    is_finished = False

    async def wait() -> None:
        nonlocal is_finished
        await wait_for_exit(sleeper.pid)
        is_finished = True

    with anyio.fail_after(TIMEOUT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settled()
            assert not is_finished
            os.kill(sleeper.pid, signal.SIGKILL)
        assert is_finished
        await wait_for_exit(sleeper.pid)  # a zombie
        sleeper.wait()
        await wait_for_exit(sleeper.pid)  # no such process


async def test_waiting_for_an_end_can_be_cancelled_and_keeps_no_descriptor(sleeper: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with anyio.move_on_after(0.001):
            await wait_for_exit(sleeper.pid)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="Invalid argument"):
        await wait_for_exit(-1)


@pytest.fixture
def reaped_leader() -> Iterator[int]:
    """The pid of a process that was reaped, and whose session and process group exist still."""
    command = ["sh", "-c", "sleep 1000000 >&- & echo $!"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
    assert os.getsid(member) == leader.pid
    yield leader.pid
    os.kill(member, signal.SIGKILL)


@pytest.mark.parametrize("kernel", ["this", "an earlier one"])
async def test_a_pid_that_is_only_that_of_a_session_any_more_is_no_process(
    reaped_leader: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "this":  # Linux 6.1 says EINVAL for such a pid, 6.18 ESRCH

        def refuse(pid: int) -> int:
            assert pid == reaped_leader
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(os, "pidfd_open", refuse)
    assert open_process(reaped_leader) is None
    await wait_for_exit(reaped_leader)
    assert not send_signal(reaped_leader, signal.SIGTERM, lambda _: True)


async def test_a_lock_has_one_owner_at_a_time_and_waiting_for_it_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = 0

    async def take() -> None:
        nonlocal inside
        async with file_lock(path):
            inside += 1
            assert inside == 1
            await anyio.lowlevel.checkpoint()
            inside -= 1

    with anyio.fail_after(TIMEOUT_SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(take)
    async with file_lock(path):
        assert try_lock(path) is None
        with anyio.move_on_after(0.03) as scope:
            await take()
        assert scope.cancelled_caught
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)


async def test_a_lock_is_free_when_its_owner_exits(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = "import sys; from moorage.host.files import *; from pathlib import Path; try_lock(Path(sys.argv[1]))"
    script = f"{program}; print('held', flush=True); sys.stdin.read()"
    async with await anyio.open_process([sys.executable, "-c", script, str(path)]) as holder:
        assert holder.stdout
        assert (await holder.stdout.receive()).startswith(b"held")
        assert try_lock(path) is None
        holder.kill()
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)


async def test_a_directory_is_removed_with_all_below_it_and_one_that_is_missing_is_fine(tmp_path: Path) -> None:
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
    started, may_end = threading.Event(), threading.Event()
    scope = anyio.CancelScope()
    finished_at_return: list[bool] = []
    finished = False

    def block() -> None:
        nonlocal finished
        started.set()
        may_end.wait()
        finished = True

    async def call() -> None:
        with scope:
            await run_blocking(block)
        finished_at_return.append(finished)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        while not started.is_set():
            await settled()
        scope.cancel()
        await settled()
        may_end.set()
    assert finished_at_return == [True]


async def test_side_by_side_all_jobs_are_done_before_the_first_failure_comes_out_as_itself() -> None:
    done, started = [], anyio.Event()

    async def slow() -> None:
        await started.wait()
        done.append("slow")
        raise LookupError("slow")

    async def quick() -> None:
        started.set()
        raise ValueError("quick")

    with pytest.raises(LookupError, match="slow"):
        await side_by_side(slow, quick)
    assert done == ["slow"]
    with pytest.raises(ValueError, match="quick"):
        await side_by_side(quick, quick)
    await side_by_side()


async def test_background_tasks_end_with_the_block_and_its_failure_comes_out_as_itself() -> None:
    is_finished: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            is_finished.append("work")

    async def block() -> None:
        async with background_tasks() as tasks:
            tasks.start_soon(work)
            await settled()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await block()
    assert is_finished == ["work"]


async def test_a_background_task_that_fails_ends_the_block() -> None:
    async def fail() -> None:
        raise LookupError("its own")

    async def block() -> None:
        async with background_tasks() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()

    with anyio.fail_after(TIMEOUT_SECONDS), pytest.raises(ExceptionGroup) as caught:
        await block()
    assert caught.group_contains(LookupError, match="its own")

"""Containerd, shims and our own process killed or stopped under running containers (rows E43 to E45, E49, E51)."""

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.containerd.supervisor import supervise
from moorage.containerd.types import Status, TaskExit
from moorage.executor import RUN_LABEL, Attached, Stdio
from support import leftovers
from support.conditions import TIMEOUT_SECONDS, eventually
from support.executor_process import executor_process
from support.harness import Harness, harness
from support.kills import kill, kill_containerd, replace_containerd, stopped
from support.limits import limit
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

LIVES_UNTIL_TERM = "trap 'echo bye; exit 6' TERM; echo ready; sleep 1000000 & wait"


# Whatever is planned for later comes soon, so that a wrong decision shows before a test has ended.
SOON = replace(TIMEOUTS, exit_drain=0.05, stream_wait=0.1, reconnect_first=0.01, reconnect_limit=0.05)


async def compared(it: Harness) -> None:
    """Let other containers live and end meanwhile: what was planned for this one has been done by then."""
    for _ in range(3):
        await it.run("exit 0", "b")


async def ready(it: Harness, text: str = LIVES_UNTIL_TERM) -> int:
    """Start a shell that says ready; its pid."""
    out, err = it.pair()
    await it.executor.create("a", it.workspace.shell("a", text), out, err)
    await eventually(lambda: out.text == "ready\n")
    return await it.pid()


async def end(pid: int) -> None:
    """Let the process exit by itself, and wait for it."""
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: not leftovers.is_alive(pid))


async def test_e43_an_exit_while_containerd_is_down_is_reported_once_it_is_back(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        await kill_containerd(workspace.containerd)
        await end(pid)
        assert not it.exits.seen
        await workspace.containerd.ensure()
        exit = await it.one_exit(6)
        assert exit.pid == pid
        assert it.sinks[0].text == "ready\nbye\n"
        await workspace.assert_nothing_left()
        assert len(it.exits.seen) == 1


@pytest.mark.sampled(1)
@pytest.mark.long
@pytest.mark.parametrize("seconds", [2, 20])
async def test_e43_an_exit_in_an_outage_is_reported_once_whether_its_event_is_replayed_or_not(
    workspace: Workspace, seconds: float
) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        await kill_containerd(workspace.containerd)
        await end(pid)
        await anyio.sleep(seconds)  # the shim tries for 15 s to send its event
        await workspace.containerd.ensure()
        await it.one_exit(6)
        async with harness(workspace, replace(TIMEOUTS, reconcile=0.1)) as other:  # what comes late would come by now
            await other.create(id="b")
            await other.kill("b")
            await other.one_exit(137, "b")
        assert len(it.exits.seen) == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_e44_containerd_restarting_ten_times_changes_neither_pid_nor_run(
    workspace: Workspace, number: int
) -> None:
    async with harness(workspace, SOON) as it:
        pid = await ready(it)
        run = (await it.client.get_container("a")).labels[RUN_LABEL]
        for _ in range(10):
            containerd = workspace.containerd.find()
            assert containerd
            os.kill(containerd, number)
            await eventually(lambda: workspace.containerd.find() is None)
            await it.executor.process_event("a", TaskExit("a", "a", pid, 0))  # a hint that cannot be confirmed now
            await workspace.containerd.ensure()
            assert await it.pid() == pid
            assert await it.executor.is_running("a")
        await compared(it)
        assert leftovers.is_alive(pid)
        assert (await it.client.get_container("a")).labels[RUN_LABEL] == run
        assert not it.exits.of("a")
        await end(pid)
        await it.one_exit(6)


async def test_e44_a_shim_that_stands_still_is_no_exit(workspace: Workspace) -> None:
    async with harness(workspace, SOON) as it:
        pid = await ready(it)
        with stopped(*workspace.shims("a")):
            await it.executor.process_event("a", TaskExit("a", "a", pid, 0))
            task = await it.client.get_task("a")
            assert (task.status, task.pid) == (Status.UNKNOWN, 0)
            assert not it.exits.seen
        await compared(it)
        assert leftovers.is_alive(pid)
        assert await it.executor.is_running("a")
        with stopped(*workspace.shims("a")):
            await end(pid)  # only the kernel knows
            assert not it.exits.of("a")
        await it.one_exit(6)


async def test_e44_a_shim_that_stands_still_is_no_exit_without_a_record_either(workspace: Workspace) -> None:
    async with harness(workspace, SOON) as it:
        pid = await ready(it)
        with stopped(*workspace.shims("a")):
            await it.client.delete_container("a")  # its task is only in the list, and from 1.7 on not even there
            await it.executor.process_event("a", TaskExit("a", "a", pid, 0))
            assert not it.exits.of("a")
        await compared(it)
        assert leftovers.is_alive(pid)
        assert await it.executor.is_running("a")
        await end(pid)
        await it.one_exit(6)


@pytest.mark.long
async def test_e44_a_shim_that_is_slow_while_containerd_restarts_keeps_its_container(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        with stopped(*workspace.shims("a")):
            await kill_containerd(workspace.containerd)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(workspace.containerd.ensure)
                await anyio.sleep(7)  # containerd's own limit would be 5 s
                assert leftovers.is_alive(pid)
                for shim in workspace.shims("a"):
                    os.kill(shim, signal.SIGCONT)
        assert await it.pid() == pid
        await end(pid)
        await it.one_exit(6)


async def test_e44_a_containerd_that_stands_still_is_unavailable_and_no_exit(workspace: Workspace) -> None:
    async with harness(workspace, replace(SOON, rpc=limit(0.3))) as it:
        pid = await ready(it)
        containerd = workspace.containerd.find()
        assert containerd
        with stopped(containerd):
            with pytest.raises(errors.Unavailable):
                await it.executor.is_running("a")
            with pytest.raises(errors.Unavailable):
                await it.restore("b")
            await it.executor.process_event("a", TaskExit("a", "a", pid, 0))
        await compared(it)
        assert leftovers.is_alive(pid)
        with stopped(containerd):
            await end(pid)
            assert not it.exits.of("a")
        await it.one_exit(6)


async def test_e45_an_outage_is_logged_once_at_each_end_and_everything_works_afterwards(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "moorage.executor")
    quick = replace(TIMEOUTS, reconnect_first=0.01, reconnect_limit=0.05)
    async with harness(workspace, quick) as it:
        pid = await ready(it)
        for _ in range(2):
            await kill_containerd(workspace.containerd)
            with pytest.raises(errors.Unavailable):
                await it.executor.is_running("a")
            begin = os.times().user + os.times().system
            await anyio.sleep(1)
            used = os.times().user + os.times().system - begin
            assert used < 0.5, f"{used} s of processor time in one second of waiting"
            await workspace.containerd.ensure()
            await eventually(lambda: caplog.messages[-1] == "containerd is available again")
        said = [message.partition(",")[0] for message in caplog.messages]
        assert said == ["containerd is unavailable", "containerd is available again"] * 2
        await end(pid)
        await it.one_exit(6)


async def test_e49_a_shim_that_is_killed_ends_the_run_without_a_code(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        for shim in workspace.shims("a"):
            await kill(shim)
        exit = await it.one_exit(None)
        assert not leftovers.is_alive(pid)
        assert (exit.signal, exit.pid) == (None, pid)
        await workspace.assert_nothing_left()
        await it.create()
        await it.kill()
        await eventually(lambda: [each.code for each in it.exits.seen] == [None, 137])


async def test_e49_a_shim_that_is_killed_while_containerd_is_down_ends_the_run_when_it_is_back(
    workspace: Workspace,
) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        await kill_containerd(workspace.containerd)
        for shim in workspace.shims("a"):
            await kill(shim)
        assert leftovers.is_alive(pid), "an orphan now"
        assert not it.exits.seen
        await workspace.containerd.ensure()
        await it.one_exit(None)
        assert not leftovers.is_alive(pid)
        await workspace.assert_nothing_left()
        await it.create()
        await it.kill()
        await eventually(lambda: [each.code for each in it.exits.seen] == [None, 137])


async def test_e49_a_task_that_was_never_started_has_no_exit(workspace: Workspace) -> None:
    async def kill_shim(stdio: Stdio) -> Attached:
        for shim in workspace.shims("a"):
            await kill(shim)
        raise errors.MoorageError("too late")

    async with harness(workspace) as it:
        with pytest.raises(errors.MoorageError, match="too late"):
            await it.executor.create("a", workspace.shell("a", LIVES_UNTIL_TERM), attach=kill_shim)
        await workspace.assert_nothing_left()
        assert not it.exits.seen
        assert it.executor.last_exit("a") is None
        await it.create()
        await it.kill()
        await it.one_exit(137)


async def test_e43_our_process_standing_still_misses_no_exit(workspace: Workspace) -> None:
    async with (
        executor_process(workspace, workspace.shell("a", LIVES_UNTIL_TERM)) as child,
        workspace.client() as client,
    ):
        assert await child.hear("output") == "ready\n"
        pid = (await client.get_task("a")).pid
        with stopped(child.pid):
            await end(pid)
            await replace_containerd(workspace.containerd)
        with anyio.fail_after(TIMEOUT_SECONDS):
            assert await child.hear("output") == "bye\n"
            # From 1.7 on it does not know what ended before it was started, and no executor was running to query it.
            forgets = not (await client.version()).version.startswith("1.6.")
            assert await child.hear("exit") in ((6, None) if forgets else (6,))
        await workspace.assert_nothing_left()


@pytest.mark.long
async def test_e51_our_process_killed_at_any_time_of_a_run_leaves_it_to_the_next(workspace: Workspace) -> None:
    for tenths in range(8):
        async with (
            executor_process(workspace, workspace.shell("a", LIVES_UNTIL_TERM)) as child,
            workspace.client() as client,
        ):
            assert await child.hear("output") == "ready\n"  # before that it would not hear the signal
            pid = (await client.get_task("a")).pid
            os.kill(pid, signal.SIGTERM)
            await anyio.sleep(tenths / 200)
            await kill(child.pid)
        async with harness(workspace) as it:
            if await it.restore():
                await it.one_exit(6)
            await workspace.assert_nothing_left()
            assert (exit := it.executor.last_exit("a")) is None or exit.code == 6


async def test_e43_containerd_and_its_shim_killed_together_while_the_process_ends(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        for _ in range(3):
            pid = await ready(it)
            before = len(it.exits.seen)
            os.kill(pid, signal.SIGTERM)
            await kill_containerd(workspace.containerd)
            for shim in workspace.shims("a"):
                await kill(shim)
            await workspace.containerd.ensure()
            await eventually(lambda: len(it.exits.seen) > before)  # noqa: B023 - waited for here
            assert it.exits.seen[-1].code in (6, None)
            await workspace.assert_nothing_left()
            assert len(it.exits.seen) == before + 1


async def test_e43_a_supervised_containerd_is_restarted_and_the_exit_is_reported(workspace: Workspace) -> None:
    async with supervise(workspace.containerd.root, workspace.containerd.state) as containerd, harness(workspace) as it:
        pid = await ready(it)
        first = containerd.find()
        await kill_containerd(containerd)
        await end(pid)
        await it.one_exit(6)
        assert containerd.find() not in (first, None)


async def test_a_container_whose_record_was_deleted_keeps_running_and_its_exit_is_reported(
    workspace: Workspace,
) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        await it.client.delete_container("a")
        await replace_containerd(workspace.containerd)  # so that everything is compared
        async with harness(workspace) as other:
            await other.run("exit 0", "b")
        assert leftovers.is_alive(pid)
        assert not it.exits.seen
        await end(pid)
        await it.one_exit(6)


async def test_a_container_whose_directory_vanished_keeps_running_and_its_exit_is_reported(
    workspace: Workspace,
) -> None:
    async with harness(workspace) as it:
        pid = await ready(it)
        shutil.rmtree(workspace.bundles / "a")
        await replace_containerd(workspace.containerd)
        assert await it.executor.is_running("a")
        await end(pid)
        await it.one_exit(6)
        assert it.sinks[0].text == "ready\nbye\n"


@pytest.fixture
def small_disk(workspace: Workspace) -> Iterator[Workspace]:
    """The executor's directory on a file system of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", workspace.root], check=True)
    yield workspace
    subprocess.run(["umount", workspace.root], check=True)


def fill(path: Path) -> None:
    """Take all the room that there is."""
    with suppress(OSError), open(path, "wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))


async def test_e43_with_a_full_disk_the_exit_is_reported_and_everything_removed(small_disk: Workspace) -> None:
    async with harness(small_disk) as it:
        pid = await ready(it)
        fill(small_disk.root / "full")
        await end(pid)
        await it.one_exit(6)
        assert not small_disk.files()
        (small_disk.root / "full").unlink()

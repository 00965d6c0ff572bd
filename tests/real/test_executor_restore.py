"""The executor's restore, questions and signals on a real containerd (rows E20 to E31, E50, E51)."""

import os
import shutil
import signal

import anyio
import pytest

from moorage import errors
from moorage.containerd.types import RuntimeOptions, Status
from moorage.executor import RUN_LABEL
from support import leftovers
from support.conditions import TIMEOUT_SECONDS, eventually
from support.executor_process import executor_process
from support.harness import Harness, harness
from support.kills import kill, kill_task, stop
from support.sinks import Memory
from support.specs import FOREVER
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

COUNTS_ON_USR1 = "trap 'n=$((n + 1)); echo $n' USR1; n=0; echo ready; while :; do sleep 1000000 & wait $!; done"


async def printed(workspace: Workspace, pid: int, sink: Memory, text: str) -> None:
    """Make the process say its next number."""
    os.kill(pid, signal.SIGUSR1)
    await eventually(lambda: text in sink.text)


@pytest.mark.parametrize("paused", [False, True])
async def test_e20_e50_a_container_outlives_its_executor_and_is_taken_over_by_the_next(
    workspace: Workspace, paused: bool
) -> None:
    async with harness(workspace) as it:
        out, err = it.pair()
        await it.executor.create("a", workspace.shell("a", COUNTS_ON_USR1), out, err)
        pid = await it.pid()
        await eventually(lambda: out.text == "ready\n")
        run = (await it.client.get_container("a")).labels[RUN_LABEL]
    assert leftovers.is_alive(pid)
    os.kill(pid, signal.SIGUSR1)  # what it prints while there is no reader waits in the pipe
    async with harness(workspace) as it:
        if paused:
            await it.client.pause("a")
        out, err = it.pair()
        assert await it.executor.restore("a", out, err)
        if paused:
            await it.client.resume("a")
        await eventually(lambda: out.text == "1\n")
        await printed(workspace, pid, out, "2\n")
        assert await it.pid() == pid
        await it.executor.signal("a", signal.SIGKILL)
        exit = await it.one_exit(137)
        assert (exit.run, exit.pid, exit.signal) == (run, pid, "SIGKILL")
        assert (out.text, err.text) == ("1\n2\n", "")
        await workspace.assert_nothing_left()


async def make(it: Harness, state: str) -> None:
    """A container as an earlier process, or a meddling user, may have left it."""
    if state == "nothing":
        return
    async with harness(it.workspace) as before:
        pid = await before.create("exec sleep 1000000")
    match state:
        case "stopped":
            await kill_task(it.client, "a")
        case "record only":
            await kill_task(it.client, "a")
            await it.client.delete_task("a")
        case "directory only":
            await kill_task(it.client, "a")
            await it.client.delete_task("a")
            await it.client.delete_container("a")
        case "no fifos":
            for name in ("stdout", "stderr"):
                (it.workspace.bundles / "a" / name).unlink()
        case "one fifo":
            (it.workspace.bundles / "a" / "stderr").unlink()
        case "no directory":
            shutil.rmtree(it.workspace.bundles / "a")
        case "no record":
            await it.client.delete_container("a")
        case "shim killed":
            for shim in it.workspace.shims("a"):
                await kill(shim)
            await eventually(lambda: not leftovers.is_alive(pid))
        case _:
            raise AssertionError(state)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("nothing", None),
        ("stopped", 137),
        ("record only", None),
        ("directory only", None),
        ("no fifos", 137),
        ("one fifo", 137),
        ("no directory", 137),
        ("no record", 137),
        ("shim killed", None),
    ],
)
async def test_e21_what_does_not_live_is_removed_without_a_handler_and_its_exit_remembered(
    workspace: Workspace, state: str, code: int | None
) -> None:
    async with harness(workspace) as it:
        await make(it, state)
        assert not await it.restore()
        await workspace.assert_nothing_left()
        exit = it.executor.last_exit("a")
        assert (exit.code if exit else None) == code
        await it.create()
        assert it.executor.last_exit("a") is None
        await it.kill()
        await it.one_exit(137)


async def test_e21_one_that_was_created_and_never_started_is_removed_and_has_no_exit(workspace: Workspace) -> None:
    async with workspace.containers() as containers:
        await containers.create("a", workspace.spec("a"), workspace.runtime, labels={RUN_LABEL: "x"})

        async def refuse(stdio: object) -> object:
            raise LookupError

        with pytest.raises(LookupError):
            await containers.start("a", "", False, refuse)  # type: ignore[arg-type]  # it never returns
    async with harness(workspace) as it:
        assert (await it.client.get_task("a")).status is Status.CREATED
        assert not await it.restore()
        assert it.executor.last_exit("a") is None
        await workspace.assert_nothing_left()


async def test_e21_a_shim_that_does_not_answer_is_an_error_and_the_container_stays(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        pid = await it.create()
    async with harness(workspace) as it:
        for shim in workspace.shims("a"):
            stop(shim)
        with pytest.raises(errors.Unavailable, match="shim"):
            await it.restore()
        for shim in workspace.shims("a"):
            os.kill(shim, signal.SIGCONT)
        assert leftovers.is_alive(pid)
        assert await it.restore()
        await it.kill()
        await it.one_exit(137)


async def test_e22_a_fifo_without_a_writer_does_not_block_a_restore(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        await it.create()
    for name in ("stdout", "stderr"):
        (workspace.bundles / "a" / name).unlink()
        os.mkfifo(workspace.bundles / "a" / name)
    async with harness(workspace) as it:
        with anyio.fail_after(TIMEOUT_SECONDS):
            assert await it.restore()
        await it.kill()
        await it.one_exit(137)


async def test_e23_dying_at_any_time_of_a_restore_is_false_or_one_exit(workspace: Workspace) -> None:
    alive_and_dead = set()
    for tenths in range(12):
        async with harness(workspace) as it:
            pid = await it.create()
        async with harness(workspace) as it:

            async def die(milliseconds: float, pid: int) -> None:
                await anyio.sleep(milliseconds / 1000)
                os.kill(pid, signal.SIGKILL)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(die, tenths / 2, pid)
                alive = await it.restore()
            if alive:
                await it.one_exit(137)
            await workspace.assert_nothing_left()
            assert len(it.exits.seen) == alive
            exit = it.executor.last_exit("a")
            assert exit
            assert exit.code == 137
            alive_and_dead.add(alive)
    assert alive_and_dead


async def test_e24_an_id_in_use_is_a_conflict_and_keeps_its_only_reader(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        out, err = it.pair()
        await it.executor.create("a", workspace.shell("a", COUNTS_ON_USR1), out, err)
        pid = await it.pid()
        await eventually(lambda: out.text)
        with pytest.raises(errors.Conflict):
            await it.create()
        with pytest.raises(errors.Conflict):
            await it.restore()
        for number in range(1, 11):
            await printed(workspace, pid, out, f"{number}\n")
        await it.kill()
        await it.one_exit(137)


async def test_e24_two_executors_do_not_make_the_same_container(workspace: Workspace) -> None:
    async with harness(workspace) as it, harness(workspace) as other:
        await it.create()
        with pytest.raises(errors.Conflict):
            await other.create()
        await it.kill()
        await it.one_exit(137)
        assert not other.exits.seen


async def test_e30_running_is_what_containerd_calls_running(workspace: Workspace) -> None:
    async with harness(workspace) as it, harness(workspace) as other:
        for rigged in (it, other):
            with pytest.raises(errors.NotFound):
                await rigged.executor.is_running("a")
        await it.create()
        assert await it.executor.is_running("a")
        assert await other.executor.is_running("a")
        await it.client.pause("a")
        assert not await it.executor.is_running("a")
        await it.client.resume("a")
        assert await it.executor.is_running("a")
        await it.kill()
        await it.one_exit(137)
        with pytest.raises(errors.NotFound):
            await it.executor.is_running("a")


async def test_e31_a_signal_goes_to_init_only_and_to_the_dead_is_not_found(workspace: Workspace) -> None:
    grandchild = "(trap 'echo grandchild' TERM; echo ready; while :; do sleep 0.01; done)"
    text = f"trap 'echo child' TERM; {grandchild} & wait; sleep 0.2; exit 9"
    async with harness(workspace) as it:
        out, err = it.pair()
        await it.executor.create("a", workspace.shell("a", text), out, err)
        await eventually(lambda: out.text == "ready\n")
        await it.executor.signal("a", 0)
        await it.executor.signal("a", signal.SIGTERM)
        await it.one_exit(9)
        assert out.text == "ready\nchild\n"
        for id in ("a", "b"):
            with pytest.raises(errors.NotFound):
                await it.executor.signal(id, signal.SIGTERM)


@pytest.mark.parametrize("number", [-1, 65, 4096])
async def test_e31_a_number_that_is_no_signal_is_invalid(workspace: Workspace, number: int) -> None:
    async with harness(workspace) as it:
        await it.create()
        with pytest.raises(errors.Invalid):
            await it.executor.signal("a", number)
        assert await it.executor.is_running("a")
        await it.kill()
        await it.one_exit(137)


async def test_e48_a_container_of_another_owner_is_not_taken_over(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        await it.client.create_container(
            "a", workspace.shell("a", FOREVER), RuntimeOptions(root=workspace.runtime.root)
        )
        await it.client.create_task("a")
        pid = await it.client.start_task("a")
        with pytest.raises(errors.Conflict, match="not created by Moorage"):
            await it.restore()
        with pytest.raises(errors.Conflict):
            await it.create()
        await kill(pid)
        await eventually(lambda: it.client.get_task("a"))
        await it.client.wait("a", within=TIMEOUT_SECONDS)
        assert (await it.client.get_task("a")).status is Status.STOPPED
        assert not it.exits.seen
        await it.client.delete_task("a")
        await it.client.delete_container("a")


async def test_e51_after_a_kill_of_our_process_the_next_one_takes_the_container_over(workspace: Workspace) -> None:
    async with executor_process(workspace, workspace.shell("a", COUNTS_ON_USR1)) as child:
        assert await child.hear("output") == "ready\n"
        await kill(child.pid)
    async with harness(workspace) as it:
        pid = await it.pid()
        out, err = it.pair()
        assert await it.executor.restore("a", out, err)
        await printed(workspace, pid, out, "1\n")
        await it.kill()
        await it.one_exit(137)


async def test_e51_e43_an_exit_after_a_kill_of_our_process_is_reported_by_the_next_restore(
    workspace: Workspace,
) -> None:
    async with executor_process(
        workspace, workspace.shell("a", "trap 'echo bye; exit 6' TERM; echo ready; sleep 1000000 & wait")
    ) as child:
        await child.hear("output")
        await kill(child.pid)
    async with harness(workspace) as it:
        os.kill(pid := await it.pid(), signal.SIGTERM)
        await eventually(lambda: not leftovers.is_alive(pid))
        out, err = it.pair()
        assert not await it.executor.restore("a", out, err)
        exit = it.executor.last_exit("a")
        assert exit
        assert exit.code == 6
        assert not it.exits.seen
        await workspace.assert_nothing_left()

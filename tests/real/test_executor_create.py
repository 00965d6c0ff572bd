"""The executor's create on a real containerd (rows E01 to E09)."""

import os
import signal
import stat
import threading
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from moorage import errors
from moorage.containerd import Client
from moorage.containerd._rpc import GrpcConnection
from moorage.containerd.containers import BundledContainers
from moorage.containerd.types import Mount, RuntimeOptions, Status
from moorage.embedding import open_executor
from moorage.executor import RUN_LABEL, Attached, Stdio
from support import leftovers
from support.conditions import eventually
from support.harness import Harness, harness
from support.kills import kill_containerd, stop
from support.peers import RealPeer
from support.sinks import Exits, Memory
from support.specs import FOREVER
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

FAILING_CREATES = int(os.environ.get("MOORAGE_FAILING_CREATES", "30"))
"""How often E05 is tried; the row says 500."""

MISSING = "/missing/command"


async def test_e01_record_directory_and_task_are_there_without_an_input(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        await it.executor.create("a", spec := workspace.shell("a", FOREVER), *it.pair(), labels={"who": "me"})
        record = await it.client.get_container("a")
        assert record.spec == spec
        assert record.runtime_name == "io.containerd.runc.v2"
        assert record.labels["who"] == "me"
        assert record.labels[RUN_LABEL]
        bundle = Path(record.labels["moorage.bundle"])
        assert set(os.listdir(bundle)) == {"stdout", "stderr"}
        task = await it.client.get_task("a")
        assert (task.status, task.stdin) == (Status.RUNNING, "")
        assert (task.stdout, task.stderr) == (str(bundle / "stdout"), str(bundle / "stderr"))
        assert it.executor.pid("a") == task.pid
        assert os.readlink(f"/proc/{task.pid}/fd/0") == "/dev/null"
        assert (workspace.root / "runtime-root" / workspace.namespace / "a").is_dir(), (
            "the runtime's state is below our root"
        )
        await it.kill()
        await it.one_exit(137)
        assert it.executor.pid("a") is None


async def end(it: Harness, pid: int) -> None:
    """Kill a process, and return when its shim has noticed."""

    async def is_stopped() -> bool:
        return (await it.client.get_task("a")).status is Status.STOPPED

    os.kill(pid, signal.SIGKILL)
    await eventually(is_stopped)


async def leave(it: Harness, state: str) -> None:
    """An earlier process's container, in this state."""
    if state == "created":
        async with it.workspace.containers() as containers:
            await containers.create("a", it.workspace.shell("a", FOREVER), it.workspace.runtime)
            stdio = []

            async def attach(given: object) -> object:
                stdio.append(given)
                raise LookupError

            with pytest.raises(LookupError):
                await containers.start("a", "", False, attach)  # type: ignore[arg-type]  # it never returns
        assert (await it.client.get_task("a")).status is Status.CREATED
        return
    async with harness(it.workspace) as before:
        pid = await before.create()
    match state:
        case "paused":
            await it.client.pause("a")
        case "hung":
            for shim in it.workspace.shims("a"):
                stop(shim)
        case "stopped":
            await end(it, pid)
        case "record only":
            await end(it, pid)
            await it.client.delete_task("a")
        case "task without record":
            await it.client.delete_container("a")
        case _:
            assert state == "running"


@pytest.mark.parametrize("state", ["running", "paused", "hung"])
async def test_e02_what_may_live_is_not_touched(workspace: Workspace, state: str) -> None:
    async with harness(workspace) as it:
        await leave(it, state)
        record = await it.client.get_container("a")
        with pytest.raises(errors.Conflict):
            await it.create()
        for shim in workspace.shims("a"):
            os.kill(shim, signal.SIGCONT)
        assert await it.client.get_container("a") == record
        assert (await it.client.get_task("a")).status is (Status.PAUSED if state == "paused" else Status.RUNNING)
        assert await it.restore()
        if state == "paused":
            await it.client.resume("a")
        await it.executor.signal("a", signal.SIGKILL)
        await it.one_exit(137)


@pytest.mark.parametrize("state", ["record only", "created", "stopped", "task without record"])
async def test_e02_what_does_not_live_is_replaced(workspace: Workspace, state: str) -> None:
    async with harness(workspace) as it:
        await leave(it, state)
        await it.create()
        assert await it.executor.is_running("a")
        assert len(workspace.shims("a")) == 1
        await it.kill()
        await it.one_exit(137)


async def test_e02_a_second_failure_says_what_could_not_be_created(workspace: Workspace) -> None:
    # The name is taken by a file where the directory should be.
    workspace.bundles.mkdir(parents=True)
    mount = workspace.bundles / "a"
    mount.write_text("")
    async with harness(workspace) as it:
        with pytest.raises(errors.Conflict, match=r"^cannot create containerd container: "):
            await it.create()
    mount.unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"process": {"args": [MISSING], "cwd": "/"}}, MISSING),
        ({"process": {"args": ["/etc"], "cwd": "/"}}, "/etc"),
        ({"root": {"path": "/missing/rootfs"}}, "/missing/rootfs"),
        ({"mounts": [{"destination": "/x", "type": "bind", "source": "/missing/source"}]}, "/missing/source"),
        ({"process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": -1, "gid": 0}}}, "-1"),
    ],
    ids=["command", "no command", "rootfs", "mount", "user"],
)
async def test_e03_a_failed_start_gives_its_reason_every_time_and_leaves_nothing(
    workspace: Workspace, change: dict[str, object], words: str
) -> None:
    async with harness(workspace) as it:
        texts = []
        for _ in range(2):
            with pytest.raises(errors.MoorageError, match=words) as caught:
                await it.executor.create("a", {**workspace.shell("a", FOREVER), **change}, *it.pair())
            texts.append((type(caught.value), str(caught.value)))
            await workspace.assert_nothing_left()
        assert texts[0] == texts[1]
        assert "exists" not in texts[0][1]
        assert not it.exits.seen


async def test_e03_a_runtime_that_is_missing_fails_by_name(workspace: Workspace) -> None:
    runtime = RuntimeOptions(binary_name="/missing-runtime")
    address, sinks = workspace.containerd.address, (Memory(), Memory())
    async with open_executor(
        address, workspace.root, Exits(), namespace=workspace.namespace, runtime=runtime
    ) as executor:
        with pytest.raises(errors.MoorageError, match="missing-runtime"):
            await executor.create("a", workspace.shell("a", FOREVER), *sinks)


@pytest.mark.parametrize("what", ["state of the runtime", "containerd's directory of a task", "both"])
async def test_e04_leftovers_of_an_earlier_task_are_cleared(workspace: Workspace, what: str) -> None:
    peer = RealPeer(workspace)
    for each in ("state of the runtime", "containerd's directory of a task") if what == "both" else (what,):
        await peer.leave("a", each)
    async with harness(workspace) as it:
        await it.create()
        await it.kill()
        await it.one_exit(137)


async def test_e04_a_half_made_task_is_cleared_by_the_next_create(workspace: Workspace, tmp_path: Path) -> None:
    # Its shim outlives containerd, and continues when no caller waits for it any more.
    started, go, runc = (tmp_path / name for name in ("begun", "go", "runc"))
    wait = f"touch {started}; until [ -e {go} ]; do sleep 0.01; done"
    runc.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {wait} ;; esac\nexec runc "$@"\n')
    runc.chmod(0o755)

    async def kill_containerd_within_create() -> None:
        await eventually(started.exists)
        await kill_containerd(workspace.containerd)
        go.touch()

    async with harness(workspace, runtime=RuntimeOptions(binary_name=str(runc))) as it:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_containerd_within_create)
            with pytest.raises(errors.Unavailable):
                await it.create()
        await workspace.containerd.ensure()

        async def create() -> bool:
            try:
                await it.create()
            except errors.Unavailable:
                return False
            return True

        await eventually(create)
        assert len(workspace.shims("a")) == 1
        await it.kill()
        await it.one_exit(137)


async def test_e05_failing_creates_leave_threads_descriptors_and_fifos_as_before(workspace: Workspace) -> None:
    async with harness(workspace) as it:

        async def fail(number: int) -> None:
            with pytest.raises(errors.MoorageError, match=MISSING):
                await it.executor.create(f"a{number % 7}", workspace.command("a", [MISSING]), *it.pair())

        await fail(0)
        await workspace.assert_nothing_left()
        descriptors, threads = leftovers.descriptors(), threading.active_count()
        for number in range(FAILING_CREATES):
            await fail(number)
        assert not leftovers.descriptors() - descriptors
        assert threading.active_count() <= threads
        assert not leftovers.fifos_below(workspace.root)
        await workspace.assert_nothing_left()


async def test_e06_a_process_that_exits_at_once_is_a_success_and_then_one_exit(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        for number in range(20):
            await it.executor.create("a", workspace.command("a", ["/bin/true"]), *it.pair())
            assert len(it.exits.seen) == number, "the exit comes after create has returned"
            await eventually(lambda: len(it.exits.seen) > number)  # noqa: B023 - waited for here
        await workspace.assert_nothing_left()
        assert [exit.code for exit in it.exits.seen] == [0] * 20
        assert len({exit.run for exit in it.exits.seen}) == 20


@pytest.mark.parametrize("mapped", [False, True])
async def test_e07_a_process_that_is_not_root_can_reopen_its_output(workspace: Workspace, mapped: bool) -> None:
    linux: dict[str, object] = {}
    if mapped:
        ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        kinds = ("pid", "mount", "ipc", "uts", "user")
        linux = {"uidMappings": ids, "gidMappings": ids, "namespaces": [{"type": kind} for kind in kinds]}
    spec = workspace.shell(
        "a", "echo out > /proc/self/fd/1; echo err > /proc/self/fd/2; id -u; id -g", user=(1000, 100), linux=linux
    )
    async with harness(workspace) as it:
        out, err = it.pair()
        await it.executor.create("a", spec, out, err)
        info = os.stat(workspace.bundles / "a" / "stdout")
        assert stat.S_ISFIFO(info.st_mode)
        assert (info.st_uid, info.st_gid) == ((101000, 100100) if mapped else (1000, 100))
        await it.one_exit(0)
        assert (out.text, err.text) == ("out\n1000\n100\n", "err\n")


async def test_e08_rootfs_mounts_make_the_root(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        spec = workspace.shell("a", "ls -d /usr/bin && touch /share/x || echo read-only")
        mounts = [Mount("bind", str(workspace.session.rootfs), ["rbind", "ro"])]
        out, err = it.pair()
        await it.executor.create("a", {**spec, "root": {"path": "rootfs"}}, out, err, rootfs=mounts)
        await it.one_exit(0)
        assert out.text == "/usr/bin\nread-only\n"
        await workspace.assert_nothing_left()


async def test_e09_a_create_cancelled_after_any_time_leaves_nothing(workspace: Workspace) -> None:
    # Between the calls tests/faults and the fake cover every await; here it is containerd's side that matters.
    async with harness(workspace) as it:
        whole = 0
        for milliseconds in range(0, 160, 8):
            with anyio.move_on_after(milliseconds / 1000) as scope:
                await it.executor.create("a", workspace.shell("a", FOREVER), *it.pair())
            if scope.cancelled_caught:
                await workspace.assert_nothing_left()
                continue
            whole += 1
            before = len(it.exits.seen)
            await it.kill()
            await eventually(lambda: len(it.exits.seen) > before)  # noqa: B023 - waited for here
            if whole == 3:
                break
        assert {exit.code for exit in it.exits.seen} <= {137}


async def test_e51_a_process_that_exits_within_a_creation_leaves_nothing_after_the_next_restore(
    workspace: Workspace,
) -> None:
    for milliseconds in range(5, 85, 5):
        await create_and_exit(workspace, anyio.sleep(milliseconds / 1000))
        async with harness(workspace) as it:
            if await it.restore():
                await it.kill()
                await it.one_exit(137)
        await workspace.assert_nothing_left()


async def test_e51_a_first_process_that_gets_no_cpu_is_stopped_with_its_creation(workspace: Workspace) -> None:
    # On a busy machine containerd kills the shim, the runtime goes with it, and its half-made process stays.
    stopped: list[int] = []

    async def stop_the_first_process() -> None:
        while not stopped:
            for pid in leftovers.processes_in(workspace.cgroup_prefix):
                if leftovers.command_line(pid)[1:2] == [b"init"]:
                    with suppress(ProcessLookupError):  # only its last stage stays
                        os.kill(pid, signal.SIGSTOP)
                        stopped.append(pid)
            await anyio.sleep(0.001)

    await create_and_exit(workspace, stop_the_first_process())
    assert stopped
    async with harness(workspace) as it:
        assert not await it.restore()
    await workspace.assert_nothing_left()


async def create_and_exit(workspace: Workspace, moment: Awaitable[None]) -> None:
    """Its connection breaks when a process is killed: that is all that containerd learns of it."""
    connection = GrpcConnection(workspace.containerd.address)
    client = Client(connection, workspace.namespace, TIMEOUTS)
    containers = BundledContainers(client, workspace.root, runtime=workspace.runtime, timeouts=TIMEOUTS)

    async def cut() -> None:
        await moment
        connection.close()

    async def attach(stdio: Stdio) -> Attached:
        stdio.close()
        raise errors.Unavailable("killed here at the latest")

    try:
        async with anyio.create_task_group() as tasks:
            await containers.create("a", workspace.shell("a", FOREVER), workspace.runtime, labels={RUN_LABEL: "x"})
            tasks.start_soon(cut)
            with suppress(errors.Unavailable):
                await containers.start("a", "", False, attach)
    finally:
        connection.close()  # also where the moment failed

"""Our own containerd: started, shared, adopted, started again, stopped."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage._lib.filelock import hold_lock
from moorage.containerd import connect
from moorage.containerd.supervisor import ADDRESS_LIMIT, PrivateContainerd, check_machine, find_binary, supervise
from moorage.timeouts import DEFAULT
from support import leftovers
from support.kills import kill, kill_containerd, stop
from support.waiting import PATIENCE_SECONDS, eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]

QUICK = replace(DEFAULT, reconnect_first=0.01, reconnect_limit=0.05)


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a short path; no containerd that ran on it outlives the test."""
    directory = Path(tempfile.mkdtemp(prefix="moorage-test-"))
    yield directory
    left = processes_of(directory)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not leftovers.mounts_below(directory)
    shutil.rmtree(directory)
    assert not left


def processes_of(base: Path) -> list[int]:
    """The live containerds with this directory in their command line."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if any(str(base).encode() in word for word in leftovers.command_line(pid)[1:])]


@pytest.fixture
async def ours(base: Path) -> AsyncIterator[PrivateContainerd]:
    containerd = PrivateContainerd(base / "root", base / "state", QUICK)
    yield containerd
    await containerd.stop()


async def answers(containerd: PrivateContainerd) -> bool:
    async with connect(containerd.address, "test") as client:
        return bool((await client.version()).version)


async def test_it_is_started_and_serves_and_stop_leaves_no_process_and_no_socket(ours: PrivateContainerd) -> None:
    assert ours.find() is None
    pid = await ours.ensure()
    assert await answers(ours)
    assert ours.find() == pid
    assert os.getsid(pid) == pid, "in a session of its own, so that it outlives us"
    await ours.stop()
    assert not leftovers.is_alive(pid)
    assert ours.find() is None
    assert os.listdir(ours.state) in (["lock"], ["s", "lock"], ["lock", "s"])
    assert not leftovers.mounts_below(ours.root, ours.state)
    await ours.stop()


async def test_one_that_runs_is_found_again_also_without_its_pid_file(ours: PrivateContainerd) -> None:
    pid = await ours.ensure()
    assert await ours.ensure() == pid
    (ours.state / "pid").unlink()
    other = PrivateContainerd(ours.root, ours.state)
    assert await other.ensure() == pid
    (ours.state / "pid").write_text(f"{os.getpid()}\n")  # a pid that was given to another process
    assert await other.ensure() == pid


async def test_another_process_adopts_it_and_it_outlives_its_starter(ours: PrivateContainerd) -> None:
    program = (
        "import sys, anyio; from pathlib import Path; from moorage.containerd.supervisor import PrivateContainerd;"
        "print(anyio.run(PrivateContainerd(Path(sys.argv[1]), Path(sys.argv[2])).ensure))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "error", "-c", program, str(ours.root), str(ours.state)]
    starting = [await anyio.open_process(command, env=environment, stdin=subprocess.DEVNULL) for _ in range(3)]
    pids = set()
    for process in starting:
        async with process:
            assert process.stdout
            assert process.stderr
            pids.add(int(await process.stdout.receive()))
            assert await process.wait() == 0
            with pytest.raises(anyio.EndOfStream):
                await process.stderr.receive()
    assert len(pids) == 1, "three at once share one"
    assert await ours.ensure() == pids.pop()
    assert await answers(ours)


async def test_two_at_once_share_one(ours: PrivateContainerd) -> None:
    pids: set[int] = set()

    async def ensure() -> None:
        pids.add(await PrivateContainerd(ours.root, ours.state).ensure())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ensure)
    assert len(pids) == 1
    assert len(processes_of(ours.root.parent)) == 1


async def test_one_that_dies_is_started_again_and_stop_ends_the_watch(
    ours: PrivateContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "moorage.containerd.supervisor")
    async with supervise(ours.root, ours.state, QUICK) as containerd:
        seen = [containerd.find()]
        for _ in range(3):
            await kill_containerd(containerd)
            await eventually(lambda: containerd.find() not in (*seen, None))
            seen.append(containerd.find())
            await eventually(lambda: answers_or_not(containerd))
        assert len(processes_of(ours.root.parent)) == 1
        await containerd.stop()
    assert not processes_of(ours.root.parent)
    assert "starting it again" in " ".join(caplog.messages)


async def answers_or_not(containerd: PrivateContainerd) -> bool:
    try:
        return await answers(containerd)
    except errors.Unavailable:
        return False


async def test_a_stop_while_it_is_being_started_again_is_the_last_word(
    ours: PrivateContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervise(ours.root, ours.state, QUICK) as containerd:
        async with hold_lock(ours.state / "lock"):
            await kill_containerd(containerd)
            await eventually(lambda: "starting it again" in caplog.text)
            containerd._stopping = True  # as stop says before it waits for the lock; it may have it first
        for _ in range(10):  # whoever starts it again would have the lock within these
            await anyio.sleep(0.005)
            assert containerd.find() is None
        await containerd.stop()
    assert not processes_of(ours.root.parent)


async def test_the_end_of_the_block_leaves_it_running(ours: PrivateContainerd) -> None:
    async with supervise(ours.root, ours.state) as containerd:
        pid = containerd.find()
    assert pid
    assert await answers(ours)
    assert ours.find() == pid


async def test_one_that_stands_still_is_ended_by_force(ours: PrivateContainerd) -> None:
    ours = PrivateContainerd(ours.root, ours.state, replace(DEFAULT, containerd_stop=0.2))
    pid = await ours.ensure()
    stop(pid)
    await ours.stop()
    assert not leftovers.is_alive(pid)


async def test_one_that_does_not_serve_in_time_is_unavailable_with_its_log(ours: PrivateContainerd) -> None:
    pid = await ours.ensure()
    stop(pid)
    hasty = PrivateContainerd(ours.root, ours.state, replace(DEFAULT, containerd_start=0.2))
    with pytest.raises(errors.Unavailable, match=r"does not serve .* after 0\.2 s"):
        await hasty.ensure()
    os.kill(pid, signal.SIGCONT)


async def test_one_that_ends_at_once_is_unavailable_with_its_log(ours: PrivateContainerd) -> None:
    ours.state.mkdir()
    (ours.state / "s").write_text("in the way")
    with pytest.raises(errors.Unavailable, match=r"it ended at once\n.*not a directory"):
        await ours.ensure()


async def test_a_socket_of_somebody_else_is_not_taken(ours: PrivateContainerd) -> None:
    ours.state.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(ours.address)
        other.listen()
        with pytest.raises(errors.Conflict, match="another program listens"):
            await ours.ensure()
        assert ours.find() is None


async def test_a_socket_that_a_dead_one_left_is_taken(ours: PrivateContainerd) -> None:
    pid = await ours.ensure()
    await kill(pid)
    assert "c.sock" in os.listdir(ours.state)
    assert await ours.ensure() != pid
    assert await answers(ours)


@pytest.mark.parametrize("name", ["containerd", "containerd-shim-runc-v2", "runc"])
async def test_a_command_that_is_missing_is_one_sentence_with_its_package(base: Path, name: str) -> None:
    bin_directory = base / "bin"
    bin_directory.mkdir()
    for needed in {"containerd", "containerd-shim-runc-v2", "runc"} - {name}:
        (bin_directory / needed).symlink_to(find_binary(needed))
    containerd = PrivateContainerd(base / "root", base / "state", search=str(bin_directory))
    with pytest.raises(errors.Unsupported) as caught:
        await containerd.ensure()
    package = "runc" if name == "runc" else "containerd"
    said = f"cannot run containers: there is no {name} on this machine; install it (Debian: apt install {package})"
    assert str(caught.value) == said
    assert containerd.find() is None
    with pytest.raises(errors.Unsupported):
        check_machine(str(bin_directory))


def test_commands_are_found_where_system_packages_put_them_whatever_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert Path(find_binary("runc")).is_absolute()


def test_a_path_that_is_too_long_for_a_socket_is_refused_before_anything_is_touched(base: Path) -> None:
    room = ADDRESS_LIMIT - len(str(base / "x" / "c.sock"))
    PrivateContainerd(base, base / ("x" * (room + 1)))
    with pytest.raises(errors.Invalid, match=f"at most {ADDRESS_LIMIT}"):
        PrivateContainerd(base, base / ("x" * (room + 2)))
    with pytest.raises(errors.Invalid):
        PrivateContainerd(base, base / ("\N{LATIN SMALL LETTER E WITH ACUTE}" * (room // 2 + 2)))
    assert not list(base.iterdir())


async def test_the_longest_path_works(base: Path) -> None:
    containerd = PrivateContainerd(base / "root", base / ("x" * (ADDRESS_LIMIT - len(str(base / "c.sock")) - 1)))
    assert len(containerd.address) == ADDRESS_LIMIT
    try:
        with anyio.fail_after(PATIENCE_SECONDS):
            await containerd.ensure()
        assert await answers(containerd)
    finally:
        await containerd.stop()


async def test_a_directory_that_cannot_be_used_is_an_error_of_ours(base: Path) -> None:
    (base / "file").write_text("")
    with pytest.raises(errors.MoorageError, match="file"):
        await PrivateContainerd(base / "file" / "root", base / "state").ensure()

"""Our own containerd: started, shared, adopted, started again, stopped."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.containerd import connect
from moorage.containerd.supervisor import ADDRESS_LIMIT, PrivateContainerd, check_machine, find_binary, supervise
from moorage.host.files import file_lock
from moorage.timeouts import DEFAULT
from support import leftovers
from support.conditions import TIMEOUT_SECONDS, eventually
from support.kills import kill, kill_containerd, stop

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
async def own(base: Path) -> AsyncIterator[PrivateContainerd]:
    containerd = PrivateContainerd(base / "root", base / "state", QUICK)
    yield containerd
    await containerd.stop()


async def answers(containerd: PrivateContainerd) -> bool:
    async with connect(containerd.address, "test") as client:
        return bool((await client.version()).version)


async def test_it_is_started_and_serves_and_stop_leaves_no_process_and_no_socket(own: PrivateContainerd) -> None:
    assert own.find() is None
    pid = await own.ensure()
    assert await answers(own)
    assert own.find() == pid
    assert os.getsid(pid) == pid, "in a session of its own, so that it outlives us"
    await own.stop()
    assert not leftovers.is_alive(pid)
    assert own.find() is None
    assert os.listdir(own.state) in (["lock"], ["s", "lock"], ["lock", "s"])
    assert not leftovers.mounts_below(own.root, own.state)
    await own.stop()


async def test_its_configuration_suits_its_version_and_what_is_not_used_is_off(own: PrivateContainerd) -> None:
    await own.ensure()
    async with connect(own.address, "test") as client:
        loaded = {f"{each.type}.{each.id}" for each in await client.plugins()}
    assert [name for name in loaded if name.endswith(".restart") or "sandbox" in name or ".cri" in name] == []
    warnings = (own.root / "containerd.log").read_text().splitlines()
    assert [line for line in warnings if "fsverity" not in line] == []  # of 2.3 on, about the file system


async def test_one_that_runs_is_found_again_also_without_its_pid_file(own: PrivateContainerd) -> None:
    pid = await own.ensure()
    assert await own.ensure() == pid
    (own.state / "pid").unlink()
    other = PrivateContainerd(own.root, own.state)
    assert await other.ensure() == pid
    (own.state / "pid").write_text(f"{os.getpid()}\n")  # a pid that was given to another process
    assert await other.ensure() == pid


async def test_another_process_adopts_it_and_it_outlives_its_starter(own: PrivateContainerd) -> None:
    program = (
        "import sys, anyio; from pathlib import Path; from moorage.containerd.supervisor import PrivateContainerd;"
        "print(anyio.run(PrivateContainerd(Path(sys.argv[1]), Path(sys.argv[2])).ensure))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "error", "-c", program, str(own.root), str(own.state)]
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
    assert await own.ensure() == pids.pop()
    assert await answers(own)


async def test_two_at_once_share_one(own: PrivateContainerd) -> None:
    pids: set[int] = set()

    async def ensure() -> None:
        pids.add(await PrivateContainerd(own.root, own.state).ensure())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ensure)
    assert len(pids) == 1
    assert len(processes_of(own.root.parent)) == 1


async def test_one_that_exits_is_started_again_and_stop_ends_the_watch(
    own: PrivateContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "moorage.containerd.supervisor")
    async with supervise(own.root, own.state, QUICK) as containerd:
        seen = [containerd.find()]
        for _ in range(3):
            await kill_containerd(containerd)
            await eventually(lambda: containerd.find() not in (*seen, None))
            seen.append(containerd.find())
            await eventually(lambda: answers_or_not(containerd))
        assert len(processes_of(own.root.parent)) == 1
        await containerd.stop()
    assert not processes_of(own.root.parent)
    assert "starting it again" in " ".join(caplog.messages)


async def test_d14_one_that_exits_again_and_again_is_started_ever_more_slowly(own: PrivateContainerd) -> None:
    waited = []
    async with supervise(own.root, own.state, replace(QUICK, reconnect_first=0.5, reconnect_limit=5)) as containerd:
        for _ in range(5):
            await eventually(lambda: answers_or_not(containerd))
            pid, killed_at = containerd.find(), time.monotonic()
            await kill_containerd(containerd)
            await eventually(lambda: containerd.find() not in (pid, None))  # noqa: B023 - awaited here
            waited.append(time.monotonic() - killed_at)
        await containerd.stop()
    assert waited[-1] >= 0.5 * 2**3 / 2, "doubled each time after the first, and cut by half at most"


async def answers_or_not(containerd: PrivateContainerd) -> bool:
    try:
        return await answers(containerd)
    except errors.Unavailable:
        return False


async def test_a_stop_while_it_is_being_started_again_is_the_last_word(
    own: PrivateContainerd, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervise(own.root, own.state, QUICK) as containerd:
        async with file_lock(own.state / "lock"):
            await kill_containerd(containerd)
            await eventually(lambda: "starting it again" in caplog.text)
            containerd._stopping = True  # as stop says before it waits for the lock; it may have it first
        for _ in range(10):  # a task that starts it again would have the lock within these
            await anyio.sleep(0.005)
            assert containerd.find() is None
        await containerd.stop()
    assert not processes_of(own.root.parent)


async def test_the_end_of_the_block_leaves_it_running(own: PrivateContainerd) -> None:
    async with supervise(own.root, own.state) as containerd:
        pid = containerd.find()
    assert pid
    assert await answers(own)
    assert own.find() == pid


async def test_one_that_stands_still_is_killed(own: PrivateContainerd) -> None:
    own = PrivateContainerd(own.root, own.state, replace(DEFAULT, containerd_stop=0.2))
    pid = await own.ensure()
    stop(pid)
    await own.stop()
    assert not leftovers.is_alive(pid)


async def test_one_that_does_not_serve_in_time_is_unavailable_with_its_log(own: PrivateContainerd) -> None:
    pid = await own.ensure()
    stop(pid)
    hasty = PrivateContainerd(own.root, own.state, replace(DEFAULT, containerd_start=0.2))
    with pytest.raises(errors.Unavailable, match=r"does not serve .* after 0\.2 s"):
        await hasty.ensure()
    os.kill(pid, signal.SIGCONT)


async def test_one_that_ends_at_once_is_unavailable_with_its_log(own: PrivateContainerd) -> None:
    own.state.mkdir()
    (own.state / "s").write_text("in the way")
    with pytest.raises(errors.Unavailable, match=r"it exited at once\n.*not a directory"):
        await own.ensure()


async def test_a_socket_of_another_user_is_not_taken(own: PrivateContainerd) -> None:
    own.state.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(own.address)
        other.listen()
        with pytest.raises(errors.Conflict, match="another program listens"):
            await own.ensure()
        assert own.find() is None


async def test_a_socket_that_a_dead_one_left_is_taken(own: PrivateContainerd) -> None:
    pid = await own.ensure()
    await kill(pid)
    assert "c.sock" in os.listdir(own.state)
    assert await own.ensure() != pid
    assert await answers(own)


async def test_i17_what_a_killed_one_left_of_a_deletion_goes_with_the_next_start(own: PrivateContainerd) -> None:
    await kill(await own.ensure())
    tasks = [base / "io.containerd.runtime.v2.task/test" for base in (own.root, own.state / "s")]
    for directory in tasks:
        (directory / ".a").mkdir(parents=True)
        (directory / ".a/init.pid").write_text("1")
    await own.ensure()
    assert [sorted(each.name for each in directory.glob(".*")) for directory in tasks] == [[], []]
    assert await answers(own)


@pytest.mark.parametrize("name", ["containerd", "containerd-shim-runc-v2"])
async def test_a_command_that_is_missing_is_one_sentence_with_its_package(base: Path, name: str) -> None:
    bin_directory = base / "bin"
    bin_directory.mkdir()
    for needed in {"containerd", "containerd-shim-runc-v2"} - {name}:
        (bin_directory / needed).symlink_to(find_binary(needed))
    containerd = PrivateContainerd(base / "root", base / "state", search=str(bin_directory))
    with pytest.raises(errors.Unsupported) as caught:
        await containerd.ensure()
    said = f"cannot run containers: there is no {name} on this machine; install it (Debian: apt install containerd)"
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
        with anyio.fail_after(TIMEOUT_SECONDS):
            await containerd.ensure()
        assert await answers(containerd)
    finally:
        await containerd.stop()


async def test_an_unusable_directory_is_an_error_of_a_known_kind(base: Path) -> None:
    (base / "file").write_text("")
    with pytest.raises(errors.MoorageError, match="file"):
        await PrivateContainerd(base / "file" / "root", base / "state").ensure()

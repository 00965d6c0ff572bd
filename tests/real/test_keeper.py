"""The log keeper as a process: handed over, alone, killed, replaced, sent nonsense, with a full disk."""

import array
import fcntl
import os
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.host.processes import wait_for_exit
from moorage.logs.keeper_client import KeeperClient, open_keeper_client, stop_keeper
from moorage.logs.keeper_protocol import GREETING, MAGIC, QUIT, pack
from moorage.logs.reader import PluginLog
from moorage.timeouts import Timeouts
from support import leftovers
from support.limits import limit
from support.pipes import Run, call_keeper, keeper_pid, start_keeper

pytestmark = [pytest.mark.real, pytest.mark.anyio]

TIMEOUTS = Timeouts(keeper=limit(5.0), reconnect_first=0.01)
OTHER_VERSION = f"keeper.GREETING = {MAGIC + bytes([99])!r}"


class House:
    """One keeper's directory, and runs."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.state = base / "keeper"
        self.runs: list[Run] = []

    def run(self, name: str) -> Run:
        made = Run(self.base / name)
        self.runs.append(made)
        return made

    def log(self, name: str = "log", **bounds: int) -> PluginLog:
        return PluginLog(self.base / name, **bounds)

    @asynccontextmanager
    async def engine(self, timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[KeeperClient]:
        with anyio.fail_after(limit(60)):
            async with open_keeper_client(self.state, timeouts) as keeper:
                yield keeper

    @property
    def pid(self) -> int:
        return keeper_pid(self.state)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    for run in made.runs:
        run.end()
    if pid := made.pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def eventually(condition: Callable[[], object]) -> None:
    with anyio.fail_after(limit(20)):
        while not condition():  # noqa: ASYNC110 - of another process: there is no event
            await anyio.sleep(0.005)


def texts(log: PluginLog, stream: str = "stdout") -> list[str]:
    return [line.text for line in log.last_lines(10**9) if line.stream == stream]


def numbers(first: int, beyond: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(first, beyond))


async def test_m09_both_streams_are_in_the_log_when_their_end_is_reported(house: House) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        assert house.pid == 0  # nothing is started before it is needed
        run_taker = await keeper.attacher("a", log)(run.stdio())
        run.say(b"one\nrest")
        run.say(b"bad\n", error=True)
        run.end()
        await run_taker.wait()
        assert (texts(log), texts(log, "stderr")) == (["one", "rest"], ["bad"])
    assert leftovers.is_alive(house.pid)
    assert os.getsid(house.pid) == house.pid
    await stop_keeper(house.state, TIMEOUTS)
    assert not leftovers.is_alive(house.pid)
    await stop_keeper(house.state, TIMEOUTS)


async def test_m09_without_any_engine_it_drains_on_and_the_next_engine_finds_it(house: House) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        await keeper.attacher("a", log)(run.stdio())
        run.say(numbers(0, 100))
        await eventually(lambda: len(texts(log)) == 100)
        pid = house.pid
    for first in range(100, 60_000, 100):  # far more than fits into a FIFO
        with anyio.fail_after(limit(20)):
            while True:
                with suppress(BlockingIOError):
                    run.say(numbers(first, first + 100))
                    break
                await anyio.sleep(0.001)
    async with house.engine() as keeper:
        stdio = run.stdio()
        run_taker = await keeper.attacher("a", log)(stdio)
        assert house.pid == pid
        run.say(numbers(60_000, 60_010))
        run.end()
        await run_taker.wait()
        stdio.close()
    assert texts(log) == [str(number) for number in range(60_010)]


async def test_m09_a_keeper_that_is_killed_is_started_again_and_no_whole_line_is_lost(house: House) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        for round_number in range(5):
            first = house.pid
            run.say(numbers(round_number * 100, round_number * 100 + 50))
            await eventually(lambda: len(texts(log)) == round_number * 100 + 50)  # noqa: B023 - awaited here
            os.kill(first, signal.SIGKILL)
            run.say(numbers(round_number * 100 + 50, round_number * 100 + 100))
            await eventually(lambda: len(texts(log)) == round_number * 100 + 100)  # noqa: B023 - awaited here
            assert house.pid != first
        run.end()
        await run_taker.wait()
    assert texts(log) == [str(number) for number in range(500)]


async def test_d14_a_keeper_that_is_killed_again_and_again_is_started_ever_more_slowly(house: House) -> None:
    run, log = house.run("a"), house.log()
    waited = []
    async with house.engine(Timeouts(keeper=limit(5.0), reconnect_first=0.5)) as keeper:
        await keeper.attacher("a", log)(run.stdio())
        for number in range(5):
            run.say(b"%d\n" % number)
            await eventually(lambda: len(texts(log)) == number + 1)  # noqa: B023 - awaited here
            pid = house.pid
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: house.pid not in (0, pid))  # noqa: B023 - awaited here
            waited.append(time.monotonic() - killed_at)
    assert waited[-1] >= 0.5 * 2**3 / 2, "doubled each time after the first, and cut by half at most"
    run.end()


async def test_m09_a_keeper_killed_without_an_engine_loses_nothing_in_the_fifo(house: House) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        await keeper.attacher("a", log)(run.stdio())
        run.say(numbers(0, 10))
        await eventually(lambda: len(texts(log)) == 10)
    os.kill(house.pid, signal.SIGKILL)
    run.say(numbers(10, 1000))
    async with house.engine() as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        run.end()
        await run_taker.wait()
    assert texts(log) == [str(number) for number in range(1000)]


async def test_two_engines_at_once_start_one_keeper(house: House) -> None:
    async def take(name: str) -> None:
        run = house.run(name)
        async with house.engine() as keeper:
            run_taker = await keeper.attacher(name, house.log(name + "-log"))(run.stdio())
            pids.add(house.pid)
            run.say(b"x\n")
            run.end()
            await run_taker.wait()

    pids: set[int] = set()
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(take, f"r{number}")
    assert len(pids) == 1
    assert sum(str(house.state).encode() in leftovers.command_line(pid) for pid in processes()) == 1


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


async def test_thirty_runs_in_one_small_process(house: House) -> None:
    async with house.engine() as keeper:
        runs = [house.run(f"r{number}") for number in range(30)]
        run_taker = []
        for number, run in enumerate(runs):
            run_taker.append(await keeper.attacher(f"r{number}", house.log(f"log{number}"))(run.stdio()))
        for _ in range(20):
            for run in runs:
                with suppress(BlockingIOError):
                    run.say(b"y" * 127 * 8 + b"\n")
        for run in runs:
            run.end()
        for each in run_taker:
            await each.wait()
        assert resident_kib(house.pid) < 15 * 1024
        # none of the runs leaves anything open
        await eventually(lambda: len(os.listdir(f"/proc/{house.pid}/fd")) < 15)
    assert all(texts(house.log(f"log{number}")) for number in range(30))


async def test_a_flood_makes_it_no_larger(house: House) -> None:
    run, log = house.run("a"), house.log(most_bytes=300_000)
    async with house.engine() as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        command = ["sh", "-c", "yes 0123456789012345678901234567890123456789 | head -c 50000000"]
        await anyio.run_process(command, stdout=run.writer())
        run.end()
        await run_taker.wait()
        assert resident_kib(house.pid) < 15 * 1024
    assert sum(path.stat().st_size for path in (house.base / "log").iterdir()) < 2_000_000  # a write a file more


@pytest.mark.parametrize(
    "packet", [b"", b"\x00", b"A", b"hello", b"\xff" * 15_000, b"x" * 60_000, b"Aa\0/x\0" + b"9" * 9]
)
async def test_garbage_on_its_socket_ends_only_that_connection(house: House, packet: bytes) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        pid = house.pid
        before = len(os.listdir(f"/proc/{pid}/fd"))
        with call_keeper(house.state) as stranger:
            assert stranger.recv(100) == GREETING
            with suppress(BrokenPipeError):
                socket.send_fds(stranger, [packet], [0, 1, 2, 0])
                assert stranger.recv(100) == b""
        await eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before)
        run.say(b"still here\n")
        run.end()
        await run_taker.wait()
        assert house.pid == pid
    assert texts(log) == ["still here"]


async def test_what_is_no_pair_of_fifos_is_refused_in_words(house: House) -> None:
    start_keeper(house.state)
    with call_keeper(house.state) as client, (house.base / "file").open("w") as file:
        assert client.recv(100) == GREETING
        for streams, reason in (([], b"too many files"), ([file.fileno()] * 2, b"not FIFOs")):
            socket.send_fds(client, [pack("A", "k", house.base / "log", 1000, 3)], streams)
            answer = client.recv(1000)
            assert answer.startswith(b"rk\0")
            assert reason in answer


async def test_a_client_that_reads_nothing_is_disconnected_and_blocks_no_other(house: House) -> None:
    start_keeper(house.state)
    with call_keeper(house.state) as deaf, call_keeper(house.state) as other:
        other.recv(100)
        for number in range(1500):
            other.send(pack("F", f"k{number}"))
            assert other.recv(100) == pack("f", f"k{number}")
            with suppress(OSError):
                deaf.send(pack("F", "k"), socket.MSG_DONTWAIT)
        answers = 0
        while deaf.recv(1000):
            answers += 1
        assert answers < 1500


async def test_one_of_another_version_is_replaced_and_nothing_is_lost(house: House) -> None:
    run, log = house.run("a"), house.log()
    old = start_keeper(house.state, OTHER_VERSION)
    with call_keeper(house.state) as client:  # as the engine that started it did
        assert client.recv(100) == MAGIC + b"\x63"
        stdio = run.stdio()
        streams = [stdio.stdout.fileno(), stdio.stderr.fileno()]
        socket.send_fds(client, [pack("A", "a", log.directory, log.most_bytes, log.files)], streams)
        assert client.recv(100) == pack("a", "a")
        stdio.close()
    run.say(numbers(0, 10))
    async with house.engine() as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        assert house.pid != old
        assert not leftovers.is_alive(old)
        run.say(numbers(10, 20))
        run.end()
        await run_taker.wait()
    assert texts(log) == [str(number) for number in range(20)]


async def test_one_that_does_not_answer_is_killed_and_replaced(house: House) -> None:
    run, log = house.run("a"), house.log()
    mute = start_keeper(house.state)
    os.kill(mute, signal.SIGSTOP)
    async with house.engine(Timeouts(keeper=limit(1.0), reconnect_first=0.01)) as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        run.say(b"x\n")
        run.end()
        await run_taker.wait()
    assert texts(log) == ["x"]


async def test_another_program_on_its_socket_is_left_alone(house: House) -> None:
    house.state.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(house.state / "k.sock"))
        listener.listen()
        listener.settimeout(limit(20))

        def greet() -> None:
            with listener.accept()[0] as client:
                client.send(b"220 hello")

        threading.Thread(target=greet).start()
        async with house.engine() as keeper:
            with pytest.raises(errors.Unavailable, match="another program"):
                await keeper.attacher("a", house.log())(house.run("a").stdio())


async def test_a_directory_that_cannot_be_used_is_named(house: House) -> None:
    house.state.write_text("in the way")
    async with house.engine() as keeper:
        with pytest.raises(errors.Unavailable, match=r"cannot start the log keeper.*keeper"):
            await keeper.attacher("a", house.log())(house.run("a").stdio())


@pytest.mark.parametrize("how", ["term", "quit"])
async def test_an_incomplete_line_is_written_when_the_keeper_stops(house: House, how: str) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        await keeper.attacher("a", log)(run.stdio())
        run.say(b"one\nhalf")
        await eventually(lambda: texts(log) == ["one"])
    pid = house.pid
    if how == "term":
        os.kill(pid, signal.SIGTERM)
    else:
        with call_keeper(house.state) as client:
            assert client.recv(100) == GREETING
            client.send(QUIT)
            assert client.recv(100) == b""
    await wait_for_exit(pid)
    assert texts(log) == ["one", "half"]


async def test_an_incomplete_line_can_be_requested(house: House) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        await keeper.attacher("a", log)(run.stdio())
        run.say(b"one\nhalf")
        await eventually(lambda: texts(log) == ["one"])
        await keeper.flush("a")
        assert texts(log) == ["one", "half"]
        await keeper.flush("unknown")


async def test_a_keeper_whose_directory_is_removed_exits(house: House) -> None:
    pid = start_keeper(house.state, "keeper._CHECK_INTERVAL = 0.1")
    await anyio.sleep(0.3)
    assert leftovers.is_alive(pid)
    (house.state / "k.sock").unlink()
    with anyio.fail_after(limit(10)):
        await wait_for_exit(pid)


async def test_a_fifo_that_was_removed_is_read_to_its_end(house: House) -> None:
    run, log = house.run("a"), house.log()
    async with house.engine() as keeper:
        stdio = run.stdio()
        run_taker = await keeper.attacher("a", log)(stdio)
        for name in ("stdout", "stderr"):
            (run.directory / name).unlink()
        run.say(b"last words\n")
        stdio.close()
        run.end()
        await run_taker.wait()
    assert texts(log) == ["last words"]


async def test_m09_a_follower_sees_at_once_what_the_keeper_writes(house: House) -> None:
    run, log = house.run("a"), house.log("later")
    async with house.engine() as keeper, log.read(follow=True) as lines:  # the directory does not exist yet
        await keeper.attacher("a", log)(run.stdio())
        found = aiter(lines)
        for number in range(100):
            run.say(b"%d\n" % number)
            with anyio.fail_after(limit(4)):  # less than the polling interval of a follower that gets no events
                assert (await anext(found)).text == str(number)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


async def test_m09_a_full_disk_stops_no_writer_and_the_log_says_what_it_lacks(house: House, small_disk: Path) -> None:
    run, log = house.run("a"), PluginLog(small_disk / "log")
    ballast = small_disk / "ballast"
    async with house.engine() as keeper:
        run_taker = await keeper.attacher("a", log)(run.stdio())
        run.say(b"first\n")
        await eventually(lambda: texts(log) == ["first"])
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        writer = os.fdopen(os.dup(run.writer()), "wb", buffering=0)
        with anyio.fail_after(limit(30)):
            for _ in range(1000):  # more than disk and FIFO together
                await anyio.to_thread.run_sync(writer.write, b"z" * 1023 + b"\n")
        writer.close()
        await eventually(lambda: in_fifo(run) == 0)
        ballast.unlink()
        run.say(b"last\n")
        run.end()
        await run_taker.wait()
    assert texts(log)[0] == "first"
    assert texts(log)[-1] == "last"
    said = texts(log, "stderr")
    dropped = [int(line.split()[1]) for line in said]
    assert said == [f"moorage: {count} lines were dropped: No space left on device" for count in dropped]
    assert sum(dropped) > 700
    assert sum(dropped) + len(texts(log)) == 1002  # first, the thousand, last


def in_fifo(run: Run) -> int:
    unread = array.array("i", [0])
    fcntl.ioctl(run.writer(), termios.FIONREAD, unread)
    return unread[0]

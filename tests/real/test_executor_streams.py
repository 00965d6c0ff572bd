"""The output of containers on a real containerd (rows E10 to E14)."""

import hashlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from moorage import errors
from moorage.containerd._shim_pace import ease_copying
from moorage.containerd.containers import Attach, Attached, BundledContainers
from moorage.containerd.stdio import Stdio
from moorage.executor import open_executor
from support.fake_streams import FakeInput
from support.places import TIMEOUTS, Place
from support.rig import rig
from support.sinks import Exits, Failing, Gate, Memory
from support.waiting import eventually, settled

pytestmark = [pytest.mark.real, pytest.mark.anyio]

SHORT = replace(TIMEOUTS, exit_drain=0.2, stream_wait=0.4)
LINES = "".join(f"{number}\n" for number in range(1, 200001))


async def test_e10_much_output_arrives_in_order_and_apart_and_each_sink_is_closed_once(place: Place) -> None:
    async with rig(place) as it:
        out, err, exit = await it.run("seq 1 200000 & seq 200000 -1 1 >&2; wait")
        assert hashlib.sha256(out.encode()).digest() == hashlib.sha256(LINES.encode()).digest()
        assert err == "".join(f"{number}\n" for number in range(200000, 0, -1))
        assert exit.code == 0


async def test_e10_bytes_are_unchanged(place: Place) -> None:
    everything = bytes(range(256)) * 3
    async with rig(place) as it:
        out, err = it.pair()
        await it.executor.create("a", place.spec("a", out=everything, err=everything[::-1], code=7), out, err)
        await it.one_exit(7)
        assert (out.data, err.data) == (everything, everything[::-1])


async def test_e10_what_is_in_the_pipes_at_the_exit_is_not_lost(place: Place) -> None:
    # more than one pipe holds is under way when the process ends, and the sink takes it only then
    async with rig(place) as it:
        gate = Gate()
        await it.executor.create("a", place.shell("a", "seq 1 20000"), gate, it.pair()[1])
        pid = await it.pid()
        await gate.waiting.wait()
        await eventually(lambda: not os.path.exists(f"/proc/{pid}/fd/1"))
        gate.opened.set()
        await it.one_exit(0)
        assert gate.text == "".join(f"{number}\n" for number in range(1, 20001))
        it.sinks.pop(-2)  # the one that the gate stood for


async def test_e10_a_shim_lets_whoever_writes_go_on_and_only_the_shim_is_told_to(place: Place) -> None:
    async with rig(place) as it:
        pid = await it.create()
        (shim,) = place.shims("a")
        assert {os.sched_getscheduler(int(each)) for each in os.listdir(f"/proc/{shim}/task")} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        await it.kill()
        await it.one_exit(137)


def test_e10_nobody_but_a_shim_is_told_how_to_take_output() -> None:
    assert not ease_copying(os.getpid())
    assert not ease_copying(2**22 + 1)  # no process has such a number
    assert os.sched_getscheduler(os.getppid()) == os.SCHED_OTHER


async def test_e11_whoever_holds_the_fifo_open_delays_an_exit_only_for_a_bounded_time(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with rig(place, SHORT) as it:
        out, err = it.pair()
        await it.executor.create("a", place.spec("a", out=b"before"), out, err)
        held = os.open(place.bundles / "a" / "stdout", os.O_WRONLY | os.O_NONBLOCK)
        try:
            await eventually(lambda: out.data == b"before")
            await it.kill()
            await it.one_exit(137)
            await out.closed.wait()
            assert out.data == b"before"
            assert "the output of a stdout was cut off before its end" in caplog.messages
            assert "the output of a stderr was cut off before its end" not in caplog.messages
        finally:
            os.close(held)


async def test_e12_a_sink_that_raises_stops_neither_the_other_stream_nor_the_process(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(place) as it:
        failing, err = Failing(), Memory()
        await it.executor.create("a", place.shell("a", "seq 1 100000; echo done >&2; exit 5"), failing, err)
        await it.one_exit(5)
        assert err.data == b"done\n"
        assert (failing.tried, failing.closes) == (1, 1)
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert said == ["the sink for the output of a stdout failed; its output is thrown away from here on"]


class WithInput(BundledContainers):
    """A client that opens a standard input although nobody asked for one."""

    stdin = FakeInput()

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        async def attach_more(stdio: Stdio) -> Attached:
            stdio.stdin = self.stdin  # type: ignore[assignment]  # this is the fault
            return await attach(stdio)

        return await super().start(id, checkpoint_dir, with_stdin, attach_more)


@asynccontextmanager
async def with_input(place: Place) -> AsyncIterator[WithInput]:
    async with place.client() as client:
        yield WithInput(client, place.root, runtime=place.runtime, timeouts=TIMEOUTS)


async def test_e13_an_input_is_closed_at_once_and_create_undoes_itself(place: Place) -> None:
    async with (
        with_input(place) as client,
        open_executor(client, Exits(), runtime=place.runtime, timeouts=TIMEOUTS) as executor,
    ):
        with pytest.raises(errors.MoorageError, match="bug"):
            await executor.create("a", place.spec("a"), Memory(), Memory())
        assert client.stdin.closed
        await place.assert_nothing_left()


async def test_e14_a_slow_sink_makes_the_process_wait_and_nothing_is_lost(place: Place) -> None:
    async with rig(place) as it:
        gate, err = Gate(), Memory()
        await it.executor.create("a", place.shell("a", "seq 1 200000; echo done >&2"), gate, err)
        pid = await it.pid()
        await gate.waiting.wait()
        # it waits in its write, with more to come: `seq` is the shell's child
        await eventually(lambda: "pipe_write" in child_waits_in(pid) or "anon_pipe_write" in child_waits_in(pid))
        await settled()
        assert gate.offered <= 64 * 1024
        assert not err.closes
        gate.opened.set()
        await it.one_exit(0)
        assert gate.text == LINES
        assert err.data == b"done\n"


def child_waits_in(pid: int) -> str:
    """The kernel function in which the first child of a process waits."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            child = children.read().split()[0]
        with open(f"/proc/{child}/wchan") as wchan:
            return wchan.read()
    except (OSError, IndexError):
        return ""


async def test_attach_takes_the_streams_in_place_of_sinks(place: Place) -> None:
    taken: list[bytes] = []

    class Taker:
        def __init__(self, stdio: Stdio) -> None:
            self.stdio = stdio

        async def wait(self) -> None:
            for stream in (self.stdio.stdout, self.stdio.stderr):
                taken.append(await stream.read())
                assert await stream.read() == b""

    async def attach(stdio: object) -> Taker:
        assert isinstance(stdio, Stdio)
        return Taker(stdio)

    async with rig(place) as it:
        await it.executor.create("a", place.spec("a", out=b"out", err=b"err", code=0), attach=attach)
        await it.one_exit(0)
    assert taken == [b"out", b"err"]

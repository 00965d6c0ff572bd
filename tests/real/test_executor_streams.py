"""The output of containers on a real containerd (rows E10 to E14)."""

import hashlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from moorage import errors
from moorage.containerd.containers import BundledContainers
from moorage.containerd.shims.processes import deprioritize_shim
from moorage.containerd.stdio import Attach, Consumer, TaskFifos
from moorage.executor import open_executor
from support.conditions import eventually, settled
from support.fake_streams import FakeInput
from support.harness import harness
from support.limits import limit
from support.sinks import Exits, Failing, Gate, Memory
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

SHORT = replace(TIMEOUTS, exit_drain=0.2, stream_wait=limit(0.4))
LINES = "".join(f"{number}\n" for number in range(1, 200001))


async def test_e10_much_output_arrives_in_order_and_apart_and_each_sink_is_closed_once(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        out, err, exit = await it.run("seq 1 200000 & seq 200000 -1 1 >&2; wait")
        assert hashlib.sha256(out.encode()).digest() == hashlib.sha256(LINES.encode()).digest()
        assert err == "".join(f"{number}\n" for number in range(200000, 0, -1))
        assert exit.code == 0


async def test_e10_bytes_are_unchanged(workspace: Workspace) -> None:
    everything = bytes(range(256)) * 3
    async with harness(workspace) as it:
        out, err = it.pair()
        await it.executor.create("a", workspace.spec("a", out=everything, err=everything[::-1], code=7), out, err)
        await it.one_exit(7)
        assert (out.data, err.data) == (everything, everything[::-1])


async def test_e10_what_is_in_the_pipes_at_the_exit_is_not_lost(workspace: Workspace) -> None:
    # more than fits into one pipe is under way at the exit, and the sink takes it only then
    async with harness(workspace) as it:
        gate = Gate()
        await it.executor.create("a", workspace.shell("a", "seq 1 20000"), gate, it.pair()[1])
        pid = await it.pid()
        await gate.waiting.wait()
        await eventually(lambda: not os.path.exists(f"/proc/{pid}/fd/1"))
        gate.opened.set()
        await it.one_exit(0)
        assert gate.text == "".join(f"{number}\n" for number in range(1, 20001))
        it.sinks.pop(-2)  # the one that the gate stood for


async def test_e10_a_shim_yields_to_the_writer_and_only_the_shim_does(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        pid = await it.create()
        (shim,) = workspace.shims("a")
        assert {os.sched_getscheduler(int(each)) for each in os.listdir(f"/proc/{shim}/task")} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        await it.kill()
        await it.one_exit(137)


def test_e10_only_a_shim_gets_the_scheduling_policy() -> None:
    assert not deprioritize_shim(os.getpid())
    assert not deprioritize_shim(2**22 + 1)  # no process has such a number
    assert os.sched_getscheduler(os.getppid()) == os.SCHED_OTHER


async def test_e11_an_open_fifo_delays_an_exit_only_for_a_bounded_time(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with harness(workspace, SHORT) as it:
        out, err = it.pair()
        await it.executor.create("a", workspace.spec("a", out=b"before"), out, err)
        writer = os.open(workspace.bundles / "a" / "stdout", os.O_WRONLY | os.O_NONBLOCK)
        try:
            await eventually(lambda: out.data == b"before")
            await it.kill()
            await it.one_exit(137)
            await out.closed.wait()
            assert out.data == b"before"
            assert "the output of a stdout was cut off" in caplog.messages
            assert "the output of a stderr was cut off" not in caplog.messages
        finally:
            os.close(writer)


async def test_e12_a_sink_that_raises_stops_neither_the_other_stream_nor_the_process(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness(workspace) as it:
        failing, err = Failing(), Memory()
        await it.executor.create("a", workspace.shell("a", "seq 1 100000; echo done >&2; exit 5"), failing, err)
        await it.one_exit(5)
        assert err.data == b"done\n"
        assert (failing.tried, failing.closes) == (1, 1)
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert said == ["the sink for the output of a stdout failed; further output is discarded"]


class WithInput(BundledContainers):
    """A client that opens a standard input although none was requested."""

    stdin = FakeInput()

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        async def attach_more(stdio: TaskFifos) -> Consumer:
            stdio.stdin = self.stdin  # type: ignore[assignment]  # this is the fault
            return await attach(stdio)

        return await super().start(id, checkpoint_dir, with_stdin, attach_more)


@asynccontextmanager
async def with_input(workspace: Workspace) -> AsyncIterator[WithInput]:
    async with workspace.client() as client:
        yield WithInput(client, workspace.root, runtime=workspace.runtime, timeouts=TIMEOUTS)


async def test_e13_an_input_is_closed_at_once_and_create_undoes_itself(workspace: Workspace) -> None:
    async with (
        with_input(workspace) as client,
        open_executor(client, Exits(), runtime=workspace.runtime, timeouts=TIMEOUTS) as executor,
    ):
        with pytest.raises(errors.MoorageError, match="bug"):
            await executor.create("a", workspace.spec("a"), Memory(), Memory())
        assert client.stdin.closed
        await workspace.assert_nothing_left()


async def test_e14_a_slow_sink_makes_the_process_wait_and_nothing_is_lost(workspace: Workspace) -> None:
    async with harness(workspace) as it:
        gate, err = Gate(), Memory()
        await it.executor.create("a", workspace.shell("a", "seq 1 200000; echo done >&2"), gate, err)
        pid = await it.pid()
        await gate.waiting.wait()
        # it waits in its write, with more to come: `seq` is the shell's child, and waits for nothing else
        await eventually(lambda: child_state(pid) == "S")
        await settled()
        assert gate.offered <= 64 * 1024
        assert not err.closes
        gate.opened.set()
        await it.one_exit(0)
        assert gate.text == LINES
        assert err.data == b"done\n"


def child_state(pid: int) -> str:
    """The state of the first child of a process, "S" for one that sleeps; empty where there is none."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            child = children.read().split()[0]
        with open(f"/proc/{child}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


async def test_attach_takes_the_streams_instead_of_sinks(workspace: Workspace) -> None:
    taken: list[bytes] = []

    class Taker:
        def __init__(self, stdio: TaskFifos) -> None:
            self.stdio = stdio

        async def wait(self) -> None:
            for stream in (self.stdio.stdout, self.stdio.stderr):
                taken.append(await stream.read())
                assert await stream.read() == b""

    async def attach(stdio: object) -> Taker:
        assert isinstance(stdio, TaskFifos)
        return Taker(stdio)

    async with harness(workspace) as it:
        await it.executor.create("a", workspace.spec("a", out=b"out", err=b"err", code=0), attach=attach)
        await it.one_exit(0)
    assert taken == [b"out", b"err"]

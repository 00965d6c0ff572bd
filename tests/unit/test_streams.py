"""The copies of a container's output into sinks, over pipes in memory (rows E10 to E14)."""

import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from moorage import errors
from moorage.executor import Attached, ByteSink, Stdio
from moorage.executor._streams import SinkCopies, Streams
from moorage.timeouts import DEFAULT, Timeouts
from support.conditions import TIMEOUT_SECONDS, settled
from support.fake_streams import CAPACITY_BYTES, FakeInput, FakePipe, FakeStdio
from support.sinks import Failing, Gate, Memory, Plain

pytestmark = [pytest.mark.quick, pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]

SHORT = replace(DEFAULT, cleanup=0.02)


class Output:
    """Both pipes of a process, copied into two sinks."""

    def __init__(self, tasks: TaskGroup, stdout: ByteSink, stderr: ByteSink, timeouts: Timeouts = DEFAULT) -> None:
        self.stdout, self.stderr = FakePipe(), FakePipe()
        self.streams = Streams("a", SinkCopies("a", stdout, stderr, tasks, timeouts))
        self.stdio = FakeStdio(self.stdout, self.stderr)

    def end(self) -> None:
        self.stdout.end()
        self.stderr.end()


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()


async def test_e10_bytes_reach_the_right_sink_in_order_and_unchanged_then_it_is_closed_once(tasks: TaskGroup) -> None:
    out, err = Memory(), Memory()
    output = Output(tasks, out, err)
    await output.streams.attach(output.stdio)
    binary = bytes(range(256)) * 3000
    await output.stdout.write(binary)
    await output.stderr.write(b"error")
    output.end()
    assert await output.streams.wait(TIMEOUT_SECONDS)
    assert (out.data, err.data) == (binary, b"error")
    assert (out.closes, err.closes) == (1, 1)
    await output.streams.close()
    await output.streams.close()
    assert (out.closes, err.closes) == (1, 1)


async def test_e10_plain_sinks_are_taken_too(tasks: TaskGroup) -> None:
    out, err = Plain(), Plain()
    output = Output(tasks, out, err)
    await output.streams.attach(output.stdio)
    for number in range(100):
        await output.stdout.write(b"%d," % number)
    output.end()
    assert await output.streams.wait(TIMEOUT_SECONDS)
    assert out.data == b"".join(b"%d," % number for number in range(100))
    assert (out.closes, err.closes) == (1, 1)


async def test_e11_waiting_is_for_both_copies(tasks: TaskGroup) -> None:
    for first, second in (("stdout", "stderr"), ("stderr", "stdout")):
        output = Output(tasks, Memory(), Memory())
        await output.streams.attach(output.stdio)
        getattr(output, first).end()
        await settled()
        assert not await output.streams.wait(0.01)
        getattr(output, second).end()
        assert await output.streams.wait(TIMEOUT_SECONDS)


async def test_e11_the_wait_is_bounded_and_what_is_cut_off_is_noted(
    tasks: TaskGroup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out, err = Memory(), Memory()
    output = Output(tasks, out, err)
    await output.streams.attach(output.stdio)
    await output.stdout.write(b"so far")
    output.stderr.end()
    assert not await output.streams.wait(0.01)
    await output.streams.close()
    await out.closed.wait()
    assert (out.data, out.closes, err.closes) == (b"so far", 1, 1)
    assert [record.getMessage() for record in caplog.records] == ["the output of a stdout was cut off"]


async def test_e12_a_sink_that_raises_stops_nothing_and_is_reported_once(
    tasks: TaskGroup, caplog: pytest.LogCaptureFixture
) -> None:
    out, err = Failing(), Memory()
    output = Output(tasks, out, err)
    await output.streams.attach(output.stdio)
    await output.stdout.write(b"x" * CAPACITY_BYTES * 3)  # would wait for ever without a reader
    await output.stderr.write(b"goes on")
    output.end()
    assert await output.streams.wait(TIMEOUT_SECONDS)
    assert err.data == b"goes on"
    assert (out.tried, out.closes) == (1, 1)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the sink for the output of a stdout failed; further output is discarded"
    ]


async def test_e12_a_sink_that_cannot_be_closed_is_reported_and_ends_the_wait(
    tasks: TaskGroup, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Memory):
        async def close(self) -> None:
            await super().close()
            raise OSError("cannot be closed in this test")

    class Hanging(Memory):
        async def close(self) -> None:
            await super().close()
            await anyio.sleep_forever()

    broken, hanging = Broken(), Hanging()
    output = Output(tasks, broken, hanging, SHORT)
    await output.streams.attach(output.stdio)
    output.end()
    assert await output.streams.wait(TIMEOUT_SECONDS)
    assert (broken.closes, hanging.closes) == (1, 1)
    assert "cannot close the sink for the output of a stdout" in caplog.messages
    assert "the sink for the output of a stderr does not close" in caplog.messages


async def test_e12_a_taker_that_fails_ends_the_wait_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Taker:
        async def wait(self) -> None:
            raise LookupError("in this test")

    async def attach(stdio: Stdio) -> Attached:
        return Taker()

    streams = Streams("a", attach)
    await streams.attach(FakeStdio(FakePipe(), FakePipe()))
    assert await streams.wait(TIMEOUT_SECONDS)
    assert caplog.messages == ["the consumer of the output of a failed"]


async def test_e13_an_input_is_closed_at_once_and_is_a_bug(tasks: TaskGroup) -> None:
    out, err = Memory(), Memory()
    output = Output(tasks, out, err)
    stdin = FakeInput()
    with pytest.raises(errors.MoorageError, match="bug"):
        await output.streams.attach(FakeStdio(output.stdout, output.stderr, stdin))
    assert stdin.closed
    await output.streams.close()
    assert (out.closes, err.closes) == (1, 1)


async def test_e14_a_slow_sink_makes_the_process_wait_and_memory_stays_bounded(tasks: TaskGroup) -> None:
    out = Gate()
    output = Output(tasks, out, Memory())
    await output.streams.attach(output.stdio)
    everything = b"0123456789abcdef" * (CAPACITY_BYTES // 2)
    tasks.start_soon(output.stdout.write, everything)
    await settled()
    assert out.offered <= CAPACITY_BYTES
    assert len(output.stdout.data) <= CAPACITY_BYTES
    out.opened.set()
    while len(out.data) < len(everything):
        await anyio.lowlevel.checkpoint()
    output.end()
    assert await output.streams.wait(TIMEOUT_SECONDS)
    assert out.data == everything


async def test_a_sink_that_never_returns_blocks_neither_the_exit_nor_the_other_stream(
    tasks: TaskGroup, caplog: pytest.LogCaptureFixture
) -> None:
    out, err = Gate(), Memory()
    output = Output(tasks, out, err)
    await output.streams.attach(output.stdio)
    await output.stdout.write(b"stuck")
    await output.stderr.write(b"fine")
    output.end()
    await out.waiting.wait()
    assert not await output.streams.wait(0.01)
    await output.streams.close()
    assert (err.data, err.closes) == (b"fine", 1)
    assert "the sink for the output of a stdout does not accept data; the rest is lost" in caplog.messages
    out.opened.set()
    await out.closed.wait()
    assert out.closes == 1


async def test_plain_sinks_that_block_take_no_thread_from_anybody_else(tasks: TaskGroup) -> None:
    released = threading.Event()
    stuck = 0

    class Blocking(Plain):
        def write(self, data: bytes) -> int:
            nonlocal stuck
            stuck += 1
            released.wait()
            return len(data)

    many = int(anyio.to_thread.current_default_thread_limiter().total_tokens) + 5
    outputs = [Output(tasks, Blocking(), Plain()) for _ in range(many)]
    try:
        for output in outputs:
            await output.streams.attach(output.stdio)
            await output.stdout.write(b"x")
        while stuck < many:  # noqa: ASYNC110 - threads count, there is no event
            await anyio.sleep(0.001)
        assert await anyio.to_thread.run_sync(lambda: "a thread is free") == "a thread is free"
    finally:
        released.set()
    for output in outputs:
        output.end()
        assert await output.streams.wait(TIMEOUT_SECONDS)


async def test_sinks_of_streams_that_were_never_attached_are_closed_once() -> None:
    out, err = Memory(), Memory()
    async with anyio.create_task_group() as tasks:
        streams = Output(tasks, out, err).streams
        await streams.close()
        await streams.close()
    assert (out.closes, err.closes) == (1, 1)


async def test_when_the_tasks_end_the_sinks_are_closed_and_the_readers_too() -> None:
    out, err = Memory(), Memory()
    async with anyio.create_task_group() as tasks:
        output = Output(tasks, out, err)
        await output.streams.attach(output.stdio)
        await settled()
        tasks.cancel_scope.cancel()
    assert (out.closes, err.closes) == (1, 1)
    assert (output.stdout.readers, output.stderr.readers) == (0, 0)


async def test_a_plain_sink_that_blocks_in_write_can_still_be_closed() -> None:
    started, released = anyio.Event(), threading.Event()

    class Blocking(Plain):
        def write(self, data: bytes) -> int:
            anyio.from_thread.run_sync(started.set)
            released.wait()
            return len(data)

        def close(self) -> None:
            super().close()
            released.set()

    out = Blocking()
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with anyio.create_task_group() as tasks:
            output = Output(tasks, out, Memory())
            await output.streams.attach(output.stdio)
            await output.stdout.write(b"x")
            await started.wait()
            tasks.cancel_scope.cancel()
    assert out.closes == 1

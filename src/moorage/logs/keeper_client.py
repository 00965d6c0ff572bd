"""The client of the log keeper: hands it the streams of each run, again after it was killed, and learns when they end.

The engine has the read ends open without reading them. So if the keeper is killed, its successor gets the same FIFOs
with all unread data.
"""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import anyio

from moorage import errors
from moorage._lib.backoff import Backoff
from moorage._lib.task_groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.background_process import BackgroundProcess, BackgroundProgram, receive_packet
from moorage.logs.keeper_protocol import GREETING, MAGIC, QUIT, pack, unpack
from moorage.logs.reader import PluginLog
from moorage.timeouts import KeeperTimeouts

__all__ = ("KeeperClient", "KeeperOutput", "RunStreams", "Stream", "open_keeper_client", "stop_keeper")

log = logging.getLogger(__name__)

_KEEPER = BackgroundProgram(
    "log keeper",
    "moorage.logs.keeper",
    "k.sock",
    "keeper",
    MAGIC,
    GREETING,
    QUIT,
    environment={"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024), "MALLOC_TRIM_THRESHOLD_": str(2 * 1024 * 1024)},
)
"""The buffers of one read are smaller than these thresholds. By default, glibc returns them to the kernel each time,
and page faults are then a fifth of the keeper's CPU time. Source: mallopt(3)."""


class Stream(Protocol):
    """The read end of a FIFO."""

    def fileno(self) -> int:
        """The descriptor. Raises: anyio.ClosedResourceError."""


class RunStreams(Protocol):
    """The output streams of a run."""

    @property
    def stdout(self) -> Stream: ...

    @property
    def stderr(self) -> Stream: ...


class KeeperOutput:
    """The output of one run that the keeper writes to a log."""

    def __init__(self, key: str, log: PluginLog, stdio: RunStreams) -> None:
        self.key = key
        self.log = log
        self.stdio = stdio
        self.refusal = ""
        self.answered = anyio.Event()
        self.finished = anyio.Event()

    def answer(self, refusal: str = "") -> None:
        """Record that the keeper has accepted the streams, or why not."""
        self.refusal = refusal
        self.answered.set()

    async def wait(self) -> None:
        """Return when both streams have ended and are in the log completely. May be cancelled and called again."""
        await self.finished.wait()


class KeeperClient:
    """A connection to the log keeper. ``open_keeper_client`` creates one."""

    def __init__(self, state: Path, timeouts: KeeperTimeouts) -> None:
        self._process = _process(state, timeouts)
        self._timeouts = timeouts
        self._outputs: dict[str, KeeperOutput] = {}
        self._flushed: dict[str, anyio.Event] = {}
        self._client: socket.socket | None = None
        self._sending = anyio.Lock()
        self._needed = anyio.Event()
        self._backoff = Backoff(timeouts.reconnect_first, timeouts.reconnect_limit, timeouts.steady)

    def attacher(self, key: str, log: PluginLog) -> Callable[[RunStreams], Awaitable[KeeperOutput]]:
        """The ``attach`` of one run (with a unique ``key``): has its streams written to this log.

        If the keeper already drains this key, it continues, and the streams only wait for its successor.
        The returned function raises Unavailable if the keeper does not accept the streams.
        """

        async def attach(stdio: RunStreams) -> KeeperOutput:
            await run_blocking(lambda: log.directory.mkdir(mode=0o700, parents=True, exist_ok=True))
            output = self._outputs[key] = KeeperOutput(key, log, stdio)
            self._needed.set()
            try:
                if not await self._is_accepted(output) and not await self._is_accepted(output):
                    raise errors.Unavailable(f"cannot log the output of {key}: the log keeper does not answer")
                if output.refusal:
                    raise errors.Unavailable(f"cannot log the output of {key}: {output.refusal}")
            except BaseException:
                self._outputs.pop(key, None)
                raise
            return output

        return attach

    async def _is_accepted(self, output: KeeperOutput) -> bool:
        """Whether the keeper answers in time; otherwise it is killed, so that its successor answers."""
        with anyio.move_on_after(self._timeouts.keeper):
            await self._hand_over(output)
            return True
        if self._client is not None:
            self._process.kill(self._client)
        return False

    async def flush(self, key: str) -> None:
        """Have incomplete lines of this run written, for a reader of its last lines. Bounded by ``timeouts.keeper``."""
        flushed = self._flushed.setdefault(key, anyio.Event())
        with anyio.move_on_after(self._timeouts.keeper):
            if await self._send(pack("F", key)):
                await flushed.wait()
        self._flushed.pop(key, None)

    async def _serve(self) -> None:
        """Stay connected while there are outputs; the keeper is not started before the first one."""
        while True:
            await self._until_needed()
            client = self._client = await self._connect()
            try:
                async with background_tasks() as tasks:
                    tasks.start_soon(self._hand_over_all)
                    while packet := await receive_packet(client):
                        self._receive(packet)
            finally:
                self._client = None
                for flushed in self._flushed.values():
                    flushed.set()
                anyio.notify_closing(client)
                client.close()
            log.warning("the log keeper has exited%s", "; starting it again" if self._outputs else "")

    async def _until_needed(self) -> None:
        while not self._outputs:
            self._needed = anyio.Event()
            await self._needed.wait()

    async def _connect(self) -> socket.socket:
        while True:
            await anyio.sleep(self._backoff.next())
            try:
                client = await self._process.connect()
            except errors.MoorageError as error:
                log.error("%s; plugins that write much output block until it runs", error)
                for output in self._outputs.values():
                    output.answer(str(error))
            else:
                self._backoff.worked()
                return client

    async def _hand_over_all(self) -> None:
        # One after another: many answers at once could exceed the receive buffer of the connection.
        for output in list(self._outputs.values()):
            if output.answered.is_set():
                output.answered = anyio.Event()
            await self._hand_over(output)
            if output.refusal:
                log.error(
                    "cannot log the output of %s, which blocks when it writes much: %s", output.key, output.refusal
                )

    async def _hand_over(self, output: KeeperOutput) -> None:
        """Return when the keeper has answered; if it exits, its successor gets the request."""
        request = pack("A", output.key, output.log.directory, output.log.most_bytes, output.log.files)
        try:
            await self._send(request, output.stdio)
        except anyio.ClosedResourceError:  # the run was abandoned
            self._end(output.key)
        await output.answered.wait()

    async def _send(self, packet: bytes, stdio: RunStreams | None = None) -> bool:
        """Whether the packet was sent; if not, the connection is lost, and the streams are handed over again later.

        Raises: anyio.ClosedResourceError for streams that are closed.
        """
        async with self._sending:
            while (client := self._client) is not None:
                # read last: the number of a closed descriptor may be reused
                streams = [stdio.stdout.fileno(), stdio.stderr.fileno()] if stdio is not None else []
                try:
                    socket.send_fds(client, [packet], streams)
                except BlockingIOError:
                    with suppress(anyio.ClosedResourceError):
                        await anyio.wait_writable(client)
                except OSError:
                    return False
                else:
                    return True
        return False

    def _receive(self, packet: bytes) -> None:
        verb, fields = unpack(packet)
        key = fields[0]
        output = self._outputs.get(key)
        if verb == "d":
            self._end(key)
        elif verb == "f" and key in self._flushed:
            self._flushed[key].set()
        elif verb in ("a", "r") and output is not None:
            output.answer("".join(fields[1:]))

    def _end(self, key: str) -> None:
        output = self._outputs.pop(key, None)
        if output is not None:
            output.answer()
            output.finished.set()


async def stop_keeper(state: Path, timeouts: KeeperTimeouts) -> None:
    """Stop the keeper of this directory, if any, and wait for it. Raises: Unavailable if it does not exit."""
    await _process(state, timeouts).stop()


def _process(state: Path, timeouts: KeeperTimeouts) -> BackgroundProcess:
    return BackgroundProcess(_KEEPER, state, timeouts.keeper, timeouts.killed)


@asynccontextmanager
async def open_keeper_client(state: Path, timeouts: KeeperTimeouts) -> AsyncIterator[KeeperClient]:
    """A client of the keeper of this directory; the keeper continues after the block.

    The keeper is found or started when the first run is handed to it, and restarted with back-off when it exits.
    """
    keeper = KeeperClient(state, timeouts)
    async with background_tasks() as tasks:
        tasks.start_soon(keeper._serve)
        yield keeper

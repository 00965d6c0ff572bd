"""An engine's side of the log keeper: hands it the streams of each run, again where it was killed, and hears their end.

The engine keeps the read ends open without reading them. So whatever becomes of the keeper, the next one gets the same
FIFOs, with all in them that nobody has read.
"""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.logs._reaching import connect, end_keeper, kill_keeper, receive
from moorage.logs.files import PluginLog
from moorage.logs.wire import pack, unpack
from moorage.timeouts import Timeouts

__all__ = ("Kept", "LogKeeper", "Stdio", "Stream", "end_keeper", "open_log_keeper")

log = logging.getLogger(__name__)


class Stream(Protocol):
    """The read end of a FIFO."""

    def fileno(self) -> int:
        """The descriptor. Raises: anyio.ClosedResourceError."""


class Stdio(Protocol):
    """Both streams of a run."""

    @property
    def stdout(self) -> Stream: ...

    @property
    def stderr(self) -> Stream: ...


class Kept:
    """The output of one run, in the keeper's hands."""

    def __init__(self, key: str, log: PluginLog, stdio: Stdio) -> None:
        self.key = key
        self.log = log
        self.stdio = stdio
        self.refusal = ""
        self.answered = anyio.Event()
        self.ended = anyio.Event()

    async def wait(self) -> None:
        """Return when both streams have ended and all of them is in the log. May be cancelled, and called again."""
        await self.ended.wait()


class LogKeeper:
    """The keeper, as an engine uses it. ``open_log_keeper`` makes one."""

    def __init__(self, state: Path, timeouts: Timeouts) -> None:
        self._state = state
        self._timeouts = timeouts
        self._kept: dict[str, Kept] = {}
        self._flushed: dict[str, anyio.Event] = {}
        self._client: socket.socket | None = None
        self._sending = anyio.Lock()

    def taker(self, key: str, log: PluginLog) -> Callable[[Stdio], Awaitable[Kept]]:
        """What takes the streams of one run (``key`` is used for it alone), and has them written to this log.

        Where the keeper drains this key already, it goes on, and the streams are only held for its successor.
        It raises Unavailable where the keeper does not take them.
        """

        async def take(stdio: Stdio) -> Kept:
            await run_blocking(lambda: log.directory.mkdir(mode=0o700, parents=True, exist_ok=True))
            kept = self._kept[key] = Kept(key, log, stdio)
            try:
                with anyio.move_on_after(self._timeouts.keeper) as patience:
                    await self._hand_over(kept)
                if patience.cancelled_caught:
                    if self._client is not None:
                        kill_keeper(self._client)
                    raise errors.Unavailable("the log keeper does not answer")
                if kept.refusal:
                    raise errors.Unavailable(f"the log keeper refuses {key}: {kept.refusal}")
            except BaseException:
                self._kept.pop(key, None)
                raise
            return kept

        return take

    async def flush(self, key: str) -> None:
        """Have what is no whole line yet of this run written, for whoever reads its last lines. At most a moment."""
        flushed = self._flushed.setdefault(key, anyio.Event())
        with anyio.move_on_after(self._timeouts.keeper):
            if await self._send(pack("F", key)):
                await flushed.wait()
        self._flushed.pop(key, None)

    async def _serve(self, *, task_status: TaskStatus[errors.MoorageError | None]) -> None:
        """Be connected for ever. Tells its starter the failure of the first try."""
        try:
            client = await connect(self._state, self._timeouts)
        except errors.MoorageError as error:
            task_status.started(error)
            return
        task_status.started(None)
        while True:
            self._client = client
            try:
                async with background_tasks() as tasks:
                    tasks.start_soon(self._hand_over_all)
                    while packet := await receive(client):
                        self._hear(packet)
            finally:
                self._client = None
                anyio.notify_closing(client)
                client.close()
            log.warning("the log keeper is gone; starting it again")
            client = await self._connect_again()

    async def _connect_again(self) -> socket.socket:
        for pause in pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit):
            try:
                return await connect(self._state, self._timeouts)
            except errors.MoorageError as error:
                log.error("plugins will stop when their output is waited for: %s", error)
            await anyio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _hand_over_all(self) -> None:
        # One after another: so many answers at once could be more than our side of the connection holds.
        for kept in list(self._kept.values()):
            if kept.answered.is_set():
                kept.answered = anyio.Event()
            await self._hand_over(kept)
            if kept.refusal:
                log.error("the log keeper refuses %s, which will stop for it: %s", kept.key, kept.refusal)

    async def _hand_over(self, kept: Kept) -> None:
        """Return when the keeper has answered; the next one is asked where this one goes away."""
        try:
            streams = [kept.stdio.stdout.fileno(), kept.stdio.stderr.fileno()]
        except anyio.ClosedResourceError:  # nobody wants to know any more
            self._end(kept.key)
            return
        kept.refusal = ""
        log_bounds = kept.log.directory, kept.log.most_bytes, kept.log.files
        await self._send(pack("A", kept.key, *log_bounds), streams)
        await kept.answered.wait()

    async def _send(self, packet: bytes, descriptors: list[int] | None = None) -> bool:
        """Whether the keeper was told; if not, the connection is gone, and what is to be handed over will be."""
        async with self._sending:
            while (client := self._client) is not None:
                try:
                    socket.send_fds(client, [packet], descriptors or [])
                except BlockingIOError:
                    with suppress(anyio.ClosedResourceError):
                        await anyio.wait_writable(client)
                except OSError:
                    return False
                else:
                    return True
        return False

    def _hear(self, packet: bytes) -> None:
        verb, fields = unpack(packet)
        key = fields[0]
        kept = self._kept.get(key)
        if verb == "d":
            self._end(key)
        elif verb == "f" and key in self._flushed:
            self._flushed[key].set()
        elif verb in ("a", "r") and kept is not None:
            kept.refusal = "".join(fields[1:])
            kept.answered.set()

    def _end(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.answered.set()
            kept.ended.set()


@asynccontextmanager
async def open_log_keeper(state: Path, timeouts: Timeouts) -> AsyncIterator[LogKeeper]:
    """The keeper that works in this directory, found or started, until the block ends; it goes on after it.

    One that dies meanwhile is started again with back-off.

    Raises: Unavailable, Conflict, where there is none at first.
    """
    keeper = LogKeeper(state, timeouts)
    async with background_tasks() as tasks:
        failure = await tasks.start(keeper._serve)
        if failure is not None:
            raise failure
        yield keeper

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

    def answer(self, refusal: str = "") -> None:
        """The keeper has them, or says why not."""
        self.refusal = refusal
        self.answered.set()

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
        self._wanted = anyio.Event()

    def taker(self, key: str, log: PluginLog) -> Callable[[Stdio], Awaitable[Kept]]:
        """What takes the streams of one run (``key`` is used for it alone), and has them written to this log.

        Where the keeper drains this key already, it goes on, and the streams are only held for its successor.
        It raises Unavailable where the keeper does not take them.
        """

        async def take(stdio: Stdio) -> Kept:
            await run_blocking(lambda: log.directory.mkdir(mode=0o700, parents=True, exist_ok=True))
            kept = self._kept[key] = Kept(key, log, stdio)
            self._wanted.set()
            try:
                if not await self._is_answered(kept) and not await self._is_answered(kept):
                    raise errors.Unavailable(f"cannot keep the output of {key}: the log keeper does not answer")
                if kept.refusal:
                    raise errors.Unavailable(f"cannot keep the output of {key}: {kept.refusal}")
            except BaseException:
                self._kept.pop(key, None)
                raise
            return kept

        return take

    async def _is_answered(self, kept: Kept) -> bool:
        """Whether the keeper answers in time; one that does not is killed, and its successor is asked in any case."""
        with anyio.move_on_after(self._timeouts.keeper):
            await self._hand_over(kept)
            return True
        if self._client is not None:
            kill_keeper(self._client)
        return False

    async def flush(self, key: str) -> None:
        """Have what is no whole line yet of this run written, for whoever reads its last lines. At most a moment."""
        flushed = self._flushed.setdefault(key, anyio.Event())
        with anyio.move_on_after(self._timeouts.keeper):
            if await self._send(pack("F", key)):
                await flushed.wait()
        self._flushed.pop(key, None)

    async def _serve(self) -> None:
        """Be connected for as long as anything is kept; nothing is started before."""
        while True:
            await self._until_wanted()
            client = self._client = await self._connect()
            try:
                async with background_tasks() as tasks:
                    tasks.start_soon(self._hand_over_all)
                    while packet := await receive(client):
                        self._hear(packet)
            finally:
                self._client = None
                for flushed in self._flushed.values():
                    flushed.set()
                anyio.notify_closing(client)
                client.close()
            log.warning("the log keeper is gone%s", "; starting it again" if self._kept else "")

    async def _until_wanted(self) -> None:
        while not self._kept:
            self._wanted = anyio.Event()
            await self._wanted.wait()

    async def _connect(self) -> socket.socket:
        for pause in pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit):
            try:
                return await connect(self._state, self._timeouts)
            except errors.MoorageError as error:
                log.error("%s; plugins that write much stop until there is one", error)
                for kept in self._kept.values():
                    kept.answer(str(error))
            await anyio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _hand_over_all(self) -> None:
        # One after another: so many answers at once could be more than our side of the connection holds.
        for kept in list(self._kept.values()):
            if kept.answered.is_set():
                kept.answered = anyio.Event()
            await self._hand_over(kept)
            if kept.refusal:
                log.error("cannot keep the output of %s, which stops when it writes much: %s", kept.key, kept.refusal)

    async def _hand_over(self, kept: Kept) -> None:
        """Return when the keeper has answered; the next one is asked where this one goes away."""
        request = pack("A", kept.key, kept.log.directory, kept.log.most_bytes, kept.log.files)
        try:
            await self._send(request, kept.stdio)
        except anyio.ClosedResourceError:  # nobody wants to know any more
            self._end(kept.key)
        await kept.answered.wait()

    async def _send(self, packet: bytes, stdio: Stdio | None = None) -> bool:
        """Whether the keeper was told; if not, the connection is gone, and what is to be handed over will be.

        Raises: anyio.ClosedResourceError for streams that are closed.
        """
        async with self._sending:
            while (client := self._client) is not None:
                # taken at the last moment: a number that was closed meanwhile may be another file's
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

    def _hear(self, packet: bytes) -> None:
        verb, fields = unpack(packet)
        key = fields[0]
        kept = self._kept.get(key)
        if verb == "d":
            self._end(key)
        elif verb == "f" and key in self._flushed:
            self._flushed[key].set()
        elif verb in ("a", "r") and kept is not None:
            kept.answer("".join(fields[1:]))

    def _end(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.answer()
            kept.ended.set()


@asynccontextmanager
async def open_log_keeper(state: Path, timeouts: Timeouts) -> AsyncIterator[LogKeeper]:
    """The keeper that works in this directory, until the block ends; it goes on after it.

    It is found, or started, when the first run is handed to it, and started again with back-off where it dies.
    """
    keeper = LogKeeper(state, timeouts)
    async with background_tasks() as tasks:
        tasks.start_soon(keeper._serve)
        yield keeper

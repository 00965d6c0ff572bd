"""The client of the plugin proxy: gives it the tables of the plugins, again after it was killed, and has its news.

The engine has duplicates of the proxy's listening sockets. So if the proxy is killed, connections wait in their queues,
and its successor gets the same sockets.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import anyio
import msgspec

from moorage import errors
from moorage._lib.backoff import Backoff
from moorage._lib.task_groups import background_tasks
from moorage.background_process import BackgroundProcess, BackgroundProgram
from moorage.host.directory_tree import remove_tree_now
from moorage.proxy.frames import FrameReader, FrameWriter, read_some
from moorage.proxy.protocol import GREETING, MAGIC, QUIT, News, PluginTable, Tables, decode_news, encode
from moorage.timeouts import ProxyTimeouts

__all__ = ("ProxyClient", "clear_proxy_state", "ledger_ids", "stop_proxy")

log = logging.getLogger(__name__)

_PROXY = BackgroundProgram(
    "plugin proxy",
    "moorage.proxy.server",
    "p.sock",
    "proxy",
    MAGIC,
    GREETING,
    QUIT,
    is_stream=True,
    packages=("h11", "msgspec"),
)


class ProxyClient:
    """The connection to the proxy of one state directory, from when it is needed."""

    def __init__(
        self,
        state: Path,
        timeouts: ProxyTimeouts,
        tables: Callable[[], Awaitable[Sequence[PluginTable]]],
        take_news: Callable[[News], None],
        *,
        program: BackgroundProgram = _PROXY,
    ) -> None:
        """``tables`` returns those of all plugins now; ``take_news`` is called with all news of the proxy."""
        self._process = BackgroundProcess(program, state, timeouts.proxy, timeouts.killed, self._take_over)
        self._timeouts = timeouts
        self._tables = tables
        self._take_news = take_news
        self._backoff = Backoff(timeouts.reconnect_first, timeouts.reconnect_limit, timeouts.steady)
        self._listeners: dict[str, int] = {}
        self._is_needed = False
        self._needed = anyio.Event()
        self._version = 0
        """Of what the tables are made from: one more with each change."""
        self._applied = -1
        """The version that the proxy has carried out."""
        self._is_check_due = False
        self._changed = anyio.Event()
        self._answered, self._started = _Signal(), _Signal()
        self._has_news = False
        self._scope = anyio.CancelScope()
        self.problem = ""
        """Why the proxy does not run; empty where it does, or is not needed."""
        self.starts = 0
        """How often it was connected to."""

    @property
    def is_needed(self) -> bool:
        """Whether there has been something for the proxy to serve."""
        return self._is_needed

    @property
    def listeners(self) -> Mapping[str, int]:
        """The descriptors of all sockets that the proxy listens on, by path."""
        return self._listeners

    def need(self) -> None:
        """Find or start the proxy from now on, and keep it running."""
        self._is_needed = True
        self._needed.set()

    def notify(self) -> None:
        """What the tables are made from has changed: they are sent once more. Several changes are sent together."""
        self._version += 1
        self._changed.set()

    async def refresh(self) -> None:
        """Return when the news are not older than this call. No bound."""
        self._is_check_due = True
        self.notify()
        await self.settle()

    async def settle(self) -> None:
        """Return when the sockets are as the tables of now say; at once where no proxy is needed. No bound."""
        version = self._version
        while self._is_needed and self._applied < version:
            await self._answered.wait()

    async def settle_or_fail(self) -> bool:
        """Whether the sockets are as the tables of now say; False as soon as a proxy cannot be started. No bound."""
        version = self._version
        while self._is_needed and self._applied < version:
            if self.problem:
                return False
            await self._answered.wait()
        return True

    async def wait_news(self) -> bool:
        """Whether it is known what is mounted, which no proxy need say where none is needed. No bound.

        False as soon as a proxy cannot be started.
        """
        while self._is_needed and not self._has_news:
            if self.problem:
                return False
            await self._answered.wait()
        return True

    async def wait_restart(self, starts: int) -> None:
        """Return when ``starts`` is another number than this. No bound."""
        while self.starts == starts:
            await self._started.wait()

    async def serve(self) -> None:
        """Stay connected from when the proxy is needed; start it again when it exits."""
        try:
            with self._scope:
                await self._needed.wait()
                while True:
                    await self._serve_connection(await self._connect())
                    log.warning("the plugin proxy has exited; starting it again")
        finally:
            self._close_listeners()

    async def _connect(self) -> socket.socket:
        while True:
            await anyio.sleep(self._backoff.next())
            try:
                client = await self._process.connect()
            except errors.MoorageError as error:
                if str(error) != self.problem:
                    log.error("%s; published plugins cannot be reached until it runs", error)
                self.problem = str(error)
                self._answered.notify()
            else:
                self._backoff.worked()
                self.problem = ""
                return client

    async def _take_over(self, client: socket.socket) -> None:
        """The listening sockets of a proxy of another version, whose ledger is on disk: connections wait in them."""
        connection = _Connection(client)
        try:
            with anyio.move_on_after(self._timeouts.proxy_news):
                while (message := await connection.receive()) is not None:
                    news = decode_news(message)
                    if news.listeners is not None:
                        self._take_listeners(news, connection.reader.take(len(news.listeners)))
                        return
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("the sockets of plugins are made again: the plugin proxy of another version said: %s", error)
        finally:
            connection.reader.close()

    async def stop(self) -> None:
        """Stop the proxy, which leaves no socket behind, and do not start it again. Raises: Unavailable."""
        self._scope.cancel()
        self._is_needed = False
        self._answered.notify()
        self._close_listeners()
        await self._process.stop()

    def _close_listeners(self) -> None:
        _close(self._listeners.values())
        self._listeners = {}

    async def _serve_connection(self, client: socket.socket) -> None:
        self.starts += 1
        self._started.notify()
        connection = _Connection(client)
        try:
            async with background_tasks() as tasks:
                tasks.start_soon(self._send, connection)
                await self._receive(connection)
        finally:
            self._applied = -1
            anyio.notify_closing(client)
            client.close()

    async def _receive(self, connection: "_Connection") -> None:
        """Take the news until the connection is closed; a proxy that sends something else is killed."""
        try:
            while (message := await connection.receive()) is not None:
                news = decode_news(message)
                if news.listeners is not None:
                    self._take_listeners(news, connection.reader.take(len(news.listeners)))
                self._take_news(news)
                self._has_news = True
                self._answered.notify()
                connection.take_news(news)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("the plugin proxy sent what is no message (%s)", error)
            self._process.kill(connection.socket)
        finally:
            connection.reader.close()

    async def _send(self, connection: "_Connection") -> None:
        """Send the tables at each change, and from time to time; a proxy that does not answer is killed."""
        with anyio.move_on_after(self._timeouts.proxy_news):
            await connection.has_news.wait()  # what is mounted, for the first tables
        number, sent = 0, None
        while True:
            self._changed = anyio.Event()
            version, tables = self._version, tuple(await self._tables())
            if tables != sent or self._is_check_due:
                self._is_check_due = False
                number += 1
                if not await self._send_tables(connection, tables, number):
                    return
                sent = tables
            self._applied = version
            self._answered.notify()
            with anyio.move_on_after(self._timeouts.proxy_check) as scope:
                await self._changed.wait()
            self._is_check_due |= scope.cancelled_caught

    async def _send_tables(self, connection: "_Connection", plugins: tuple[PluginTable, ...], number: int) -> bool:
        """Whether the proxy has carried them out; if not, it has exited, or is killed for not answering."""
        listeners = self._listeners if number == 1 else {}
        handed_over = {path: os.dup(each) for path, each in listeners.items() if path not in connection.listeners}
        try:
            message = encode(Tables(plugins, tuple(handed_over), number))
            if not await connection.send(message, list(handed_over.values())):
                return False
        finally:
            _close(handed_over.values())
        with anyio.move_on_after(self._timeouts.proxy):
            await connection.wait_number(number)
            return True
        self._process.kill(connection.socket)
        return False

    def _take_listeners(self, news: News, descriptors: Sequence[int]) -> None:
        """The proxy listens on these; before its first tables, it does not have those of the one before it yet."""
        made = dict(zip(news.listeners or (), descriptors, strict=True))
        old = {path: each for path, each in self._listeners.items() if path in made or news.number}
        _close(old.values())
        self._listeners = {**{path: each for path, each in self._listeners.items() if path not in old}, **made}


class _Connection:
    """One connection to a proxy, whose greeting was received."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.reader = FrameReader()
        self.has_news = anyio.Event()
        self.answered = _Signal()
        """Of each news."""
        self.listeners: frozenset[str] = frozenset()
        """Paths on which the proxy listens."""
        self._number = 0

    def take_news(self, news: News) -> None:
        """Note which tables the proxy has carried out, and where it listens."""
        if news.listeners is not None:
            self.listeners = frozenset(news.listeners)
        self._number = news.number
        self.has_news.set()
        self.answered.notify()

    async def wait_number(self, number: int) -> None:
        """Return when the proxy has carried out the tables of this number."""
        while self._number < number:
            await self.answered.wait()

    async def receive(self) -> bytes | None:
        """The next message; None where the connection is closed. Raises: ValueError for what is none."""
        while (message := self.reader.next()) is None:
            try:
                data, descriptors = read_some(self.socket)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
                continue
            except OSError:
                return None
            self.reader.feed(data, descriptors)
            if not data:
                return None
        return message

    async def send(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Whether the message was sent; False where the connection is lost."""
        writer = FrameWriter(message, descriptors)
        try:
            while not writer.send(self.socket):
                await anyio.wait_writable(self.socket)
        except (OSError, anyio.ClosedResourceError):
            return False
        return True


class _Signal:
    """Wakes all that wait at that moment."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    def notify(self) -> None:
        self._event.set()
        self._event = anyio.Event()


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def ledger_ids(state: Path) -> list[str]:
    """The ids of the plugins that a proxy of this directory knows mounts or log files of (blocking)."""
    try:
        return sorted(path.stem for path in (state / "ledger").glob("*.json"))
    except OSError:
        return []


def clear_proxy_state(state: Path) -> None:
    """Remove all but the ledger from a state directory that no proxy serves any more (blocking). Raises: OSError."""
    for path in sorted(state.iterdir()):
        if path.name == "ledger":
            continue
        if path.is_dir() and not path.is_symlink():
            remove_tree_now(path)
        else:
            path.unlink()


async def stop_proxy(state: Path, timeouts: ProxyTimeouts) -> None:
    """Stop the proxy of this directory, if any, and wait for it. Raises: Unavailable if it does not exit."""
    await BackgroundProcess(_PROXY, state, timeouts.proxy, timeouts.killed).stop()

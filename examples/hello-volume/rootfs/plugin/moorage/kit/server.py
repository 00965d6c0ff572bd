"""Serves a plugin: one loop waits for all connections, threads run the calls.

A connection occupies a thread only while a call of it runs, so a thousand idle or slow callers cost nothing. Where a
method is ``async def``, ``serve`` takes the event loop of ``async_server`` instead.
"""

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from moorage.kit.driver import Driver, Plugin, log
from moorage.kit.http1 import HttpError, HttpRequest, RequestParser, chunk, response, stream_head
from moorage.kit.messages import encode
from moorage.kit.options import Limits, remove_socket, socket_path
from moorage.kit.threads import ThreadPool

__all__ = ("PluginServer", "serve")

_READ_BYTES = 65536
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _PluginCaller:
    """One caller."""

    def __init__(self, peer: socket.socket, limits: Limits) -> None:
        self.peer = peer
        self.parser = RequestParser(limits.body_bytes)
        self.deadline = time.monotonic() + limits.idle

    def close(self) -> None:
        self.peer.close()


class PluginServer:
    """The socket of a plugin, from ``run`` until ``stop``."""

    def __init__(self, plugin: Plugin, path: Path, limits: Limits) -> None:
        self._plugin, self._path, self._limits = plugin, path, limits
        self._selector = selectors.DefaultSelector()
        self._pool = ThreadPool(limits.threads, self._wake)
        self._answered: deque[_PluginCaller] = deque()
        self._check_at = float("inf")
        self._stop_at = float("inf")
        self._wake_out, self._wake_in = os.pipe()
        for descriptor in (self._wake_out, self._wake_in):
            os.set_blocking(descriptor, False)

    def stop(self) -> None:
        """End ``run``: refuse new callers, and wait for the calls that run. May be called by a signal handler."""
        self._stop_at = min(self._stop_at, time.monotonic() + self._limits.stop)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_in, b"x")
        except OSError:
            pass  # it is full of others that say the same, or the server has stopped

    def run(self) -> None:
        """Start the drivers, serve, and stop the drivers.

        Raises:
            OSError: the socket cannot be made
        """
        self._plugin.start()
        remove_socket(self._path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(self._path))
            listener.listen(self._limits.listen)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            self._selector.register(self._wake_out, selectors.EVENT_READ)
            log(f"listening on {self._path}")
            while self._stop_at == float("inf"):
                self._step(listener)
            self._selector.unregister(listener)
            remove_socket(self._path)
        while self._pool.unfinished and time.monotonic() < self._stop_at:
            self._step(None)
        self._plugin.stop()
        self._close()
        log("stopped")

    def _step(self, listener: socket.socket | None) -> None:
        """Wait for something to do, and do it."""
        until = min(self._check_at, self._stop_at)
        timeout = None if until == float("inf") else max(0.0, until - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fileobj is listener:
                self._accept(listener)
            elif key.fileobj == self._wake_out:
                os.read(self._wake_out, 4096)
            else:
                self._receive(key.data)
        while self._answered:
            self._wait_for_next(self._answered.popleft())
        if time.monotonic() >= self._check_at:
            self._close_late()

    def _accept(self, listener: socket.socket) -> None:
        try:
            while True:
                peer, _ = listener.accept()
                peer.settimeout(self._limits.receive)
                self._watch(_PluginCaller(peer, self._limits), self._limits.idle)
        except BlockingIOError:
            pass
        except OSError as error:  # too many open files: those that wait are accepted later
            log(f"cannot accept a connection: {error}")
            time.sleep(0.05)

    def _watch(self, connection: _PluginCaller, seconds: float) -> None:
        connection.deadline = time.monotonic() + seconds
        self._check_at = min(self._check_at, connection.deadline)
        self._selector.register(connection.peer, selectors.EVENT_READ, connection)

    def _receive(self, connection: _PluginCaller) -> None:
        try:
            data = connection.peer.recv(_READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        if connection.parser.is_empty:  # a request begins, and has to arrive soon
            connection.deadline = time.monotonic() + self._limits.receive
            self._check_at = min(self._check_at, connection.deadline)
        try:
            request = connection.parser.feed(data)
            if request is None and connection.parser.needs_continue:
                connection.parser.needs_continue = False
                connection.peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        except HttpError as error:
            self._selector.unregister(connection.peer)
            last = response(error.status, encode({"Err": str(error)}), is_last=True)
            self._pool.run(lambda: self._send_last(connection, last))
            return
        except OSError:
            self._drop(connection)
            return
        if request is not None:
            self._selector.unregister(connection.peer)
            self._pool.run(lambda: self._answer(connection, request))

    def _answer(self, connection: _PluginCaller, request: HttpRequest | None) -> None:
        """In a thread: answer this request, and those that have been received behind it."""
        try:
            while request is not None:
                answer = self._plugin.handle(request.method, request.path, request.body)
                if isinstance(answer.body, Iterator):
                    self._stream(connection, answer.body)
                    return
                connection.peer.sendall(response(answer.status, answer.body, is_last=request.is_last))
                if request.is_last:
                    connection.close()
                    return
                request = connection.parser.feed(b"")
        except HttpError as error:
            self._send_last(connection, response(error.status, encode({"Err": str(error)}), is_last=True))
            return
        except OSError:  # the caller has left
            connection.close()
            return
        self._answered.append(connection)  # the pool wakes the loop after this job

    def _stream(self, connection: _PluginCaller, pieces: Iterator[bytes]) -> None:
        """Send pieces in a thread of their own: a reader may follow a log for days."""

        def send() -> None:
            try:
                connection.peer.settimeout(None)
                connection.peer.sendall(stream_head())
                for piece in pieces:
                    if piece:
                        connection.peer.sendall(chunk(piece))
                connection.peer.sendall(chunk(b""))
            except OSError:
                pass  # the reader has left
            finally:
                connection.close()

        threading.Thread(target=send, daemon=True).start()

    def _send_last(self, connection: _PluginCaller, data: bytes) -> None:
        try:
            connection.peer.sendall(data)
            connection.peer.shutdown(socket.SHUT_WR)
            while connection.peer.recv(_READ_BYTES):
                pass  # else the kernel discards the answer together with what was not read
        except OSError:
            pass
        connection.close()

    def _wait_for_next(self, connection: _PluginCaller) -> None:
        try:
            self._watch(connection, self._limits.idle)
        except (OSError, ValueError):
            connection.close()

    def _drop(self, connection: _PluginCaller) -> None:
        self._selector.unregister(connection.peer)
        connection.close()

    def _connections(self) -> list[_PluginCaller]:
        return [key.data for key in self._selector.get_map().values() if isinstance(key.data, _PluginCaller)]

    def _close_late(self) -> None:
        now = time.monotonic()
        self._check_at = float("inf")
        for connection in self._connections():
            if connection.deadline <= now:
                self._drop(connection)
            else:
                self._check_at = min(self._check_at, connection.deadline)

    def _close(self) -> None:
        for connection in self._connections():
            self._drop(connection)
        self._selector.close()
        os.close(self._wake_out)  # the other end stays: threads that are still answering write to its number


def serve(*drivers: Driver, socket: str, limits: Limits | None = None) -> None:
    """Serve these drivers until SIGTERM or SIGINT; returns after their ``stop``.

    ``socket`` is the name that ``interface.socket`` of config.json has; the path for a process that is no container.
    Calls run in threads; with an ``async def`` method among them, in an event loop.

    Raises:
        OSError: the socket cannot be made
    """
    plugin, path, bounds = Plugin(*drivers), socket_path(socket), limits or Limits()
    if plugin.is_async:
        import asyncio

        from moorage.kit.async_server import serve_async

        asyncio.run(serve_async(plugin, path, bounds))
        return
    server = PluginServer(plugin, path, bounds)

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, stop)
    server.run()
    sys.stdout.flush()

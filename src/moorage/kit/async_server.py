"""Serves a plugin in an event loop: ``async def`` methods are awaited, others run in threads."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from moorage.kit.driver import CallAnswer, Plugin, log
from moorage.kit.http1 import HttpError, HttpRequest, RequestParser, chunk, response, stream_head
from moorage.kit.messages import encode
from moorage.kit.options import Limits, remove_socket

__all__ = ("serve_async",)

_READ_BYTES = 65536


class _AsyncServer:
    """The connections of a plugin."""

    def __init__(self, plugin: Plugin, limits: Limits) -> None:
        self._plugin, self._limits = plugin, limits
        self._connections: set[asyncio.Task[None]] = set()
        self._running = 0
        self._finished = asyncio.Event()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the calls of one caller."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the caller has left or is too slow, or the plugin stops
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = RequestParser(self._limits.body_bytes)
        while True:
            try:
                request = await self._receive(reader, writer, parser)
            except HttpError as error:
                await self._send(writer, response(error.status, encode({"Err": str(error)}), is_last=True))
                return
            if request is None:
                return
            self._running += 1
            try:
                answer = await self._answer(request)
                if isinstance(answer.body, Iterator):
                    await self._stream(writer, answer.body)
                    return
                await self._send(writer, response(answer.status, answer.body, is_last=request.is_last))
            finally:
                self._running -= 1
                self._finished.set()
            if request.is_last:
                return

    async def _receive(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parser: RequestParser
    ) -> HttpRequest | None:
        request = parser.feed(b"")
        while request is None:
            async with asyncio.timeout(self._limits.idle if parser.is_empty else self._limits.receive):
                data = await reader.read(_READ_BYTES)
            if not data:
                return None
            request = parser.feed(data)
            if request is None and parser.needs_continue:
                parser.needs_continue = False
                await self._send(writer, b"HTTP/1.1 100 Continue\r\n\r\n")
        return request

    async def _answer(self, request: HttpRequest) -> CallAnswer:
        try:
            async with asyncio.timeout(self._limits.call):
                return await self._plugin.handle_async(request.method, request.path, request.body)
        except TimeoutError:
            return CallAnswer(503, encode({"Err": f"{request.path} took more than {self._limits.call} s"}))

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        async with asyncio.timeout(self._limits.receive):
            await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, pieces: Iterator[bytes]) -> None:
        writer.write(stream_head())
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            if piece:
                writer.write(chunk(piece))
                await writer.drain()
        writer.write(chunk(b""))
        await writer.drain()

    async def finish(self) -> None:
        """Wait for the calls that run, and close all connections."""
        try:
            async with asyncio.timeout(self._limits.stop):
                while self._running:
                    self._finished.clear()
                    await self._finished.wait()
        except TimeoutError:
            log(f"{self._running} calls still run after {self._limits.stop:g} s")
        for task in tuple(self._connections):
            task.cancel()


async def serve_async(plugin: Plugin, path: Path, limits: Limits | None = None) -> None:
    """Serve a plugin in this event loop until SIGTERM or SIGINT, or until it is cancelled.

    Raises:
        OSError: the socket cannot be made
    """
    bounds = limits or Limits()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await asyncio.to_thread(plugin.start)
    remove_socket(path)
    connections = _AsyncServer(plugin, bounds)
    server = await asyncio.start_unix_server(connections.connection, os.fspath(path), backlog=bounds.listen)
    log(f"listening on {path}")
    try:
        await stop.wait()
    finally:
        server.close()
        remove_socket(path)
        await connections.finish()
        await asyncio.to_thread(plugin.stop)
        log("stopped")

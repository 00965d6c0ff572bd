"""Connections of engines to the proxy: they receive news, and send tables (``protocol``, ``frames``)."""

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Protocol

import msgspec

from moorage.proxy.frames import FrameReader, FrameWriter, read_some
from moorage.proxy.protocol import GREETING, QUIT, News, Tables, decode_tables, encode

__all__ = ("EngineChannel", "EngineHandler")


class EngineHandler(Protocol):
    """What an engine changes."""

    def configure(self, channel: "EngineChannel", tables: Tables, listeners: Mapping[str, socket.socket]) -> None:
        """The whole tables; the listening sockets, of a former proxy, belong to the handler."""

    def written(self, channel: "EngineChannel") -> None:
        """A message was sent completely, and the next one may be."""

    def quit(self) -> None:
        """The proxy is to exit."""

    def closed(self, channel: "EngineChannel") -> None:
        """The engine has gone."""


class EngineChannel:
    """One connection. Nothing waits for an engine: what it does not read replaces what it has not read yet."""

    def __init__(self, connection: socket.socket, handler: EngineHandler) -> None:
        """Takes ownership of the socket, which is non-blocking."""
        self._socket = connection
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._writer: FrameWriter | None = None
        self._descriptors: list[int] = []
        """Duplicates that are being sent."""
        self.number = 0
        """Of the last tables that were carried out."""
        self.sent_listeners: tuple[tuple[str, int], ...] | None = None
        """Paths and inodes of the sockets that the engine has."""
        self._loop.add_reader(connection, self._read)
        self._start(GREETING, [])

    def close(self) -> None:
        """Close the connection. May be repeated."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._reader.close()
        self._close_descriptors()
        self._handler.closed(self)

    def send(self, news: News, listeners: Mapping[str, socket.socket]) -> bool:
        """Begin to send news; ``listeners`` are those that the news names. Whether the former message was sent."""
        if self._writer is not None or self._socket.fileno() < 0:
            return False
        descriptors = [os.dup(listeners[path].fileno()) for path in news.listeners or ()]
        self._start(encode(news), descriptors)
        return True

    def _start(self, message: bytes, descriptors: list[int]) -> None:
        self._descriptors = descriptors
        self._writer = FrameWriter(message, descriptors)
        self._write()

    def _write(self) -> None:
        if self._writer is None:
            return
        try:
            if not self._writer.send(self._socket):
                self._loop.add_writer(self._socket, self._write)
                return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._socket)
        self._writer = None
        self._close_descriptors()
        self._handler.written(self)

    def _close_descriptors(self) -> None:
        for each in self._descriptors:
            os.close(each)
        self._descriptors = []

    def _read(self) -> None:
        try:
            data, descriptors = read_some(self._socket)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._reader.feed(data, descriptors)
        if not data:
            self.close()
            return
        try:
            while self._socket.fileno() >= 0 and (message := self._reader.next()) is not None:
                self._handle(message)
        except (ValueError, msgspec.MsgspecError):
            self.close()

    def _handle(self, message: bytes) -> None:
        """Raises: ValueError, MsgspecError for what is no message."""
        if message == QUIT:
            self._handler.quit()
            return
        tables = decode_tables(message)
        taken = self._reader.take(len(tables.listeners))
        sockets = (socket.socket(fileno=each) for each in taken)
        self._handler.configure(self, tables, dict(zip(tables.listeners, sockets, strict=True)))

"""Requests to an engine of this version on this machine, for commands that must be quick.

Not ``http.client``: that imports the TLS and mail libraries, which takes longer than the rest of such a command. So
this reads only what this version's own server sends, and whatever else comes is ``UnknownServer``: then the caller uses
``MoorageClient``, which reads any answer and has the text for each failure.
"""

import _socket  # what socket is built on, which imports selectors and makes dozens of enums: a fifth of such a command
import json

from moorage._version import __version__
from moorage.client.failures import connection_failure, failure_of

__all__ = ("LocalAnswer", "UnknownServer", "document_of", "quoted", "send")

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_SERVER = f"Docker/{__version__} (linux)"
_HEAD_BYTES = 16 * 1024
_CHUNK = 256 * 1024
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~")


class UnknownServer(Exception):
    """No answer of an engine of this version came."""


def quoted(name: str) -> str:
    """A name as part of a path. Raises: UnknownServer for what is no text."""
    if _PLAIN.issuperset(name):
        return name
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise UnknownServer from error
    return "".join(chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in raw)


def send(path: str, method: str, target: str) -> "LocalAnswer":
    """The answer to one request without a body, its head read, from the engine at this socket.

    Raises:
        UnknownServer: nothing was sent, as the socket does not accept at once; or another server answers a GET
        errors.MoorageError: the connection was lost
    """
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # a full queue is waited for elsewhere, within a bound
        connection.connect(path)
        connection.setblocking(True)
    except OSError as error:
        connection.close()
        raise UnknownServer from error
    length = "" if method == "GET" else "Content-Length: 0\r\n"
    try:
        connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: moorage\r\n{length}Connection: close\r\n\r\n".encode())
        return LocalAnswer(connection, path, is_strict=method == "GET")
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise connection_failure(path, error) from error
        raise


class LocalAnswer:
    """One answer. Its connection is closed when the body has been read."""

    def __init__(self, connection: _socket.socket, path: str, *, is_strict: bool) -> None:
        """Read the head; ``is_strict`` refuses what is not of this version. Raises: UnknownServer, OSError."""
        self._socket, self._path = connection, path
        self._buffer, self._at = b"", 0  # what was received, and how much of it was read
        try:
            status, *lines = self._read_line(b"\r\n\r\n", _HEAD_BYTES).decode("latin-1").split("\r\n")
        except ValueError as error:
            raise UnknownServer from error
        version, _, rest = status.partition(" ")
        number, _, self._reason = rest.partition(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = headers.get("content-length", "0")
        if version != "HTTP/1.1" or not number.isdecimal() or not length.isdecimal():
            raise UnknownServer
        if is_strict and headers.get("server") != _SERVER:
            raise UnknownServer
        self.status = int(number)
        self._is_chunked, self._length = "transfer-encoding" in headers, int(length)

    def read(self) -> bytes:
        """The rest of the body.

        Raises:
            errors.MoorageError: the connection was lost, or the engine reports a failure
        """
        body = b"".join(self.parts())
        if self.status >= 400:
            raise failure_of(self.status, self._reason, body)
        return body

    def lines(self) -> "Iterator[bytes]":
        """Lines of the body as they come. Raises: MoorageError as ``read``."""
        if self.status >= 400:
            self.read()
        rest = b""
        for part in self.parts():
            *whole, rest = (rest + part).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def parts(self) -> "Iterator[bytes]":
        """The body in parts as they come. Raises: MoorageError where the connection is lost."""
        try:
            yield from self._chunks() if self._is_chunked else self._counted()
        except (OSError, ValueError) as error:
            raise connection_failure(self._path, error) from error
        finally:
            self._socket.close()

    def _counted(self) -> "Iterator[bytes]":
        left = self._length
        while left:
            part = self._buffer[self._at : self._at + left]
            self._at += len(part)
            left -= len(part)
            if part:
                yield part
            if left:
                self._receive()

    def _chunks(self) -> "Iterator[bytes]":
        while (size := int(self._read_line(b"\r\n"), 16)) > 0:
            self._length = size
            yield from self._counted()
            if self._read_line(b"\r\n"):
                raise ValueError("it sent what is no HTTP")

    def _read_line(self, end: bytes, most_bytes: int = _CHUNK) -> bytes:
        """What comes before the next ``end``. Raises: ValueError where there is none in so many bytes."""
        while (found := self._buffer.find(end, self._at)) < 0:
            if len(self._buffer) - self._at > most_bytes:
                raise ValueError("it sent what is no HTTP")
            self._receive()
        line = self._buffer[self._at : found]
        self._at = found + len(end)
        return line

    def _receive(self) -> None:
        data = self._socket.recv(_CHUNK)
        if not data:
            raise ConnectionResetError  # without a number: it hung up
        self._buffer = self._buffer[self._at :] + data
        self._at = 0


def document_of(body: bytes) -> "Any":
    """A body as a JSON document. Raises: UnknownServer."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnknownServer from error

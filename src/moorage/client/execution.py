"""Commands that run in a plugin: input is sent while output is received."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

from moorage import errors
from moorage.api.schema.base import ErrorResponse, to_document
from moorage.api.schema.output import ExecExit, ExecRequest, ExecStarted
from moorage.client.answers import decode_answer
from moorage.client.transport import OWN, EngineTransport, accept_answer, quoted

__all__ = ("ExecOutput", "Execution", "ExecutionClient")

_STARTED, _STDOUT, _STDERR, _EXIT, _ERROR = range(5)


class ExecOutput(Struct, frozen=True):
    """Bytes that a command wrote.

    ``stream`` is where the command wrote ``data``.
    """

    stream: Literal["stdout", "stderr"]
    data: bytes


class Execution:
    """One command in a plugin: ``send`` in one thread, ``frames`` in another.

    ``sock`` is the connection and ``answer`` the response to its request; both are closed with the connection.
    """

    def __init__(self, sock: socket.socket, answer: http.client.HTTPResponse) -> None:
        self._socket = sock
        self._answer = answer

    def send(self, data: bytes) -> None:
        """Send input; ``b""`` closes it.

        Raises:
            OSError: the command is over
        """
        _send_chunk(self._socket, data)

    def frames(self) -> Iterator[ExecStarted | ExecOutput | ExecExit]:
        """What the command does, in order: it starts, writes, exits.

        Raises:
            errors.Unavailable: the engine disconnected before the command exited
            errors.MoorageError: the plugin exited, and the command with it
        """
        while head := self._answer.read(5):
            kind, length = head[0], int.from_bytes(head[1:], "big")
            data = self._answer.read(length)
            if len(data) < length:
                break
            if kind == _STARTED:
                yield decode_answer(data, ExecStarted)
            elif kind in (_STDOUT, _STDERR):
                yield ExecOutput("stdout" if kind == _STDOUT else "stderr", data)
            elif kind == _EXIT:
                yield decode_answer(data, ExecExit)
                return
            else:
                raise errors.MoorageError(decode_answer(data, ErrorResponse).message)
        raise errors.Unavailable("lost moorage while the command ran")


class ExecutionClient(EngineTransport):
    """Calls for commands in a plugin."""

    @contextmanager
    def execute(self, name: str, request: ExecRequest) -> Iterator[Execution]:
        """Run a command in a plugin; it is killed at the end of the block."""
        first = json.dumps(to_document(request)).encode()
        with self._connect() as connection:
            connection.putrequest("POST", f"{OWN}/plugins/{quoted(name)}/exec")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.putheader("Content-Type", "application/vnd.moorage.exec")
            connection.endheaders()
            try:
                _send_chunk(connection.sock, bytes([_STARTED]) + len(first).to_bytes(4, "big") + first)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was read; the answer has the reason
            yield Execution(connection.sock, accept_answer(connection.getresponse()))

    def resize(self, name: str, exec_id: str, rows: int, columns: int) -> None:
        """Resize the terminal of a command."""
        path = f"{OWN}/plugins/{quoted(name)}/exec/{quoted(exec_id)}/resize"
        self._do("POST", path, {"rows": str(rows), "columns": str(columns)})


def _send_chunk(sock: socket.socket, data: bytes) -> None:
    sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))

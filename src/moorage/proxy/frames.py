"""Messages with a length, and descriptors beside them, over a stream socket. Reads and writes nothing by itself.

A message is four bytes of its length, big-endian, and its bytes. Its descriptors travel with its bytes, at most
``MOST_DESCRIPTORS`` in one sendmsg(2), and arrive in their order. Standard library only: the proxy has it, too.
"""

import array
import os
import socket
from collections.abc import Sequence

__all__ = ("MOST_BYTES", "MOST_DESCRIPTORS", "FrameReader", "FrameWriter", "read_some")

MOST_BYTES = 64 * 1024 * 1024
"""Of a message; a longer one closes the connection."""
MOST_DESCRIPTORS = 253
"""In one sendmsg(2). Source: unix(7), SCM_RIGHTS."""
_LENGTH = 4  # bytes
_CHUNK = 256 * 1024  # bytes


class FrameReader:
    """Puts messages together of what was read."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._descriptors: list[int] = []

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Take what was read. The descriptors are the reader's until they are taken."""
        self._data += data
        self._descriptors += descriptors

    def next(self) -> bytes | None:
        """The next message; None where it is not complete yet. Raises: ValueError for one that is too long."""
        if len(self._data) < _LENGTH:
            return None
        length = int.from_bytes(self._data[:_LENGTH], "big")
        if length > MOST_BYTES:
            raise ValueError(f"a message of {length} bytes")
        if len(self._data) < _LENGTH + length:
            return None
        message = bytes(self._data[_LENGTH : _LENGTH + length])
        del self._data[: _LENGTH + length]
        return message

    def take(self, count: int) -> list[int]:
        """The descriptors of the message that ``next`` returned, which says how many; the caller closes them.

        Not all that were fed: those of a later message may have arrived with it. Raises: ValueError for too few.
        """
        if len(self._descriptors) < count:
            raise ValueError(f"a message with {len(self._descriptors)} descriptors instead of {count}")
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


class FrameWriter:
    """One message that is being sent on a non-blocking socket."""

    def __init__(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """``descriptors`` stay open at the sender, which closes them, until everything is sent."""
        self._data = memoryview(len(message).to_bytes(_LENGTH, "big") + message)
        self._groups = [
            descriptors[start : start + MOST_DESCRIPTORS] for start in range(0, len(descriptors), MOST_DESCRIPTORS)
        ]

    def send(self, connection: socket.socket) -> bool:
        """Send as much as the socket takes; whether everything was sent.

        Raises: OSError where the connection is lost.
        """
        try:
            while self._groups:
                # one byte with each group but the last, which takes the rest: a message has more bytes than groups
                data = self._data[:1] if len(self._groups) > 1 else self._data
                self._data = self._data[socket.send_fds(connection, [data], self._groups[0]) :]
                self._groups.pop(0)
            while self._data:
                self._data = self._data[connection.send(self._data) :]
        except BlockingIOError:
            return False
        return True


def read_some(connection: socket.socket) -> tuple[bytes, list[int]]:
    """What a socket has, with the descriptors; no bytes where the connection is closed.

    The descriptors are not inherited by programs that are executed.

    Raises: BlockingIOError where there is nothing yet; OSError where the connection is lost.
    """
    size = array.array("i").itemsize
    data, ancillary, _, _ = connection.recvmsg(
        _CHUNK, socket.CMSG_SPACE(MOST_DESCRIPTORS * size), socket.MSG_CMSG_CLOEXEC
    )
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % size])
    return data, list(found)

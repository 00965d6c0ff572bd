"""The service manager's side: a datagram socket that receives the notifications of a service."""

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from support.limits import limit

TIMEOUT = limit(20.0)


class Notifications:
    """The notifications, message by message, and their senders."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.senders: set[int] = set()

    def next(self, within: float = TIMEOUT) -> dict[str, str]:
        """The next message. Raises: AssertionError where none comes."""
        readable, _, _ = select.select([self._listener], [], [], within)
        assert readable, f"no notification within {within:g} s"
        data, more, _, _ = self._listener.recvmsg(65536, socket.CMSG_SPACE(12))
        self.senders |= {struct.unpack("3i", raw)[0] for _, kind, raw in more if kind == socket.SCM_CREDENTIALS}
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    def until(self, name: str, value: str = "", within: float = TIMEOUT) -> dict[str, str]:
        """The next message that has this."""
        deadline = time.monotonic() + within
        while True:
            message = self.next(max(deadline - time.monotonic(), 0.0))
            if name in message and message[name].startswith(value):
                return message

    def waiting(self) -> list[dict[str, str]]:
        """Every message that was received and not read."""
        found = []
        while select.select([self._listener], [], [], 0)[0]:
            found.append(self.next(0))
        return found


@contextmanager
def service_manager(path: str) -> Iterator[Notifications]:
    """One that listens on a path, or on an abstract name (@...)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(f"\0{path[1:]}" if path.startswith("@") else path)
        yield Notifications(listener)

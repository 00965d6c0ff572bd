"""HTTP over a unix socket, synchronous, on nothing but the standard library."""

import http.client
import socket
import time

from moorage.timeouts import DEFAULT

__all__ = ("UnixHttpConnection",)

_CONNECT_TIMEOUT = DEFAULT.engine_connect
_CONNECT_AGAIN = 0.02


class UnixHttpConnection(http.client.HTTPConnection):
    """A connection to an engine; connecting waits for a moment where its queue is full."""

    def __init__(self, path: str, within: float | None) -> None:
        """``within``: seconds that one step may take; None for no bound but on connecting."""
        super().__init__("moorage")
        self._path = path
        self._within = within

    def connect(self) -> None:
        """Connect. Raises: OSError."""
        until = time.monotonic() + (self._within or _CONNECT_TIMEOUT)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._within or _CONNECT_TIMEOUT)
        while True:
            try:
                self.sock.connect(self._path)
                break
            except BlockingIOError:  # the engine has more clients waiting than fit in its queue just now
                if time.monotonic() > until:
                    raise
                time.sleep(_CONNECT_AGAIN)
        self.sock.settimeout(self._within)

"""HTTP over a unix socket or ssh, synchronous, on nothing but the standard library."""

import http.client
import socket
import time
from typing import TYPE_CHECKING

from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    import subprocess

    from moorage.client.ssh_host import SshHost

__all__ = ("SshHttpConnection", "UnixHttpConnection")

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


class SshHttpConnection(http.client.HTTPConnection):
    """A connection through ``ssh``, which reports its own failures on standard error."""

    def __init__(self, host: "SshHost", within: float | None) -> None:
        """``within``: seconds that one step may take; None for no bound."""
        super().__init__("moorage")
        self._host = host
        self._within = within
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        """Start ssh; whether it reaches the machine shows when the answer is read. Raises: OSError."""
        import subprocess

        self.sock, remote = socket.socketpair()
        with remote:
            # a session of its own: Ctrl-C is for us, and ssh ends with its input
            self._process = subprocess.Popen(
                self._host.command(),
                stdin=remote.fileno(),
                stdout=remote.fileno(),
                start_new_session=_has_no_questions(),
            )
        self.sock.settimeout(self._within)

    @property
    def status(self) -> int | None:
        """The exit status of ssh, if it has exited: 255 where it could not connect."""
        import subprocess

        if self._process is None:
            return None
        try:
            return self._process.wait(_CONNECT_TIMEOUT)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Close the connection; ssh exits by itself. May be repeated."""
        super().close()
        if self._process is not None:
            self._process.poll()


def _has_no_questions() -> bool:
    """Whether no person can answer ssh: without a terminal it need not be in our session."""
    import sys

    return sys.stdin is None or not sys.stdin.isatty()

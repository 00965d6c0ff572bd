"""sd_notify client: readiness, status and watchdog messages; no-op without systemd.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import os
import socket
from collections.abc import MutableMapping

import anyio

__all__ = ("ServiceManager",)


class ServiceManager:
    """The service manager that started this process, if one did; without one, nothing is sent."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Remove the variables of this protocol from the environment: no child may send messages for this process."""
        path = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        self._path = path if path.startswith(("/", "@")) else ""
        is_watched = bool(self._path) and pid in ("", str(os.getpid())) and microseconds.isdecimal()
        self.beat = int(microseconds) / 2_000_000 if is_watched else 0.0
        """Seconds from one WATCHDOG=1 to the next, half of what is allowed; 0 without a watchdog."""

    @property
    def is_present(self) -> bool:
        """Whether a service manager expects messages."""
        return bool(self._path)

    async def notify(self, within: float, **fields: object) -> bool:
        """Send NAME=VALUE lines as one datagram, waiting for room until ``within`` seconds. Whether it was sent."""
        if not self._path:
            return False
        lines = (f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
        try:
            with anyio.move_on_after(within):
                # Connected each time: a manager that was restarted listens on another socket of the same name.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                    connection.setblocking(False)
                    connection.connect(f"\0{self._path[1:]}" if self._path.startswith("@") else self._path)
                    await _send(connection, "\n".join(lines).encode())
                    return True
        except OSError:
            pass  # it is being restarted, and stores what it received before
        return False


async def _send(connection: socket.socket, message: bytes) -> None:
    while True:
        try:
            connection.send(message)
            return
        except BlockingIOError:  # connected, it is writable when the receiver has room
            await anyio.wait_writable(connection)

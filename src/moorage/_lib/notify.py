"""Tells the service manager how we are; does nothing where there is none.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import os
import socket
from collections.abc import MutableMapping

import anyio

__all__ = ("ServiceManager",)


class ServiceManager:
    """Whoever started us as a service. All of it does nothing where nobody did."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes what is meant for this process out of the environment: our children must not speak for us."""
        path = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        self._path = path if path.startswith(("/", "@")) else ""
        is_watched = bool(self._path) and pid in ("", str(os.getpid())) and microseconds.isdecimal()
        self.beat = int(microseconds) / 2_000_000 if is_watched else 0.0
        """Seconds from one WATCHDOG=1 to the next, half of what is allowed; 0 where nobody watches."""

    @property
    def is_there(self) -> bool:
        """Whether somebody wants to be told."""
        return bool(self._path)

    async def tell(self, within: float, **fields: object) -> bool:
        """Send NAME=VALUE lines as one datagram, waiting for room until ``within`` seconds. Whether it was sent."""
        if not self._path:
            return False
        lines = (f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
        try:
            with anyio.move_on_after(within):
                # Connected each time: a manager that was started anew listens on another socket of the same name.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                    connection.setblocking(False)
                    connection.connect(f"\0{self._path[1:]}" if self._path.startswith("@") else self._path)
                    await _send(connection, "\n".join(lines).encode())
                    return True
        except OSError:
            pass  # it is just being started anew, and remembers what it was told before
        return False


async def _send(connection: socket.socket, message: bytes) -> None:
    while True:
        try:
            connection.send(message)
            return
        except BlockingIOError:  # connected, it is writable when the receiver has room
            await anyio.wait_writable(connection)

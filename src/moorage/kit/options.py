"""Where a plugin listens, and how long it waits."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

__all__ = ("SOCKETS", "Limits", "remove_socket", "socket_path")

SOCKETS = Path("/run/docker/plugins")
"""Where an engine looks for the socket that ``interface.socket`` of config.json names."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; times in seconds."""

    idle: float = 300.0
    """A connection without a call is closed after it."""
    receive: float = 60.0
    """Within it a whole request has to arrive, and an answer to be taken."""
    call: float | None = None
    """How long an ``async def`` method may run; a thread cannot be stopped."""
    stop: float = 8.0
    """How long calls may run after SIGTERM; engines send SIGKILL after 10."""
    body_bytes: int = 16 << 20
    """Of a request. dockerd sends an authorization driver bodies of up to 4 MiB, in base64."""
    threads: int = 64
    """Calls that run at the same time; others wait."""
    listen: int = 1024
    """Connections that wait to be accepted."""


def socket_path(name: str) -> Path:
    """The socket of a plugin: a name is one in ``SOCKETS``; the environment variable PLUGIN_SOCKET replaces it."""
    return Path(os.environ.get("PLUGIN_SOCKET") or SOCKETS / name)


def remove_socket(path: Path) -> None:
    """Remove a socket, for example of a killed plugin; any other file stays, and bind(2) then refuses."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass

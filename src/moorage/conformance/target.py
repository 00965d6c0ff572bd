"""What is tested: a plugin of an engine, which can be killed and stopped, or just a socket."""

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from moorage import errors
from moorage.client import MoorageClient

__all__ = ("EngineTarget", "SocketTarget", "Target")

_PAUSE = 0.02  # seconds between two queries


class Target(Protocol):
    """A plugin that answers on a socket."""

    @property
    def socket(self) -> Path:
        """Its socket, on this machine."""

    @property
    def types(self) -> tuple[str, ...]:
        """The interface types of its config; empty where there is no config."""

    @property
    def propagated_mount(self) -> str:
        """Of its config."""

    @property
    def can_restart(self) -> bool:
        """Whether ``kill`` and ``stop`` are possible."""

    def host_path(self, inside: str) -> Path:
        """The path on this machine of one in the plugin."""

    def kill(self) -> None:
        """kill -9, and wait until it answers again. Raises: MoorageError if it does not."""

    def stop(self) -> float:
        """SIGTERM, wait for the exit, and start it again; the seconds until the exit. Raises: MoorageError."""


class EngineTarget:
    """A plugin that is installed in an engine, enabled."""

    can_restart = True

    def __init__(self, client: MoorageClient, name: str, seconds: float) -> None:
        """``seconds``: how long a restart may take.

        Raises:
            errors.Conflict: it is not enabled
            errors.MoorageError: what the engine answers
        """
        self._client, self._name, self._seconds = client, name, seconds
        details = client.inspect(name)
        if not details.enabled:
            raise errors.Conflict(f"cannot test {name}: it is disabled; enable it first")
        self.types = tuple(details.config.interface.types)
        self.propagated_mount = details.config.propagated_mount
        self._wait_until_ready()
        self.socket = Path(client.inspect(name).moorage.socket)

    def host_path(self, inside: str) -> Path:
        """The path on this machine of one in the plugin."""
        return Path(self._client.host_path(self._name, inside))

    def kill(self) -> None:
        """kill -9, and wait until the engine has restarted it. Raises: errors.Unavailable if it does not answer."""
        before = self._client.inspect(self._name).moorage
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)

        def is_restarted() -> bool:
            now = self._client.inspect(self._name).moorage
            return now.state == "ready" and now.pid not in (None, before.pid)

        self._wait(is_restarted, "is not running again after kill -9")

    def stop(self) -> float:
        """Disable it, which sends SIGTERM, and enable it again. Raises: errors.MoorageError."""
        started_at = time.monotonic()
        self._client.disable(self._name, force=True)
        seconds = time.monotonic() - started_at
        self._client.enable(self._name)
        self._wait_until_ready()
        return seconds

    def _wait_until_ready(self) -> None:
        self._wait(lambda: self._client.inspect(self._name).moorage.state == "ready", "is not ready")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._seconds
        while not condition():
            if time.monotonic() > deadline:
                raise errors.Unavailable(f"the plugin {what} within {self._seconds:g} s")
            time.sleep(_PAUSE)


class SocketTarget:
    """A socket of this machine, whatever listens there."""

    can_restart = False
    types: tuple[str, ...] = ()
    propagated_mount = ""

    def __init__(self, path: Path) -> None:
        """Raises: errors.NotFound without a socket at the path."""
        if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
            raise errors.NotFound(f"cannot test {path}: it is not a socket")
        self.socket = path

    def host_path(self, inside: str) -> Path:
        """The path itself: it is a process of this machine."""
        return Path(inside)

    def kill(self) -> None:
        """Not possible. Raises: errors.Unsupported."""
        raise errors.Unsupported("cannot kill a plugin of which only the socket is known")

    def stop(self) -> float:
        """Not possible. Raises: errors.Unsupported."""
        raise errors.Unsupported("cannot stop a plugin of which only the socket is known")

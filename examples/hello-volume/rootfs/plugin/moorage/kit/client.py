"""Calls a plugin, and runs one for a test: for an author's own tests, without an engine."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moorage.kit.failures import CallFailed

__all__ = ("RunningPlugin", "call")

_READ_BYTES = 65536


def call(path: Path, method: str, request: object = None, seconds: float = 30.0) -> dict[str, Any]:
    """Call a method, as in ``VolumeDriver.List``, and return its answer.

    Raises:
        failures.CallFailed: the answer is an error
        OSError: nothing listens at the path, or it does not answer
    """
    body = b"" if request is None else json.dumps(request).encode()
    head = f"POST /{method} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(seconds)
        peer.connect(os.fspath(path))
        peer.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: peer.recv(_READ_BYTES), b""))
    headers, _, data = answer.partition(b"\r\n\r\n")
    status = headers.split(b" ", 2)[1:2]
    try:
        document = json.loads(data)
    except ValueError as error:
        raise OSError(f"{method} is answered with {answer[:200]!r}") from error
    reason = document.get("Err") or document.get("Error")
    if status != [b"200"] or reason:
        raise CallFailed(reason or f"{method} is answered with {headers[:80]!r}")
    return dict(document)


class RunningPlugin:
    """A plugin's program as a process of this machine, with its socket in a directory of the test.

    Use it with ``with``.
    """

    def __init__(self, command: Sequence[str], directory: Path, **environment: str) -> None:
        """``command`` starts the program, with ``environment``; ``directory`` is for its socket."""
        self.socket = directory / "s"
        self._command = list(command)
        self._environment = {**os.environ, **environment, "PLUGIN_SOCKET": str(self.socket)}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RunningPlugin":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def start(self, seconds: float = 30.0) -> None:
        """Start it, and return when it accepts.

        Raises:
            OSError: it exits or does not accept in time
        """
        self.process = subprocess.Popen(self._command, env=self._environment)
        deadline = time.monotonic() + seconds
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"{self._command} does not accept connections")
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def call(self, method: str, request: object = None) -> dict[str, Any]:
        """As the function ``call``."""
        return call(self.socket, method, request)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as peer:
            return peer.connect_ex(os.fspath(self.socket)) == 0

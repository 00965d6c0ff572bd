"""Calls of a plugin over its own socket, byte for byte as dockerd and podman make them, or as they must not matter."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from msgspec import Struct

__all__ = ("ACCEPT", "PluginConnection", "PluginReply", "exchange")

ACCEPT = {"Host": "plugin.moby.localhost", "Accept": "application/vnd.docker.plugins.v1.2+json"}
"""The headers that dockerd sends. It sends no Content-Type, and no body where a call has no arguments."""


class PluginReply(Struct, frozen=True):
    """The answer to one call."""

    status: int
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON; None where it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def error(self) -> str:
        """The error that it reports, in Err or, as IPAM drivers do, in Error; empty for none."""
        document = self.document
        found = (document.get("Err") or document.get("Error")) if isinstance(document, dict) else ""
        return str(found or "")

    @property
    def is_success(self) -> bool:
        """Whether dockerd and podman take it for a success."""
        return self.status == 200 and not self.error

    def __str__(self) -> str:
        text = self.body.decode(errors="backslashreplace").strip()
        return f"status {self.status}, {text[:200] or 'no body'}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("plugin", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class PluginConnection:
    """One connection, for several calls."""

    def __init__(self, path: Path, seconds: float) -> None:
        """``seconds`` bounds each wait for the plugin."""
        self._connection = _UnixConnection(path, seconds)

    def call(self, path: str, body: bytes | None, headers: dict[str, str] | None = None) -> PluginReply:
        """One call; without ``body`` there is none, and the length is 0.

        Raises:
            OSError: the plugin does not answer in time, or closes the connection
            http.client.HTTPException: the answer is not HTTP
        """
        self._connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**ACCEPT, **(headers or {})}.items():
            self._connection.putheader(name, value)
        if "Transfer-Encoding" not in (headers or {}):
            self._connection.putheader("Content-Length", str(len(body or b"")))
        self._connection.endheaders(body)
        answer = self._connection.getresponse()
        return PluginReply(answer.status, answer.read())

    def close(self) -> None:
        """Close it."""
        self._connection.close()


def exchange(
    path: Path, method: str, body: bytes | None, seconds: float, headers: dict[str, str] | None = None
) -> PluginReply:
    """One call over a connection of its own. Raises: as ``PluginConnection.call``."""
    connection = PluginConnection(path, seconds)
    try:
        return connection.call(f"/{method}", body, headers)
    finally:
        connection.close()

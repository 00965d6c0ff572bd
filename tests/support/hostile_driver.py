"""Plugins that answer the proxy with any bytes, and consumers that send it any bytes, for tests of attacks."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moorage.proxy.protocol import PathRule, PluginTable, ProxyState, PublishOptions
from support.limits import limit
from support.proxy_process import ProxyProcess

__all__ = ("Answering", "HostileDriver", "answer", "attacked", "exchange", "post")

_WITHIN = limit(20.0)

Answering = Callable[[socket.socket, str, bytes], None]
"""Called with a connection, the target and the body of a request: sends whatever it likes, then it is closed."""


class HostileDriver:
    """The server of a plugin, in threads of the test; the directory ``inside`` is what it propagates.

    Paths inside the plugin are those of the host, as its process counts this one.
    """

    def __init__(self, directory: Path, name: str, answering: Answering) -> None:
        self.directory, self.name, self._answering = directory / name, name, answering
        self.inside = self.directory / "inside"
        self.inside.mkdir(parents=True)
        self.requests: list[bytes] = []
        """The bytes of each request."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / "plugin.sock"))
        self._listener.listen(1024)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                if not (piece := connection.recv(65536)):
                    return
                data += piece
            head, _, body = data.partition(b"\r\n\r\n")
            lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
            length = next((int(value) for key, _, value in lines if key == b"content-length"), 0)
            while len(body) < length:
                if not (piece := connection.recv(65536)):
                    break
                body += piece
            self.requests.append(head + b"\r\n\r\n" + body)
            self._answering(connection, head.split(b" ")[1].decode("latin-1"), body)

    def table(self, published: Path, state: ProxyState = "ready", **options: Any) -> PluginTable:
        return PluginTable(
            id=(self.name * 64)[:64],
            name=f"{self.name}:latest",
            types=("docker.volumedriver/1.0",),
            state=state,
            run=1,
            runtime=str(self.directory),
            socket="plugin.sock",
            published=(str(published / f"{self.name}.sock"),),
            publish_directory=str(published),
            pid=os.getpid() if state == "ready" else 0,
            paths=(
                PathRule(str(self.inside), str(self.inside), "propagated"),
                PathRule("/", str(self.directory / "root"), "root"),
            ),
            options=PublishOptions(**options),
        )


def answer(connection: socket.socket, document: Any, status: int = 200) -> None:
    """Answer with a document, or with these bytes as the body."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    connection.sendall(f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@contextmanager
def attacked(
    directory: Path, answering: Answering, **options: Any
) -> Iterator[tuple[ProxyProcess, HostileDriver, str, str]]:
    """The real proxy with a hostile plugin and a good one, ready; the published sockets of both."""
    hostile = HostileDriver(directory, "bad", answering)
    good = HostileDriver(directory, "good", lambda connection, *_: answer(connection, {"Volumes": []}))
    try:
        with ProxyProcess(directory) as proxy:
            proxy.send(hostile.table(proxy.published, **options), good.table(proxy.published))
            yield proxy, hostile, str(proxy.published / "bad.sock"), str(proxy.published / "good.sock")
            assert "Traceback" not in proxy.log(), proxy.log()
            assert "internal error" not in proxy.log(), proxy.log()
    finally:
        hostile.close()
        good.close()


def exchange(path: str, request: bytes, *, within: float = _WITHIN) -> bytes:
    """The bytes of the answer until the proxy closes the connection, or says nothing for a while."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(within)
        client.connect(path)
        with suppress(OSError):
            client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        answered = b""
        with suppress(ConnectionResetError):
            while piece := client.recv(65536):
                answered += piece
        return answered


def post(target: str, body: bytes = b"{}", *headers: str) -> bytes:
    """A complete request."""
    lines = [f"POST {target} HTTP/1.1", "Host: plugin", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

"""A registry that stops in the middle of a layer, until a test says that it may continue."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.engines import config
from support.limits import limit
from support.packages import Made, layer, make

__all__ = ("StallingRegistry", "stalling_registry")


class StallingRegistry(ThreadingHTTPServer):
    """Serves one package, and stops in the middle of its last layer until ``may_go_on``."""

    daemon_threads = True

    def __init__(self, made: Made) -> None:
        self.made = made
        self.may_go_on, self.stalls, self.left = threading.Event(), threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def remote(self) -> str:
        return f"127.0.0.1:{self.server_port}/t/plugin"


class _Handler(BaseHTTPRequestHandler):
    server: StallingRegistry  # type: ignore[mutable-override]  # only this one makes such handlers
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        made, path = self.server.made, self.path.partition("?")[0]
        found = {f"/v2/t/plugin/blobs/{each.digest}": each for each in made.blobs}
        if path in found:
            self._send(found[path].data, "application/octet-stream", stalls=found[path] is made.blobs[-1])
        elif path.startswith("/v2/t/plugin/manifests/"):
            self._send(made.manifest, made.media_type)
        else:
            self._send(b"{}", "application/json")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _send(self, data: bytes, media_type: str, *, stalls: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not stalls or self.server.may_go_on.is_set():
            self.wfile.write(data)
            return
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.server.stalls.set()
        self.connection.settimeout(limit(60))
        if self.connection.recv(1) == b"":  # the engine closes its connection
            self.server.left.set()
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the test says what it expects."""


@contextmanager
def stalling_registry() -> Iterator[StallingRegistry]:
    """One that serves an actor without its program."""
    registry = StallingRegistry(make(config(), layer({"big": b"x" * 200_000})))
    thread = threading.Thread(target=registry.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.shutdown()
        registry.server_close()
        thread.join()

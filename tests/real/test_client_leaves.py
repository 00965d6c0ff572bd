"""A client that disconnects while a package is installed or upgraded: nothing of it remains, as the pages say."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.contents import contents_of
from support.engines import EngineProcess, Refused, config, engine
from support.foreground import wait_until
from support.limits import limit
from support.packages import Made, layer, make

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

DOCS = Path(__file__).parents[2] / "docs"


class Registry(ThreadingHTTPServer):
    """Serves one package, and stops in the middle of its last layer until ``may_go_on``."""

    daemon_threads = True

    def __init__(self, made: Made) -> None:
        self.made = made
        self.may_go_on, self.stalls, self.left = threading.Event(), threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def remote(self) -> str:
        return f"127.0.0.1:{self.server_port}/t/plugin"


class Handler(BaseHTTPRequestHandler):
    server: Registry  # type: ignore[mutable-override]  # only this one makes such handlers
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
def serving() -> Iterator[Registry]:
    registry = Registry(make(config(), layer({"big": b"x" * 200_000})))
    thread = threading.Thread(target=registry.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.shutdown()
        registry.server_close()
        thread.join()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("first")  # which chooses the snapshotter, by a trial
        made.remove("first")
        yield made


def leave_while_it_downloads(house: EngineProcess, registry: Registry, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.socket))
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
        client.sendall(head.encode())
        assert registry.stalls.wait(limit(60))
    assert registry.left.wait(limit(60)), "the engine stops the download"


def is_installed(house: EngineProcess, registry: Registry) -> bool:
    try:
        house.install(registry.remote, "p")
    except Refused as refused:
        if refused.status != 409:
            raise
        return False
    return True


def test_d14_a_client_that_disconnects_during_an_install_leaves_nothing(house: EngineProcess) -> None:
    with serving() as registry:
        before = contents_of(house)
        path = f"/plugins/pull?remote={registry.remote}&name=p"
        leave_while_it_downloads(house, registry, path)
        wait_until(lambda: contents_of(house) == before, "nothing of it is stored")
        assert house.plugins() == []
        registry.may_go_on.set()
        wait_until(lambda: is_installed(house, registry), "the name is free again")
        assert [each["Name"] for each in house.plugins()] == ["p:latest"]
        house.remove("p")


def test_d14_a_client_that_disconnects_during_an_upgrade_leaves_the_version_of_before(house: EngineProcess) -> None:
    house.create("q")
    digest = house.more("q")["Digest"]
    with serving() as registry:
        before = contents_of(house)
        leave_while_it_downloads(house, registry, f"/plugins/q/upgrade?remote={registry.remote}")
        wait_until(lambda: contents_of(house) == before, "nothing of it is stored")
        assert house.more("q")["Digest"] == digest
        house.enable("q")
        house.disable("q")
        registry.may_go_on.set()
        house.upgrade("q", registry.remote)
        assert house.more("q")["Digest"] != digest
    house.remove("q")


def test_d14_both_pages_say_what_becomes_of_an_install_whose_client_disconnects() -> None:
    guide = " ".join((DOCS / "guide/packages.md").read_text().split())
    reference = " ".join((DOCS / "reference/api.md").read_text().split())
    assert "is cancelled (Ctrl-C, or a client that disconnects)" in guide
    assert "leaves nothing behind" in guide
    for verb in ("create", "pull", "upgrade", "push", "save", "load"):
        assert f"`{verb}`" in reference.partition("**Waiting.**")[2].partition("**Streams.**")[0], verb

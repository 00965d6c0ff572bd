"""Clients of HTTP/1.0: answers that come in pieces end with the connection."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from moorage.api.server import serve_api
from support.fake_backend import FakeBackend
from support.limits import limit

pytestmark = pytest.mark.anyio


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    async with serve_api(FakeBackend(), tmp_path / "m.sock", None):
        yield tmp_path / "m.sock"


def send(path: Path, request: bytes) -> bytes:
    """The whole answer, until the server closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit(20))
        client.connect(str(path))
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("target", ["/events?since=1&until=2", "/moorage/v1/plugins/a/logs"])
async def test_fuzz_a_client_of_http_1_0_gets_answers_in_pieces_too(path: Path, target: str) -> None:
    with anyio.fail_after(limit(20)):
        answer = await to_thread.run_sync(send, path, f"GET {target} HTTP/1.0\r\nHost: m\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    if target.startswith("/events"):
        assert head.startswith(b"HTTP/1.0 200 OK")
        assert b"chunked" not in head.lower()
        assert body == b""
    else:
        assert head.startswith(b"HTTP/1.0 404")

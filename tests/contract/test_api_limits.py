"""Limits of the API's listeners, seen by a client: each has an error that is JSON and names it."""

import json
import socket
import threading
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage import errors
from moorage.api import request as request_module
from moorage.api.http.connection import HEAD_BYTES, HEADER_BYTES, HEADERS, REQUEST_LINE_BYTES
from moorage.api.http.listener import ListenerLimits, serve_http
from moorage.api.server import serve_api
from moorage.client import MoorageClient
from support.api_client import CONFIG, ApiClient
from support.conditions import eventually
from support.fake_backend import FakeBackend
from support.limits import limit

pytestmark = pytest.mark.anyio


def exchange(path: Path, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; status, headers and body of the answer, whose connection the server closes if it must."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit(20))
        client.connect(str(path))
        try:
            for piece in pieces:
                client.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent
        answer = HTTPResponse(client)
        answer.begin()
        return answer.status, dict(answer.headers), answer.read()


async def raw(path: Path, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    return await anyio.to_thread.run_sync(exchange, path, *pieces)


HOST = b"Host: x\r\n"
GET = b"GET /_ping HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize("size", [9_000, 60_000])
async def test_case_203_a_login_token_of_any_usual_size_is_accepted(api: ApiClient, size: int) -> None:
    token = "eyJ" + "a" * size
    answer = await api.request("GET", "/plugins/privileges?remote=vieux/sshfs", X_Registry_Auth=token)
    assert answer.status in (400, 404)  # what is in it is no concern here
    assert answer.headers["Content-Type"] == "application/json"
    assert "header" not in answer.message.lower() or "X-Registry-Auth" in answer.message


@pytest.mark.parametrize(
    ("pieces", "status", "text"),
    [
        ([GET, b"X-Registry-Auth: ", b"a" * (HEADER_BYTES + 1), b"\r\n\r\n"], 431, f"more than {HEADER_BYTES} bytes"),
        ([GET, b"X-Registry-Auth: ", b"a" * 5_000_000, b"\r\n\r\n"], 431, "bytes"),
        ([GET, *[b"X-%d: y\r\n" % each for each in range(HEADERS + 1)], b"\r\n"], 431, f"more than {HEADERS} headers"),
        ([GET, *[b"X-%d: %b\r\n" % (each, b"y" * 60_000) for each in range(40)], b"\r\n"], 431, "bytes"),
        ([b"GET /", b"p" * (REQUEST_LINE_BYTES + 1), b" HTTP/1.1\r\n\r\n"], 414, f"than {REQUEST_LINE_BYTES} bytes"),
        ([b"GET /plugins?filters=", b"p" * 3_000_000, b" HTTP/1.1\r\n\r\n"], 414, "its URL has more than"),
        ([b"GET /_ping HTTP/1.1\r\n\r\n"], 400, "Missing 'Host' header"),
        ([b"nonsense\r\n\r\n"], 400, "not valid HTTP"),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 4], 400, "not valid HTTP"),
        ([GET + b"X: a\x00b\r\n\r\n"], 400, "cannot read the request"),
        ([b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"], 404, "page not found"),
        ([b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n"], 404, "page not found"),
        ([GET + b"Expect: nonsense\r\n\r\n"], 417, "only 100-continue is known"),
        (
            [b"POST /plugins/p/set HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
             b"Content-Length: 5000000\r\n\r\n", b" " * 5_000_000],
            400, "its body has more than 4194304 bytes",
        ),
        (
            [b"POST /plugins/p/set HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
             b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"],
            400, "cannot read the request",
        ),
    ],
    ids=str,
)  # fmt: skip
async def test_case_203_what_is_beyond_a_limit_is_refused_in_json_that_names_it(
    api: ApiClient, pieces: list[bytes], status: int, text: str
) -> None:
    found, headers, body = await raw(api.socket, *pieces)
    assert found == status, body
    assert headers["Content-Type"] == "application/json"
    assert headers["Server"].startswith("Docker/")
    message = json.loads(body)["message"]
    assert text in message
    assert "aaaa" not in message  # it may be a password
    assert (await api.request("GET", "/_ping")).body == b"OK"


async def test_case_203_headers_of_a_quarter_mib_in_all_are_read(api: ApiClient) -> None:
    headers = [b"X-%d: %b\r\n" % (each, b"y" * (HEADER_BYTES - 100)) for each in range(3)]
    status, _, body = await raw(api.socket, GET, *headers, b"\r\n")
    assert (status, body) == (200, b"OK")
    assert HEAD_BYTES > 3 * HEADER_BYTES


async def test_s12_a_request_that_comes_byte_by_byte_is_cut_off_and_streams_are_not(
    backend: FakeBackend, tmp_path: Path
) -> None:
    path = tmp_path / "m.sock"
    limits = ListenerLimits(8, head=1.0, idle=5.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        async with serve_http(listener, _stream_or_answer, limits, {}, last_answers=1.0):
            with anyio.fail_after(limit(20)):
                stream = await anyio.connect_unix(path)
                await stream.send(b"GET /stream HTTP/1.0\r\n\r\n")
                slow = await anyio.connect_unix(path)
                idle = await anyio.connect_unix(path)
                await slow.send(b"GET /_ping HTTP/1.1\r\nX-Slow: ")
                received = b""
                while not received.endswith(b"}\n"):
                    await slow.send(b"y")
                    with anyio.move_on_after(0.1):
                        received += await slow.receive()
                assert received.startswith(b"HTTP/1.1 408 ")
                assert json.loads(received.partition(b"\r\n\r\n")[2])["message"].endswith("within 1 s")
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await idle.receive()
                assert b"200 OK" in await stream.receive()
                for each in (stream, slow, idle):
                    await each.aclose()


async def test_s12_idle_connections_are_closed_before_the_ones_in_use(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        async with serve_http(listener, _stream_or_answer, ListenerLimits(4), {}, last_answers=1.0):
            with anyio.fail_after(limit(50)):
                stream = await anyio.connect_unix(path)
                await stream.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200 OK" in await stream.receive()
                idle = [await anyio.connect_unix(path) for _ in range(20)]
                status, _, _ = await raw(path, GET + b"\r\n")
                assert status == 200
                for each in idle:
                    await each.aclose()
                others = [await anyio.connect_unix(path) for _ in range(3)]
                for each in others:
                    await each.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert b"200 OK" in await each.receive()
                status, _, body = await raw(path, GET + b"\r\n")
                assert (status, json.loads(body)["message"]) == (
                    503,
                    "cannot serve another client: all 4 connections are in use",
                )
                for each in (stream, *others):
                    await each.aclose()


async def test_s12_a_server_that_is_cancelled_ends(backend: FakeBackend, tmp_path: Path) -> None:
    with anyio.fail_after(limit(10)):
        async with anyio.create_task_group() as tasks:

            async def serve() -> None:
                async with serve_api(backend, tmp_path / "m.sock", None):
                    tasks.cancel_scope.cancel()
                    await anyio.sleep_forever()

            tasks.start_soon(serve)
    assert not (tmp_path / "m.sock").exists()


async def _stream_or_answer(http: Any) -> Any:
    from aiohttp import web

    if http.path != "/stream":
        return web.Response(text="here")
    response = web.StreamResponse()
    await response.prepare(http)
    with anyio.CancelScope():
        while http.transport is not None and not http.transport.is_closing():
            await response.write(b".")
            await anyio.sleep(0.2)
    return response


async def test_s12_a_body_that_does_not_come_is_refused(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "_BODY_SECONDS", 0.3)
    monkeypatch.setattr(request_module, "_STALL", 0.3)
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n["
    for path, text in ((b"/plugins/p/set", "body did not come within 0.3 s"), (b"/plugins/create?name=x", "for 0.3 s")):
        status, _, body = await raw(api.socket, head % path)
        assert status == 408
        assert text in json.loads(body)["message"]


async def test_case_235_many_connections_at_the_same_moment_are_all_served(api: ApiClient) -> None:
    failures: list[Exception] = []
    gate = threading.Barrier(100)

    def send_request() -> None:
        client = MoorageClient(f"unix://{api.socket}")
        gate.wait()
        try:
            for _ in range(4):
                client.version()
        except errors.MoorageError as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        limiter = anyio.CapacityLimiter(100)
        for _ in range(100):
            tasks.start_soon(lambda: anyio.to_thread.run_sync(send_request, limiter=limiter))
    assert failures == []


async def test_case_235_the_client_waits_for_a_full_queue(tmp_path: Path) -> None:
    """A listener that has not accepted anything yet, and whose queue is full: EAGAIN until there is room."""
    path = tmp_path / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        first = socket.socket(socket.AF_UNIX)
        first.connect(str(path))
        found: list[Any] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: anyio.to_thread.run_sync(
                    lambda: found.append(MoorageClient(f"unix://{path}").host_path("p", "/x"))
                )
            )
            await anyio.sleep(0.2)
            assert found == []

            def serve() -> None:
                listener.accept()[0].close()
                client, _ = listener.accept()
                client.recv(10_000)
                client.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"Path": "/x"}')
                client.close()

            await anyio.to_thread.run_sync(serve)
        first.close()
    assert found == ["/x"]


@pytest.mark.parametrize("path", ["/events", "/moorage/v1/plugins/p/logs?follow=1", "/moorage/v1/plugins/p/logs"])
async def test_case_236_a_client_of_http_1_0_gets_streams_without_chunks(
    api: ApiClient, backend: FakeBackend, path: str
) -> None:
    await api.create("p", CONFIG)
    backend.write("p", "a line")
    client = await anyio.connect_unix(api.socket)
    with anyio.fail_after(limit(10)):
        await client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += await client.receive()
        assert b" 200 OK" in received
        assert b"chunked" not in received.lower()
        if path == "/events":
            await eventually(lambda: backend.event_log.listeners == 1)
            await api.request("POST", "/plugins/p/enable")
        while b"}\n" not in received:
            received += await client.receive()
        json.loads(received.partition(b"\r\n\r\n")[2].splitlines()[0])
        await client.aclose()


async def test_case_236_expect_is_answered_and_http_1_0_bodies_are_read(api: ApiClient) -> None:
    await api.create("p", CONFIG)
    body = b'["DEBUG=1"]'
    head = b"POST /plugins/p/set HTTP/1.%d\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    status, _, _ = await raw(api.socket, head % (0, len(body)) + b"\r\n" + body)
    assert status == 204
    client = await anyio.connect_unix(api.socket)
    with anyio.fail_after(limit(10)):
        await client.send(head % (1, len(body)) + b"Expect: 100-continue\r\n\r\n")
        assert await client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert b"204 No Content" in await client.receive()
    await client.aclose()

"""Hostile consumers at the published sockets: requests that are several, that never end, or that come in thousands."""

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest

from support.hostile_driver import answer, attacked, exchange, post
from support.limits import limit
from support.proxy_process import call, wait_until

pytestmark = pytest.mark.real

MIB = 1024 * 1024
NAME = b'{"Name": "v", "ID": "1"}'


def answering(connection: socket.socket, target: str, _: bytes) -> None:
    """As a Go program: it finds the call by the path of the target, decoded."""
    path = unquote(target.partition("?")[0]).removeprefix("http://plugin")
    answer(connection, {"Mountpoint": "/etc"} if path.endswith("/VolumeDriver.Mount") else {"Implements": ["x"]})


@pytest.mark.parametrize(
    "target",
    [
        "/VolumeDriver%2EMount",
        "/%56olumeDriver.Mount",
        "http://plugin/VolumeDriver.Mount",
        "//VolumeDriver.Mount",
        "/./VolumeDriver.Mount",
        "/x/../VolumeDriver.Mount",
        "/VolumeDriver.Mount/",
        "/VolumeDriver.Mount#x",
        "/VolumeDriver.Mount;x",
        "VolumeDriver.Mount",
        "*",
        "/" + "a" * 5000,
        "/Plugin%2EActivate",
        "/Plugin.Activate/",
    ],
)
def test_p05_p07_no_other_spelling_of_a_call_gets_past_the_proxy(tmp_path: Path, target: str) -> None:
    """A Go plugin serves all of these as a Mount; the proxy passed them on as what it does not know."""
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        answered = exchange(path, post(target, NAME))
        assert answered.startswith(b"HTTP/1.1 400 "), answered
        assert b'"Err"' in answered
        assert hostile.requests == []
        assert exchange(path, post("/VolumeDriver.Mount?x=/../y", NAME)).startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("body", [b'{"Name":"v","name":"w","ID":"a"}', b'{"Name":"v","ID":"a","Id":"b"}'])
def test_p05_p11_no_second_spelling_of_a_volume_or_a_mount_gets_past_the_proxy(tmp_path: Path, body: bytes) -> None:
    """A Go plugin takes the last one; the proxy recorded the first."""
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        for call in ("Create", "Mount", "Unmount", "Remove"):
            answered = exchange(path, post(f"/VolumeDriver.{call}", body))
            assert b"its body has the key" in answered, answered
        assert hostile.requests == []


SMUGGLED = post("/VolumeDriver.Remove", NAME)
SMUGGLERS = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: %d\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, %d\r\n\r\n{}",
    "a sign": b"Content-Length: +%d\r\n\r\n{}",
    "a space before the colon": b"Content-Length : %d\r\n\r\n{}",
    "another coding": b"Transfer-Encoding: gzip, chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n",
    "coding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: %d\r\n\r\n0\r\n\r\n",
    "a tab in the coding": b"Transfer-Encoding: \x0bchunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n",
    "a folded length": b"X: y\r\n Content-Length: 2\r\nContent-Length: %d\r\nContent-Length: 2\r\n\r\n{}",
    "a nul": b"X: \0\r\nContent-Length: %d\r\n\r\n{}",
    "a bare carriage return": b"X: y\rContent-Length: %d\r\nContent-Length: 2\r\n\r\n{}",
    "a chunk that lies": b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}%d\r\n0\r\n\r\n",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}%d\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("method", ["VolumeDriver.Get", "NetworkDriver.Join"])
@pytest.mark.parametrize("kind", list(SMUGGLERS))
def test_p06_an_ambiguous_length_smuggles_no_second_call(tmp_path: Path, kind: str, method: str) -> None:
    head = f"POST /{method} HTTP/1.1\r\nHost: p\r\n".encode()
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        exchange(path, head + SMUGGLERS[kind] % len(SMUGGLED) + SMUGGLED)
        assert not any(b"VolumeDriver.Remove" in each for each in hostile.requests), hostile.requests
        assert call(path, "VolumeDriver.Get", Name="v")[0] == 200


@pytest.mark.parametrize("method", ["VolumeDriver.Get", "NetworkDriver.Join"])
def test_p06_with_both_lengths_plugin_and_proxy_read_the_same_body(tmp_path: Path, method: str) -> None:
    head = f"POST /{method} HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n".encode()
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        exchange(path, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(NAME), NAME))
        for each in hostile.requests:
            lines = each.partition(b"\r\n\r\n")[0].split(b"\r\n")
            framing = [line for line in lines if line.startswith((b"content-length", b"transfer-encoding"))]
            assert len(framing) == 1


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI", "post", "P" * 5000, "PO\x7fST"]
)
def test_p06_another_method_reaches_no_plugin(tmp_path: Path, method: str) -> None:
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        answered = exchange(path, post("/VolumeDriver.Remove", NAME).replace(b"POST", method.encode(), 1))
        assert not answered or answered.startswith(b"HTTP/1.1 40")
        assert hostile.requests == []
        assert call(path, "VolumeDriver.Get", Name="v")[0] == 200


def test_p06_calls_that_are_sent_in_advance_are_answered_in_turn_and_not_stored(tmp_path: Path) -> None:
    """They were read as fast as they came, and answered one at a time."""
    count = 60_000
    request = b"POST /Plugin.Activate HTTP/1.1\r\nHost: p\r\nX: " + b"y" * 400 + b"\r\nContent-Length: 0\r\n\r\n"
    with attacked(tmp_path, answering) as (proxy, _, path, good), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit(60))
        client.connect(path)
        before = proxy.status("VmRSS")

        def send() -> None:
            with suppress(OSError):
                for _ in range(count // 100):
                    client.sendall(request * 100)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        answered = 0
        while answered < count // 10:
            answered += client.recv(1 << 20).count(b"Implements")
        began = time.monotonic()
        assert call(good, "VolumeDriver.List")[0] == 200
        assert time.monotonic() - began < limit(2.0)
        assert proxy.status("VmHWM") - before < 8 * 1024
        client.shutdown(socket.SHUT_RDWR)
        sender.join(limit(20))


def test_p06_different_calls_in_one_piece_are_answered_in_their_order(tmp_path: Path) -> None:
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        targets = ("/VolumeDriver.Get", "/NetworkDriver.Join", "/Plugin.Activate", "/VolumeDriver.Path")
        pieces = [post(target, NAME) for target in targets]
        answered = exchange(path, b"".join(pieces))
        assert answered.count(b"HTTP/1.1 200") == 4
        called = [each.split(b" ")[1] for each in hostile.requests]
        assert called == [b"/VolumeDriver.Get", b"/NetworkDriver.Join", b"/VolumeDriver.Path"]


def test_p11_what_consumers_have_recorded_is_bounded(tmp_path: Path) -> None:
    """The mounts and logs of all plugins are one message for the engine, and each change writes those of one."""
    with attacked(tmp_path, answering) as (proxy, hostile, path, _):
        info = "x" * 900_000
        statuses = [call(path, "LogDriver.StartLogging", File=f"/{number}", Info=info)[0] for number in range(8)]
        assert statuses[0] == 200
        assert statuses[-1] == 503
        ledger = proxy.state / "ledger" / f"{hostile.table(proxy.published).id}.json"
        assert ledger.stat().st_size < 6 * MIB
        for number in range(8):
            assert call(path, "LogDriver.StopLogging", File=f"/{number}")[0] == 200
        assert call(path, "LogDriver.StartLogging", File="/again", Info=info)[0] == 200, "there is room again"


@pytest.mark.parametrize(("name", "id"), [("x" * 1025, "1"), ("v", "x" * 1025)])
def test_p11_names_that_are_no_names_are_not_recorded(tmp_path: Path, name: str, id: str) -> None:
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        for method in ("Mount", "Unmount"):
            status, answered = call(path, f"VolumeDriver.{method}", Name=name, ID=id)
            assert status == 400
            assert "more than 1024 characters" in answered["Err"]
        assert hostile.requests == []


@pytest.mark.parametrize("length", [b"Content-Length: 99999999\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
@pytest.mark.parametrize("method", ["VolumeDriver.Mount", "NetworkDriver.Join"])
def test_p06_a_consumer_that_leaves_within_its_body_mounts_nothing(tmp_path: Path, method: str, length: bytes) -> None:
    with attacked(tmp_path, answering) as (proxy, hostile, path, _):
        before = proxy.descriptors()
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(f"POST /{method} HTTP/1.1\r\nHost: p\r\n".encode() + length)
        wait_until(lambda: proxy.descriptors() <= before)
        assert not any(each.startswith(b"POST /VolumeDriver.Mount") for each in hostile.requests)
        assert call(path, "VolumeDriver.Get", Name="v")[0] == 200
        assert not any(each.mounts for each in (proxy.news.plugins if proxy.news else ()))

"""The kit's servers on a socket: threads and asyncio, with callers of every kind."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from moorage.kit import CallFailed, Driver, Limits, RunningPlugin, call
from moorage.kit.driver import DriverCall, Plugin
from moorage.kit.server import PluginServer
from support.engines import UnixConnection
from support.foreground import SOURCE, wait_until
from support.limits import limit

SECONDS = limit(20.0)


@dataclass(frozen=True)
class Wait:
    seconds: float = 0.0


class Echo(Driver):
    kind = "Echo"
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "Wait": DriverCall("wait", Wait, lambda seconds: {"Waited": seconds}),
        "Refuse": DriverCall("refuse"),
        "Break": DriverCall("break_down"),
        "Stream": DriverCall("stream"),
    }

    def wait(self, request: Wait) -> float:
        time.sleep(request.seconds)
        return request.seconds

    def refuse(self) -> None:
        raise CallFailed("not today")

    def break_down(self) -> None:
        raise RuntimeError("unexpected")

    def stream(self) -> Iterator[bytes]:
        yield from (b"one", b"", b"two")


class AsyncEcho(Echo):
    async def wait(self, request: Wait) -> float:  # type: ignore[override]  # Echo's is not an Eventually
        await asyncio.sleep(request.seconds)
        return request.seconds


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(params=[Echo, AsyncEcho], ids=["threads", "asyncio"])
def path(request: pytest.FixtureRequest, short: Path) -> Iterator[Path]:
    """The socket of a plugin in a process of its own."""
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parents[1])!r}]\n"
        f"from unit.test_kit_server import {request.param.__name__}\n"
        "from moorage.kit import Limits, serve\n"
        "limits = Limits(idle=0.5, receive=0.5, body_bytes=1000, stop=5)\n"
        f"serve({request.param.__name__}(), socket='x', limits=limits)\n"
    )
    with RunningPlugin([sys.executable, "-c", program], short) as plugin:
        yield plugin.socket
        assert plugin.process is not None
        plugin.process.send_signal(signal.SIGTERM)
        assert plugin.process.wait(SECONDS) == 0
    assert not (short / "s").exists()


def exchange(path: Path, method: str, body: bytes = b"") -> tuple[int, dict[str, object]]:
    with closing(UnixConnection(path, SECONDS)) as connection:
        connection.request("POST", f"/{method}", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_call_is_answered_and_failures_have_their_status(path: Path) -> None:
    assert exchange(path, "Plugin.Activate") == (200, {"Implements": ["Echo"]})
    assert exchange(path, "Echo.Wait", b'{"Seconds": 0.0}') == (200, {"Waited": 0.0})
    assert exchange(path, "Echo.Refuse") == (500, {"Err": "not today"})
    assert exchange(path, "Echo.Break") == (500, {"Err": "RuntimeError: unexpected"})
    assert exchange(path, "Echo.Fly")[0] == 404
    assert exchange(path, "Echo.Wait", b"[]") == (400, {"Err": "the body is not a JSON object"})
    assert exchange(path, "Echo.Wait", b"x" * 1001)[0] == 413


def test_calls_run_side_by_side(path: Path) -> None:
    started_at = time.monotonic()
    threads = [threading.Thread(target=call, args=(path, "Echo.Wait", {"Seconds": 0.4})) for _ in range(10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert time.monotonic() - started_at < 10 * 0.4


def test_requests_behind_each_other_are_answered_in_their_order(path: Path) -> None:
    bodies = [b'{"Seconds": %.2f}' % (number / 100) for number in range(5)]
    last = [b"keep-alive"] * 4 + [b"close"]
    head = b"POST /Echo.Wait HTTP/1.1\r\nConnection: %b\r\nContent-Length: %d\r\n\r\n%b"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        peer.sendall(b"".join(head % (end, len(body), body) for end, body in zip(last, bodies, strict=True)))
        answer = b"".join(iter(lambda: peer.recv(1000), b""))
    assert re.findall(rb'"Waited": ([0-9.]+)', answer) == [b"0.0", b"0.01", b"0.02", b"0.03", b"0.04"]


def test_a_stream_arrives_in_chunks(path: Path) -> None:
    with closing(UnixConnection(path, SECONDS)) as connection:
        connection.request("POST", "/Echo.Stream")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Transfer-Encoding"], answer.read()) == (200, "chunked", b"onetwo")


@pytest.mark.parametrize("sent", [b"", b"POST /Echo.Wait HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"])
def test_an_idle_or_a_slow_caller_is_disconnected(path: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        peer.sendall(sent)
        assert peer.recv(1000) == b""


def test_what_is_no_http_is_answered_and_the_connection_closed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        peer.sendall(b"nonsense\r\n\r\n")
        assert peer.recv(1000).startswith(b"HTTP/1.1 400 ")
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1000):
            pass


def test_100_continue_is_sent_where_it_is_expected(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        peer.sendall(b"POST /Echo.Refuse HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert peer.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(b"{}")
        assert peer.recv(1000).startswith(b"HTTP/1.1 500 ")


def test_a_call_that_runs_is_answered_after_sigterm(short: Path) -> None:
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "from unit.test_kit_server import Echo\nfrom moorage.kit import serve\nserve(Echo(), socket='x')\n"
    )
    answers: list[object] = []
    with RunningPlugin([sys.executable, "-c", program], short) as plugin:
        assert plugin.process is not None
        caller = threading.Thread(target=lambda: answers.append(plugin.call("Echo.Wait", {"Seconds": 0.5})))
        caller.start()
        time.sleep(0.2)
        plugin.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not plugin.socket.exists(), "the socket is removed at once")
        assert plugin.process.poll() is None
        caller.join()
        assert plugin.process.wait(SECONDS) == 0
    assert answers == [{"Waited": 0.5}]


def test_a_stopped_server_waits_no_longer_than_its_limit(short: Path) -> None:
    server = PluginServer(Plugin(Echo()), short / "s", Limits(stop=0.3))
    runner = threading.Thread(target=server.run)
    runner.start()
    wait_until(lambda: (short / "s").exists(), "the socket exists")
    caller = threading.Thread(target=_call_quietly, args=(short / "s",), daemon=True)
    caller.start()
    time.sleep(0.2)
    started_at = time.monotonic()
    server.stop()
    runner.join()
    assert time.monotonic() - started_at < 1.5
    caller.join()


def _call_quietly(path: Path) -> None:
    try:
        call(path, "Echo.Wait", {"Seconds": 2.0})
    except (OSError, CallFailed):
        pass


def test_an_idle_plugin_imports_neither_asyncio_nor_tls() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        "from moorage.kit import SimpleVolumeDriver, LogDriver, AuthzDriver, serve\n"
        "heavy = 'asyncio', 'ssl', 'email', 'logging', 'http', 'subprocess'\n"
        "print(*(each for each in heavy if each in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_kit_runs_without_the_rest_of_moorage(short: Path) -> None:
    (short / "moorage").mkdir()
    os.symlink(SOURCE / "moorage/kit", short / "moorage/kit")
    program = "import moorage.kit as k; print(len([getattr(k, n) for n in k.__all__]))"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", program], cwd=short, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 40

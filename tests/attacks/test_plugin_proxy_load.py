"""Hostile plugins and consumers that want the time and the memory of the plugin proxy: others do not notice."""

import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from moorage.proxy.protocol import encode
from support.hostile_driver import HostileDriver, answer, attacked, exchange, post
from support.limits import limit
from support.proxy_process import ProxyProcess, call, wait_until

pytestmark = pytest.mark.real

RESPONSIVE = limit(1.5)
"""Seconds in which another plugin's call is answered during an attack."""
MIB = 1024 * 1024

# A plugin that sends the same bytes again and again, and a consumer that reads as fast as it can, in processes of
# their own: in threads of the test, they would not keep the proxy busy.
FLOOD = """
import socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(100)
print("ready", flush=True)
def serve(connection):
    with connection:
        connection.recv(65536)
        try:
            connection.sendall(eval(sys.argv[2]))
            while True:
                connection.sendall(eval(sys.argv[3]) * 5000)
        except OSError:
            pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
READER = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
head = f"POST /{sys.argv[2]} HTTP/1.1\\r\\nHost: p\\r\\nContent-Length: 12\\r\\n\\r\\n"
client.sendall(head.encode() + b'{"Name":"v"}')
print("ready", flush=True)
while client.recv(1 << 20):
    pass
"""


@contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this program, and has said that it is ready."""
    command = ["setpriv", "--pdeathsig=KILL", sys.executable, "-I", "-S", "-c", source, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def slowest_call(path: str, seconds: float, is_over: Callable[[], bool] = lambda: False) -> float:
    """Seconds of the slowest of the calls that are made for so long."""
    until, slowest = time.monotonic() + limit(seconds), 0.0
    while time.monotonic() < until and not is_over():
        began = time.monotonic()
        assert call(path, "VolumeDriver.List")[0] == 200
        slowest = max(slowest, time.monotonic() - began)
    return slowest


FLOODS = {
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "small chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "large chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"200\r\n" + b"x" * 512 + b"\r\n"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", ["LogDriver.ReadLogs", "VolumeDriver.Get"])
@pytest.mark.parametrize("kind", list(FLOODS))
def test_p09_p10_a_plugin_that_never_stops_sending_delays_no_other_one(tmp_path: Path, kind: str, method: str) -> None:
    begin, more = FLOODS[kind]
    with attacked(tmp_path, lambda *_: None) as (proxy, hostile, path, good):
        (hostile.directory / "plugin.sock").unlink()
        before = proxy.status("VmRSS")
        with (
            program(FLOOD, str(hostile.directory / "plugin.sock"), repr(begin), repr(more)),
            program(READER, path, method),
            program(READER, path, method),
            program(READER, path, method),
        ):
            assert slowest_call(good, 4) < RESPONSIVE
        assert proxy.status("VmHWM") - before < 60 * 1024


DOCUMENTS = {
    "objects": b'{"Volumes":[' + b"{}," * 5_000_000 + b"{}]}",
    "volumes": b'{"Volumes":[' + b",".join(b'{"Name":"%x"}' % each for each in range(900_000)) + b"]}",
    "keys": b'{"Volumes":[],' + b",".join(b'"%x":0' % each for each in range(1_300_000)) + b"}",
    "a text": b'{"Volumes":[{"Name":"' + "\U0001f6a2".encode() + b"x" * 15_000_000 + b'"}]}',
}


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_p09_an_answer_of_millions_of_values_delays_no_other_plugin(tmp_path: Path, kind: str) -> None:
    body = DOCUMENTS[kind]
    with attacked(tmp_path, lambda connection, *_: answer(connection, body)) as (proxy, _, path, good):
        before = proxy.status("VmRSS")
        answers: list[bytes] = []
        attack = threading.Thread(
            target=lambda: answers.append(exchange(path, post("/VolumeDriver.List"), within=limit(60))), daemon=True
        )
        attack.start()
        assert slowest_call(good, 30, lambda: not attack.is_alive()) < RESPONSIVE
        attack.join(limit(60))
        assert answers[0].startswith(b"HTTP/1.1 50"), answers[0][:100]
        assert proxy.status("VmHWM") - before < 60 * 1024


def test_p09_answers_that_never_end_take_no_room_of_other_plugins(tmp_path: Path) -> None:
    """All calls together may store a bounded number of bytes; a plugin that occupied them made every call fail."""
    over = threading.Event()

    def answering(connection: socket.socket, *_: object) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        for _piece in range(16):
            connection.sendall(b" " * (MIB - 1024))
        over.wait(limit(30))

    with attacked(tmp_path, answering) as (proxy, _, path, good):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        try:
            for client in clients:
                client.connect(path)
                client.sendall(post("/VolumeDriver.List"))
            time.sleep(3)  # whatever is stored, is stored by now
            assert call(good, "VolumeDriver.List", Opts="x" * 200_000)[0] == 200
            assert proxy.status("VmHWM") < 120 * 1024
        finally:
            over.set()
            for client in clients:
                client.close()


def test_p09_a_plugin_that_answers_byte_by_byte_harms_only_its_caller(tmp_path: Path) -> None:
    def answering(connection: socket.socket, *_: object) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(limit(0.02))

    limits = {"VolumeDriver.Get": limit(3.0)}
    with attacked(tmp_path, answering, time_limits=limits) as (_, _, path, good):
        status, answered = call(path, "VolumeDriver.Get", Name="v")
        assert status == 500
        assert "within" in answered["Err"]
        assert call(good, "VolumeDriver.List")[0] == 200


def test_p11_texts_of_a_plugin_are_not_recorded_however_long_they_are(tmp_path: Path) -> None:
    """The ledger, the news for the engine and events grew with every answer."""
    huge = "x" * 3_000_000
    volumes = iter(range(1000))

    def answering(connection: socket.socket, target: str, _: bytes) -> None:
        if target.endswith("Get"):
            name = f"{next(volumes)}{huge}"
            answer(connection, {"Volume": {"Name": name, "Mountpoint": f"{hostile_inside}/{huge}"}})
        elif target.endswith("Mount"):
            answer(connection, {"Mountpoint": f"{hostile_inside}/{huge}"})
        elif target == "/VolumeDriver.Capabilities":
            answer(connection, {"Capabilities": {"Scope": huge}})
        elif target == "/LogDriver.Capabilities":
            answer(connection, {"Cap": {"ReadLogs": True}, "X": huge})
        else:
            answer(connection, {"Err": huge}, 500)

    hostile_inside = tmp_path / "bad/inside"
    with attacked(tmp_path, answering) as (proxy, hostile, path, _):
        ledger = proxy.state / "ledger" / f"{hostile.table(proxy.published).id}.json"
        for number in range(20):
            for method in ("VolumeDriver.Get", "VolumeDriver.Mount", "VolumeDriver.Unmount", "VolumeDriver.Create"):
                call(path, method, Name=f"v{number}", ID=str(number))
        for method in ("VolumeDriver.Capabilities", "LogDriver.Capabilities"):
            call(path, method)
        assert ledger.stat().st_size < MIB if ledger.exists() else True
        proxy.send(hostile.table(proxy.published))
        assert proxy.news is not None
        assert len(encode(proxy.news)) < MIB
        assert max(map(len, proxy.reports), default=0) < 10_000


def test_p11_a_replay_that_fails_with_a_long_text_does_not_silence_the_proxy(tmp_path: Path) -> None:
    """A message of more than 64 MiB is none for the engine, which killed the proxy for it again and again."""
    is_hostile = threading.Event()

    def answering(connection: socket.socket, target: str, body: bytes) -> None:
        if is_hostile.is_set():
            answer(connection, {"Err": "x" * 3_900_000}, 500)
        else:
            directory = tmp_path / "bad/inside" / json.loads(body)["Name"]
            directory.mkdir(exist_ok=True)
            answer(connection, {"Mountpoint": str(directory)} if target.endswith("Mount") else {})

    with attacked(tmp_path, answering) as (proxy, hostile, path, _):
        for number in range(30):
            assert call(path, "VolumeDriver.Mount", Name=f"v{number}", ID="1")[0] == 200
        is_hostile.set()
        table = msgspec.structs.replace(hostile.table(proxy.published), run=2)
        proxy.send(table)
        while sum("replay-failed" in each for each in proxy.reports) < 30:
            proxy.receive()
        assert proxy.news is not None
        assert len(encode(proxy.news)) < MIB


HALF_OPEN = {
    "nothing": b"",
    "half a head": b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: p\r\nX-Slow: ",
    "half a body": b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: p\r\nContent-Length: 1000\r\n\r\n{",
    "half a stream": b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: p\r\nContent-Length: 1000\r\n\r\n{",
    "kept alive": post("/Plugin.Activate"),
}


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize(
    "kind", [pytest.param(each, marks=[pytest.mark.extensive] if each != "half a head" else []) for each in HALF_OPEN]
)
def test_s12_thousands_of_half_open_connections_keep_no_consumer_waiting(tmp_path: Path, kind: str) -> None:
    """They took all descriptors of the proxy: no plugin had a consumer any more, and no mount could be recorded."""
    descriptors = 600
    good = HostileDriver(tmp_path, "good", lambda connection, *_: answer(connection, {"Volumes": []}))
    bad = HostileDriver(tmp_path, "bad", lambda connection, *_: connection.recv(1))
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2000)]
    try:
        with ProxyProcess(tmp_path, prefix=["prlimit", f"--nofile={descriptors}:{descriptors}"]) as proxy:
            proxy.send(bad.table(proxy.published, at_once=20), good.table(proxy.published))
            for client in clients:
                client.setblocking(False)
                client.connect(str(proxy.published / "bad.sock"))
                client.send(HALF_OPEN[kind])
            wait_until(lambda: proxy.descriptors() > descriptors // 5)
            for _ in range(5):
                assert call(str(proxy.published / "good.sock"), "VolumeDriver.List")[0] == 200
            assert proxy.descriptors() < descriptors * 3 // 4
            if kind != "half a stream":  # whose calls are under way; others of the same plugin wait for them
                assert call(str(proxy.published / "bad.sock"), "Plugin.Activate")[0] == 200
            assert "Too many open files" not in proxy.log()
    finally:
        for client in clients:
            client.close()
        good.close()
        bad.close()


def test_s12_a_head_that_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    with attacked(tmp_path, lambda *_: None) as (_, _, path, _), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit(60))
        client.connect(path)
        client.sendall(HALF_OPEN["half a head"])
        began = time.monotonic()
        until = began + limit(50)
        client.setblocking(False)
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                client.sendall(b"x")
            if select.select([client], [], [], 0.5)[0]:
                break
        assert client.recv(100) == b""


def test_p09_answers_that_no_consumer_reads_are_stored_for_some_only(tmp_path: Path) -> None:
    body = json.dumps({"Volumes": [{"Name": "v", "Status": {"x": "y" * 3 * MIB}}]}).encode()
    with attacked(tmp_path, lambda connection, *_: answer(connection, body)) as (proxy, _, path, good):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(60)]
        try:
            for client in clients:
                client.connect(path)
                client.settimeout(limit(20))
                client.sendall(post("/VolumeDriver.List"))
                assert client.recv(1) == b"H"
            assert call(good, "VolumeDriver.List")[0] == 200
            assert proxy.status("VmRSS") < 120 * 1024
        finally:
            for client in clients:
                client.close()

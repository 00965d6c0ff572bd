"""S12: clients that only occupy connections. At commit 7a96af1 they took every descriptor of the engine."""

import contextlib
import http.client
import json
import resource
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import wait_until
from support.limits import limit

DESCRIPTORS = 320  # of the engine; the attacks take 300 connections each


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path, metrics="127.0.0.1:0", prefix=["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"]) as made:
        yield made


def open_api(house: EngineProcess) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(limit(30))
    client.connect(str(house.socket))
    return client


def open_metrics(house: EngineProcess) -> socket.socket:
    url = urlsplit(house.metrics_url())
    return socket.create_connection((url.hostname, url.port), 30)


@contextlib.contextmanager
def attack(open_one: "object", house: EngineProcess, count: int, start: bytes) -> Iterator[None]:
    """Occupy connections that sent only this, and open each again that is closed, for the length of the block."""
    assert callable(open_one)
    over = threading.Event()
    started = threading.Semaphore(0)

    def occupy() -> None:
        is_first = True
        while not over.is_set():
            with contextlib.suppress(OSError), contextlib.closing(open_one(house)) as client:
                client.settimeout(0.5)
                client.sendall(start)
                if is_first:
                    is_first = False
                    started.release()
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not client.recv(4096):
                            break
            over.wait(0.5)

    threads = [threading.Thread(target=occupy) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(min(count, DESCRIPTORS // 8)):
            assert started.acquire(timeout=limit(60))
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def descriptors(house: EngineProcess) -> int:
    assert house.child is not None
    return len(list(Path(f"/proc/{house.child.pid}/fd").iterdir()))


def limit_of_descriptors(house: EngineProcess) -> int:
    """The engine raises its own limit where it is allowed to."""
    assert house.child is not None
    return resource.prlimit(house.child.pid, resource.RLIMIT_NOFILE)[0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("open_one", "start"),
    [
        (open_metrics, b""),
        (open_metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        (open_metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
        (open_api, b""),
        (open_api, b"GET /_ping HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        (open_api, b"POST /plugins/p/set HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                   b"Content-Length: 100000\r\n\r\n["),
    ],
    ids=["metrics-idle", "metrics-headers", "metrics-keep-alive", "api-idle", "api-headers", "api-bodies"],
)  # fmt: skip
def test_s12_300_idle_connections_block_nothing(house: EngineProcess, open_one: "object", start: bytes) -> None:
    house.create("p", config("serve"))
    follower = open_api(house)
    follower.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 OK" in follower.recv(4096)
    with attack(open_one, house, 300, start):
        wait_until(lambda: patiently(lambda: house.enable("p")), "the plugin is enabled", limit(100.0))
        assert house.state("p") == "ready"
        assert descriptors(house) < limit_of_descriptors(house) * 3 // 4
    events = b""
    while b'"ready"' not in events:  # the stream stayed open through the attack, and not cut
        piece = follower.recv(4096)
        assert piece
        events += piece
    follower.close()
    wait_until(lambda: scrape(house).count("moorage_plugins{") > 0, "metrics are served", limit(60.0))
    house.disable("p")
    assert "Too many open files" not in house.log.read_text()


def patiently(send_request: "object") -> bool:
    """Whether the engine has done it; while it has no room for a client, the request is repeated."""
    assert callable(send_request)
    try:
        send_request()
    except (OSError, http.client.HTTPException):
        return False
    except Exception as error:
        if "already enabled" in str(error):
            return True
        if "connections are in use" in str(error):
            return False
        raise
    return True


def scrape(house: EngineProcess) -> str:
    try:
        with urllib.request.urlopen(house.metrics_url(), timeout=limit(20)) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_s12_a_scraper_that_reads_nothing_is_cut_off_and_errors_are_json(house: EngineProcess) -> None:
    client = open_metrics(house)
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n")
    answer = http.client.HTTPResponse(client)
    answer.begin()
    assert (answer.status, answer.headers["Content-Type"]) == (431, "application/json")
    assert "65536 bytes" in json.loads(answer.read())["message"]
    client.close()

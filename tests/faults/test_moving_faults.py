"""Packages on the move while things go wrong: the engine is killed, the disk is full, the client leaves."""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from faults.test_engine_kills import KILLS, in_background, legal
from support.engines import EngineProcess, Refused, UnixConnection, actor, config, engine
from support.foreground import wait_until
from support.layouts import Layout, layer_tar
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc", "docker-registry")]

ROUNDS = max(1, KILLS // 2)
"""Kills of a push; each is followed by a whole one."""

TAR = {"Content-Type": "application/x-tar"}


def archive(*names: str, bulk_bytes: int = 2_000_000) -> bytes:
    """An archive with a plugin for each name, on one base of which most cannot be compressed; before it a small one."""
    layout = Layout()
    layout.list(layout.plugin(config(), [layer_tar({"actor": (actor(), 0o755)})]), "first:1")
    base = layer_tar({"actor": (actor(), 0o755), "bulk": (os.urandom(bulk_bytes), 0o644)})
    for name in names:
        layout.list(layout.plugin(config(description=name), [base, layer_tar({"name": (name.encode(), 0o644)})]), name)
    return layout.tar()


def load(house: EngineProcess, body: bytes) -> None:
    house.request_json("POST", "/moorage/v1/load", body, headers=TAR)


def push(house: EngineProcess, name: str) -> dict[str, Any]:
    """A complete push; its last line."""
    _, raw = house.request("POST", f"/plugins/{quote(name, safe='')}/push")
    last: dict[str, Any] = json.loads(raw.splitlines()[-1])
    return last


def push_in_background(house: EngineProcess, name: str) -> threading.Thread:
    def do() -> None:
        push(house, name)

    return in_background(do)


def remove_all(house: EngineProcess) -> None:
    for plugin in house.plugins():
        house.remove(plugin["Id"], force=True)


CONTENT = "containerd/io.containerd.content.v1.content"
STEPS: dict[str, Callable[[EngineProcess], bool]] = {
    "a blob comes": lambda house: any((house.root / CONTENT).glob("ingest/*/data")),
    "blobs are there": lambda house: any((house.root / CONTENT).glob("blobs/sha256/*")),
    "layers are unpacked": lambda house: any(
        (house.root / "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots").glob("*/fs/bulk")
    ),
    "one of three is there": lambda house: any((house.root / "plugins").glob("*/plugin.json")),
}
"""What can be seen of a running load."""


def kill_in_a_load(house: EngineProcess, body: bytes, step: str, is_reached: Callable[[EngineProcess], bool]) -> None:
    thread = in_background(lambda: load(house, body))
    wait_until(lambda: is_reached(house) or not thread.is_alive(), step)
    house.end(signal.SIGKILL)
    thread.join()


def test_m10_d09_killed_at_each_step_of_a_load(house: EngineProcess) -> None:
    body = archive("a:1", "b:1")
    for step, is_reached in STEPS.items():
        kill_in_a_load(house, body, step, is_reached)
        house.start()
        legal(house)
        remove_all(house)
    load(house, body)
    assert [plugin["Name"] for plugin in house.plugins()] == ["a:1", "b:1", "first:1"]
    house.enable("b:1")
    remove_all(house)
    legal(house)


def test_m10_d04_killed_at_any_moment_of_a_push(house: EngineProcess, registry: Served) -> None:
    draw = random.Random("push").random
    for number in range(ROUNDS):
        name = f"{registry.host}/t/killed:{number}"
        house.create(name, None, bulk=os.urandom(2_000_000))
        digest = house.more(quote(name, safe=""))["Digest"]
        thread = push_in_background(house, name)
        time.sleep(draw() * 0.3)  # the moment of the kill is what is tried here
        house.end(signal.SIGKILL)
        thread.join()
        house.start()
        legal(house)
        assert push(house, name)["aux"]["Digest"] == digest
        remove_all(house)
    legal(house)


def test_d09_a_client_that_leaves_in_the_middle_of_a_load_leaves_nothing(house: EngineProcess) -> None:
    body = archive("a:1")
    for sent in (2_000, len(body) // 2, len(body) - 1):
        connection = UnixConnection(house.socket, 20)
        connection.putrequest("POST", "/moorage/v1/load")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[:sent])
        connection.close()
    # one that has sent everything, and does not wait for the answer
    connection = UnixConnection(house.socket, 20)
    connection.request("POST", "/moorage/v1/load", body, TAR)
    connection.close()

    def is_empty() -> bool:
        remove_all(house)  # the last one may have been quick, and it may come only now
        return not any((house.root / CONTENT).glob("blobs/sha256/*"))

    house.wait_until(is_empty, "nothing of them is left")
    legal(house)


def test_d04_a_client_that_leaves_in_the_middle_of_a_push_harms_nothing(house: EngineProcess, registry: Served) -> None:
    name = f"{registry.host}/t/left:1"
    house.create(name, None, bulk=os.urandom(4_000_000))
    connection = UnixConnection(house.socket, 20)
    connection.request("POST", f"/plugins/{quote(name, safe='')}/push")
    answer = connection.getresponse()
    assert b"The push refers to" in answer.readline()
    connection.sock.close()
    answer.close()
    house.wait_until(lambda: house.request_json("POST", "/moorage/v1/prune")["UnderWay"] == 0, "nothing is under way")
    assert "aux" in push(house, name)
    remove_all(house)


def test_d09_a_save_whose_reader_disconnects_leaves_no_lease(house: EngineProcess) -> None:
    house.create("a:1", None, bulk=os.urandom(8_000_000))
    connection = UnixConnection(house.socket, 20)
    connection.request("GET", "/moorage/v1/save?name=a:1")
    assert connection.getresponse().read(1000)
    connection.close()
    house.wait_until(lambda: house.request_json("POST", "/moorage/v1/prune")["UnderWay"] == 0, "nothing is under way")
    remove_all(house)
    legal(house)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that 8 MB fill."""
    workspace = tmp_path / "small"
    workspace.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", workspace], check=True)
    yield workspace
    subprocess.run(["umount", workspace], check=True)


def test_d09_case_096_a_load_that_fills_the_disk_is_reported_and_leaves_room(small_disk: Path) -> None:
    with engine(small_disk) as house:
        before = free_bytes(small_disk)
        for bulk in (9_000_000, 4_500_000):  # too large as it comes; too large when it is unpacked
            with pytest.raises(Refused) as caught:
                load(house, archive("big:1", bulk_bytes=bulk))
            assert (caught.value.status, "no space left on device" in caught.value.message) == (503, True), caught.value
            assert house.plugins() == []  # nor the first one, which was made before the disk was full
            # the databases may have grown
            house.wait_until(lambda: free_bytes(small_disk) > before - 2_000_000, "what was written is given back")
        load(house, archive("small:1", bulk_bytes=100_000))
        house.enable("small:1")
        remove_all(house)
        legal(house)


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize

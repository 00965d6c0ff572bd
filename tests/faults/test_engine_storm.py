"""Commands, crashes, kills of engine and containerd in any order on thirty plugins; each reaches its desired state."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, config, engine, kill, processes_below
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]

PLUGINS = 30
STEPS = int(os.environ.get("MOORAGE_STORM_STEPS", "2000" if os.environ.get("MOORAGE_FAULTS") == "full" else "80"))

CONFIG = config(env=[{"name": "A", "settable": ["value"]}])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made


def names() -> list[str]:
    return [f"p{number:02d}" for number in range(PLUGINS)]


def shims(house: EngineProcess) -> list[int]:
    mark = f"{house.exec_root}/".encode()
    return [pid for pid in leftovers.shims("plugins.moby") if mark in b" ".join(leftovers.command_line(pid))]


def settle(house: EngineProcess) -> None:
    """Wait until every plugin is in its desired state."""
    house.wait_until(
        lambda: all(
            plugin["Moorage"]["State"] == ("ready" if plugin["Enabled"] else "disabled") for plugin in house.plugins()
        ),
        "wish and state agree",
        limit(120),
    )


class Storm:
    """One random step after another."""

    def __init__(self, house: EngineProcess, seed: int) -> None:
        self.house = house
        self.random = random.Random(seed)
        self.desired = dict.fromkeys(names(), False)
        self.there = set(names())

    def step(self) -> None:
        name = self.random.choice(names())
        draw = self.random.random()
        if draw < 0.03:
            self.house.end(signal.SIGKILL)
            self.house.start()
        elif draw < 0.06:
            kill([int((self.house.exec_root / "containerd/pid").read_text())])
        elif name not in self.there:
            self.attempt(name, lambda: self.house.create(name, CONFIG), lambda: self.there.add(name))
        elif draw < 0.35:
            self.attempt(name, lambda: self.house.enable(name), lambda: self.desired.update({name: True}))
        elif draw < 0.6:
            self.attempt(name, lambda: self.house.disable(name), lambda: self.desired.update({name: False}))
        elif draw < 0.8:
            pid = self.house.more(name)["Pid"]
            if pid:
                kill([pid])
        elif draw < 0.9:
            self.attempt(name, lambda: self.house.set(name, f"A={draw}"), lambda: None)
        else:
            self.attempt(name, lambda: self.house.remove(name, force=True), lambda: self.forget(name))

    def forget(self, name: str) -> None:
        self.there.discard(name)
        self.desired[name] = False

    def attempt(self, name: str, do: Callable[[], None], done: Callable[[], object]) -> None:
        """A command: done, refused because of the state, or tried again while containerd is unavailable."""
        deadline = time.monotonic() + limit(60)
        while (status := self.try_once(do)) not in (200, 404, 409):
            assert time.monotonic() < deadline, f"{name}: {status}"
            time.sleep(0.1)
        if status == 200:
            done()
        elif status == 404:  # an earlier try was answered 503, and continued by itself
            self.forget(name)
        else:
            self.desired[name] = self.house.inspect(name)["Enabled"]

    def try_once(self, do: Callable[[], None]) -> int:
        try:
            do()
        except Refused as refused:
            # 500: the process, or containerd, was killed while it was started
            return refused.status if refused.status in (404, 409, 500, 503) else pytest.fail(str(refused))
        return 200


def test_m08_case_107_after_a_storm_state_equals_desired_state(house: EngineProcess) -> None:
    seed = int(os.environ.get("MOORAGE_STORM_SEED", "1"))
    for name in names():
        house.create(name, CONFIG)
    storm = Storm(house, seed)
    for _ in range(STEPS):
        storm.step()
    house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "containerd is back")
    settle(house)
    found = {plugin["Name"].removesuffix(":latest"): plugin["Enabled"] for plugin in house.plugins()}
    assert set(found) == storm.there
    assert found == {name: storm.desired[name] for name in storm.there}, f"seed {seed}"
    running = [plugin for plugin in house.plugins() if plugin["Enabled"]]
    house.wait_until(lambda: len(shims(house)) == len(running), "a shim for each that runs")
    for name in storm.there:
        house.remove(name, force=True)
    house.wait_until(lambda: shims(house) == [], "no shim is left")
    assert leftovers.mounts_below(house.exec_root / "p", house.root / "plugins") == []
    assert list((house.exec_root / "p").iterdir()) == []
    assert list((house.root / "plugins").iterdir()) == []
    blobs = house.root / "containerd/io.containerd.content.v1.content/blobs"
    house.wait_until(lambda: not [path for path in blobs.rglob("*") if path.is_file()], "no content is left")


def test_m08_thirty_plugins_keep_their_pids_and_are_ready_soon_after_a_kill(house: EngineProcess) -> None:
    for name in names():
        house.create(name)
    for name in names():
        house.enable(name)
    pids = {plugin["Name"]: plugin["Moorage"]["Pid"] for plugin in house.plugins()}
    house.end(signal.SIGKILL)
    house.start()
    house.wait_until(lambda: all(each["Moorage"]["State"] == "ready" for each in house.plugins()), "all are ready")
    assert {plugin["Name"]: plugin["Moorage"]["Pid"] for plugin in house.plugins()} == pids


def test_m11_a_dockerds_namespace_is_refused_with_the_way_out(tmp_path: Path, house: EngineProcess) -> None:
    """All containers of a dockerd have this label; one made by hand in a namespace stands for them."""
    address = house.exec_root / "containerd/c.sock"
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    ctr = ["ctr", "-a", str(address), "-n", "theirs"]
    spec = tmp_path / "spec.json"
    process = {"args": ["/x"], "cwd": "/"}
    spec.write_text(json.dumps({"ociVersion": "1.0.2", "process": process, "root": {"path": str(rootfs)}}))
    label = "com.docker/engine.bundle.path=/run/docker/x"
    subprocess.run([*ctr, "containers", "create", "--label", label, "--config", str(spec), "0" * 64], check=True)
    second = EngineProcess(tmp_path / "second", containerd=str(address), namespace="theirs")
    second.root.parent.mkdir()
    child = second._popen("serve")
    assert child.wait(limit(30)) != 0
    assert "--namespace" in second.log.read_text()
    assert "is a dockerd's and not this engine's" in second.log.read_text()
    subprocess.run([*ctr, "containers", "rm", "0" * 64], check=True)
    # the other namespace is that of another engine, which is alive
    second.namespace = "plugins.moby"
    child = second._popen("serve")
    assert child.wait(limit(30)) != 0
    assert f" on {house.root}, whether that runs or not" in second.log.read_text()
    assert processes_below(second.exec_root) == []

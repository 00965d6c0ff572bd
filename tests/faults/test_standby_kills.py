"""The engine, or containerd, killed while the standby of a plugin is made, started or discarded."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.engines import EngineProcess, engine
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]

FULL = os.environ.get("MOORAGE_FAULTS") == "full"
KILLS = 40 if FULL else 3
"""Kills of each operation, at moments spread over the time that it takes."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path, timeouts={"ready": limit(30)}) as made:
        yield made


def make(house: EngineProcess) -> None:
    house.request_own("PUT", "p", "policy", {"standby": True})
    runtime = house.exec_root / "p" / house.inspect("p")["Id"][:12]
    house.wait_until(lambda: (runtime / "n").exists(), "a standby is being made")


def start(house: EngineProcess) -> None:
    until_standby(house)
    os.kill(house.more("p")["Pid"], signal.SIGKILL)


def discard(house: EngineProcess) -> None:
    until_standby(house)
    house.request_own("PUT", "p", "policy", {"pids": random.randrange(100, 1000)})


OPERATIONS: dict[str, tuple[Callable[[EngineProcess], None], float]] = {
    "make": (make, 0.1),
    "start": (start, 0.06),
    "discard": (discard, 0.02),
}


def until_standby(house: EngineProcess) -> int:
    house.request_own("PUT", "p", "policy", {"standby": True})
    house.wait_until(lambda: house.more("p")["StandbyPid"], "it has a standby", limit(60))
    return int(house.more("p")["StandbyPid"])


def kill_containerd(house: EngineProcess) -> None:
    pid = int((house.exec_root / "containerd/pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not leftovers.is_alive(pid), "containerd is killed")


def shims(house: EngineProcess) -> int:
    mark = f"{house.exec_root}/".encode()
    return sum(mark in b" ".join(leftovers.command_line(pid)) for pid in leftovers.shims("plugins.moby"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("victim", ["engine", "containerd"])
@pytest.mark.parametrize(
    "operation", [pytest.param(each, marks=[pytest.mark.extensive] if each == "discard" else []) for each in OPERATIONS]
)
def test_i17_killed_at_any_moment_a_run_and_one_standby_are_left(
    house: EngineProcess, operation: str, victim: str
) -> None:
    do, seconds = OPERATIONS[operation]
    draw = random.Random(f"{operation} {victim}").random
    house.create("p")
    for _ in range(KILLS):
        house.request_own("PUT", "p", "policy", {"standby": False})
        house.enable("p")
        do(house)
        time.sleep(draw() * seconds)  # the moment of the kill is what is tried here
        if victim == "engine":
            house.end(signal.SIGKILL)
            house.start()
        else:
            kill_containerd(house)
            house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "it has containerd again", limit(60))
        house.until("p", "ready", limit(60))
        pid = until_standby(house)
        house.wait_until(lambda: shims(house) == 2, "no other container is left", limit(60))
        restarts = house.more("p")["Restarts"]
        os.kill(house.more("p")["Pid"], signal.SIGKILL)
        house.until_restarted("p", restarts + 1, limit(60))
        assert house.more("p")["Pid"] == pid
        house.disable("p")
        house.wait_until(lambda: shims(house) == 0, "nothing is left")
        assert not list((house.exec_root / "p").glob("*"))
    house.remove("p")

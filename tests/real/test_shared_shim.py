"""One shim for all plugins of an engine (`serve --shim shared`): what happens to one harms no other."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.engines import EngineProcess, engine, kill

NAMES = ("a", "b", "c")


def shims(house: EngineProcess) -> list[int]:
    mark = str(house.exec_root / "containerd/c.sock").encode()
    return [pid for pid in leftovers.shims(house.namespace) if mark in leftovers.command_line(pid)]


def pids(house: EngineProcess) -> dict[str, int]:
    return {name: house.more(name)["Pid"] for name in NAMES if house.state(name) == "ready"}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine with three plugins that run in one shim."""
    with engine(tmp_path, shim="shared") as made:
        for name in NAMES:
            made.create(name)
            made.enable(name)
        made.wait_until(lambda: len(shims(made)) == 1, "only one shim, and no program that has started it")
        assert {os.sched_getscheduler(pid) for pid in pids(made).values()} == {os.SCHED_OTHER}, "not as their shim is"
        yield made


def test_m10_one_that_crashes_is_started_again_and_the_others_go_on(house: EngineProcess) -> None:
    before = pids(house)
    house.crash("b", 3)
    house.until_restarted("b", 1)
    assert house.more("b")["LastExit"]["Code"] == 3
    kill([house.more("a")["Pid"]])
    house.until_restarted("a", 1)
    assert house.more("a")["LastExit"]["Code"] == 128 + signal.SIGKILL
    assert pids(house)["c"] == before["c"]
    assert len(shims(house)) == 1


def test_the_one_whose_name_the_shim_bears_may_go_and_come_back(house: EngineProcess) -> None:
    (shim,), before = shims(house), pids(house)
    first = house.inspect("a")["Id"].encode()
    assert any(word.startswith(first) for word in leftovers.command_line(shim))
    house.disable("a")
    house.enable("a")
    house.remove("a", force=True)
    house.create("a")
    house.enable("a")
    after = pids(house)
    assert (after["b"], after["c"]) == (before["b"], before["c"])
    assert shims(house) == [shim]


def test_m08_they_outlive_engine_and_containerd(house: EngineProcess) -> None:
    before = pids(house)
    house.end(signal.SIGKILL)
    kill([int((house.exec_root / "containerd/pid").read_text())])
    house.start()
    for name in NAMES:
        house.until(name, "ready")
    assert pids(house) == before
    assert [house.more(name)["Restarts"] for name in NAMES] == [0, 0, 0]


def test_e49_a_shim_that_is_killed_takes_all_with_it_and_all_come_back(house: EngineProcess) -> None:
    after = pids(house)
    for restarts in (1, 2, 3):
        before = after
        (shim,) = shims(house)
        kill([shim])
        for name in NAMES:
            house.until_restarted(name, restarts)
        after = pids(house)
        assert not set(after.values()) & set(before.values())
        assert not any(leftovers.is_alive(pid) for pid in before.values())
        assert len(shims(house)) == 1
        assert shims(house) != [shim]
    kill([int((house.exec_root / "containerd/pid").read_text())])
    house.wait_until(lambda: not house.info()["Moorage"]["Problem"], "containerd is back")
    assert pids(house) == after
    assert all(leftovers.is_alive(pid) for pid in after.values())


def test_what_runs_keeps_its_shim_when_the_choice_changes(house: EngineProcess) -> None:
    before = pids(house)
    house.end(signal.SIGTERM)
    house.serve_options["shim"] = "each"
    house.start()
    for name in NAMES:
        house.until(name, "ready")
    assert pids(house) == before
    house.disable("c")
    house.enable("c")
    assert len(shims(house)) == 2

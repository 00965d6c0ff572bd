"""Every run of a plugin has a control group of its own; one that an earlier version started keeps the one it has."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import support.engines
from moorage.host.cgroups import find_groups
from support import leftovers
from support.engines import EngineProcess, config, engine, kill
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

EARLIER = """
import moorage.runs.plan as plan
per_run = plan.cgroup_path
plan.cgroup_path = lambda container, driver="cgroupfs": per_run(container.partition(".")[0], driver)
"""
"""Gives all runs of a plugin the control group that is named after the plugin, as earlier versions did."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path, cgroup_driver="cgroupfs") as made:  # scopes: tests/machines
        yield made


def top(house: EngineProcess, name: str) -> list[str]:
    """What ``moorage top`` prints: pids."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "--json", "top", name]
    output = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=True).stdout
    return [str(json.loads(line)["Pid"]) for line in output.splitlines()]


def groups_of(id: str) -> set[str]:
    return {directory.name for directory in leftovers.plugin_groups(id)}


def check_run(house: EngineProcess, name: str, group: str) -> None:
    """The run of a plugin is in this group, and what is measured and listed is of that."""
    more = house.more(name)
    assert more["ControlGroup"] == group
    assert leftovers.processes_in(f"{group}\n") == [more["Pid"]]
    assert house.request_own("GET", name, "stats")["Pids"] == 1
    assert top(house, name) == [str(more["Pid"])]


def test_i17_each_run_has_a_control_group_of_its_own(house: EngineProcess) -> None:
    house.create("p")
    id = house.inspect("p")["Id"]
    assert house.more("p")["ControlGroup"] == ""
    house.enable("p")
    check_run(house, "p", f"/moorage/{id}.1")
    kill([house.more("p")["Pid"]])
    house.wait_until(lambda: house.more("p")["Restarts"] == 1, "the restart")
    house.until("p", "ready")
    check_run(house, "p", f"/moorage/{id}.2")
    wait_until(lambda: groups_of(id) == {f"{id}.2"}, "the group of the first run is removed")
    house.disable("p")
    assert house.more("p")["ControlGroup"] == ""
    assert groups_of(id) == set()


def test_i17_a_later_engine_finds_the_group_of_what_runs(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    group = house.more("p")["ControlGroup"]
    house.end(signal.SIGKILL)
    house.start()
    house.until("p", "ready")
    check_run(house, "p", group)


def test_i17_a_run_of_an_earlier_version_keeps_its_group_and_the_next_one_has_its_own(
    house: EngineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.create("p")
    id = house.inspect("p")["Id"]
    house.end()
    with monkeypatch.context() as patches:
        patches.setattr(support.engines, "SERVE", EARLIER + support.engines.SERVE)
        house.start()
        house.enable("p")
        check_run(house, "p", f"/moorage/{id}")
        pid = house.more("p")["Pid"]
        house.end()
    record = house.root / "plugins" / id / "plugin.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "cgroup_driver": "cgroupfs"}))
    house.start()
    assert house.until("p", "ready")["Pid"] == pid
    check_run(house, "p", f"/moorage/{id}")
    kill([pid])
    house.wait_until(lambda: house.more("p")["Restarts"] == 1, "the restart")
    house.until("p", "ready")
    check_run(house, "p", f"/moorage/{id}.2")
    wait_until(lambda: groups_of(id) == {f"{id}.2"}, "the group of earlier versions is removed")


def test_i17_an_empty_group_that_a_killed_run_has_left_is_removed_with_the_plugins_run(house: EngineProcess) -> None:
    house.create("p")
    id = house.inspect("p")["Id"]
    house.enable("p")
    make_group(f"/moorage/{id}.77")
    house.disable("p")
    assert groups_of(id) == set()


def make_group(path: str) -> list[Path]:
    directories = sorted(set(find_groups(path).values()))
    for directory in directories:
        directory.mkdir()
        if (directory / "cpuset.cpus").exists() and not (directory / "cpuset.cpus").read_text().strip():
            for name in ("cpuset.cpus", "cpuset.mems"):
                value = (directory.parent / name).read_text().strip() or (directory.parent.parent / name).read_text()
                (directory / name).write_text(value)
    return directories


@pytest.mark.sampled(1)
@pytest.mark.parametrize("earlier", [False, True])
def test_i17_without_containerd_all_runs_of_a_plugin_are_stopped(
    house: EngineProcess, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.create("p", config("ignore-term"))
    id = house.inspect("p")["Id"]
    house.request_own("PUT", "p", "policy", {"stop_timeout": 1})
    if earlier:
        house.end()
        monkeypatch.setattr(support.engines, "SERVE", EARLIER + support.engines.SERVE)
        house.start()
    house.enable("p")
    pid = house.more("p")["Pid"]
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as other:
        try:
            for directory in make_group(f"/moorage/{id}.77"):
                (directory / "cgroup.procs").write_text(str(other.pid))
            house.end(signal.SIGKILL)
            containerd = int((house.exec_root / "containerd/pid").read_text())
            os.kill(containerd, signal.SIGKILL)
            wait_until(lambda: not leftovers.is_alive(containerd), "containerd has exited")
            database = house.root / "containerd/io.containerd.metadata.v1.bolt/meta.db"
            data = database.read_bytes()
            database.write_bytes(b"x" * len(data))
            house.down()
            assert other.wait(limit(10)) == -signal.SIGTERM
        finally:
            other.kill()
    assert not leftovers.is_alive(pid)
    assert groups_of(id) == set()
    assert house.left() == []
    database.write_bytes(data)
    monkeypatch.undo()
    house.start()
    house.until("p", "ready")

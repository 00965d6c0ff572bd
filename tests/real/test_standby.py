"""A standby of a plugin's next run: a crash starts it, what it depends on discards it, and nothing of it is left."""

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from moorage.host.proc import mounts
from support import leftovers
from support.engines import EngineProcess, config, engine, kill
from support.foreground import containerd_has_loaded, wait_until
from support.leftovers import is_alive

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


@pytest.fixture(params=["each", "shared"])
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    with engine(tmp_path, shim=request.param) as made:
        yield made


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made


def with_standby(own: EngineProcess, document: dict[str, Any] | None = None) -> int:
    """Create and enable a plugin; the pid of its standby."""
    own.create("p", document)
    own.request_own("PUT", "p", "policy", {"standby": True})
    own.enable("p")
    return standby(own)


def standby(own: EngineProcess, but: int = 0) -> int:
    """The pid of the standby, another one than ``but``, once there is one."""
    own.wait_until(lambda: own.more("p")["StandbyPid"] not in (None, but), "it has a standby")
    return int(own.more("p")["StandbyPid"])


def crashed(own: EngineProcess, restarts: int = 1) -> Any:
    """What is known of the run that follows a crash."""
    own.crash("p", 7)
    own.until_restarted("p", restarts)
    more = own.more("p")
    assert more["LastExit"]["Code"] == 7
    return more


def mount_points(pid: int) -> list[str]:
    return [each.point for each in mounts(pid)]


def test_i17_a_crash_starts_the_standby_whose_output_and_exit_are_complete(own: EngineProcess) -> None:
    pid = with_standby(own, config("out=hello"))
    before = datetime.now(UTC)
    more = crashed(own)
    assert more["Pid"] == pid
    assert datetime.fromisoformat(more["StartedAt"]) > before, "its process is older than its run"
    own.wait_until(lambda: [line["text"] for line in own.logs("p")].count("hello") == 2, "its output is in the log")
    assert "VolumeDriver" in own.call("p", "Plugin.Activate")
    more = own.more("p")
    pid = standby(own)
    kill([more["Pid"]])
    own.until_restarted("p", 2)
    more = own.more("p")
    assert more["Pid"] == pid
    assert more["LastExit"]["Code"] == 128 + signal.SIGKILL
    own.disable("p")
    assert not is_alive(pid)
    own.remove("p")


def test_i17_a_standby_is_seen_with_its_memory_and_has_a_control_group_of_its_own(one: EngineProcess) -> None:
    pid = with_standby(one)
    found = one.request_own("GET", "p", "stats")
    assert found["StandbyMemoryBytes"] > 100_000
    more = one.more("p")
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert more["ControlGroup"] not in groups
    assert f"{one.inspect('p')['Id']}.2" in groups
    one.request_own("PUT", "p", "policy", {"standby": False})
    assert one.request_own("GET", "p", "stats")["StandbyMemoryBytes"] is None
    assert one.more("p")["StandbyPid"] is None
    assert not is_alive(pid)


def test_i17_a_source_that_was_replaced_is_seen_by_the_next_run(one: EngineProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mount = {"source": str(source), "destination": "/m", "type": "bind", "options": ["rbind", "rw"]}
    pid = with_standby(one, config(mounts=[mount]))
    source.rename(tmp_path / "old")
    source.mkdir()
    (source / "new").touch()
    more = crashed(one)
    assert more["Pid"] != pid
    assert (Path(f"/proc/{more['Pid']}/root/m/new")).exists()
    wait_until(lambda: not is_alive(pid), "the standby is discarded")
    standby(one)


def test_i17_files_of_the_network_that_were_replaced_are_seen_by_the_next_run(one: EngineProcess) -> None:
    pid = with_standby(one, config(network={"type": "host"}))
    copy = one.exec_root / "network/resolv.conf"
    copy.unlink()
    more = crashed(one)
    assert more["Pid"] != pid
    assert Path(f"/proc/{more['Pid']}/root/etc/resolv.conf").stat().st_ino == copy.stat().st_ino


def test_i17_new_limits_are_those_of_the_next_standby_and_run(one: EngineProcess) -> None:
    pid = with_standby(one)
    one.request_own("PUT", "p", "policy", {"pids": 77})
    assert not is_alive(pid)
    pid = standby(one, pid)
    assert crashed(one)["Pid"] == pid
    assert one.request_own("GET", "p", "stats")["PidsLimit"] == 77


@pytest.mark.parametrize("what", ["init", "shim"])
def test_i17_a_standby_that_is_killed_is_made_again_and_its_exit_is_none_of_the_plugin(
    one: EngineProcess, what: str
) -> None:
    pid, now = with_standby(one), one.more("p")
    victim = pid if what == "init" else shim_of(one, pid)
    os.kill(victim, signal.SIGKILL)
    again = standby(one, pid)
    more = one.more("p")
    assert (more["Pid"], more["Restarts"], more["LastExit"]) == (now["Pid"], 0, None)
    assert crashed(one)["Pid"] == again
    one.disable("p")


@pytest.mark.parametrize("what", ["init", "shim"])
def test_i17_a_crash_right_after_the_standby_was_killed_is_a_usual_one(one: EngineProcess, what: str) -> None:
    pid, now = with_standby(one), one.more("p")["Pid"]
    victim = pid if what == "init" else shim_of(one, pid)
    kill([victim, now])
    one.until_restarted("p", 1)
    assert one.more("p")["Pid"] not in (pid, now)
    assert one.more("p")["LastExit"]["Code"] == 128 + signal.SIGKILL
    standby(one, pid)
    one.disable("p")


def shim_of(one: EngineProcess, pid: int) -> int:
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent in leftovers.shims(one.namespace)
    return parent


def test_i17_what_a_run_has_mounted_is_the_same_for_a_standby(one: EngineProcess) -> None:
    pid = with_standby(one, config(propagatedMount="/volumes"))
    point = one.root / "plugins" / one.inspect("p")["Id"] / "propagated-mount" / "v"
    point.mkdir()
    assert os.system(f"mount -t tmpfs none {point}") == 0
    try:
        assert "/volumes/v" in mount_points(pid), "mounted after it was created"
        assert crashed(one)["Pid"] == pid
        assert "/volumes/v" in mount_points(pid)
    finally:
        assert os.system(f"umount {point}") == 0
    assert "/volumes/v" not in mount_points(pid)
    one.disable("p")


def test_i17_files_of_the_socket_directory_are_the_present_runs(one: EngineProcess) -> None:
    with_standby(one)
    assert crashed(one)["Pid"]
    standby(one)  # which has a socket directory of its own again
    status, _ = one.request("GET", "/moorage/v1/plugins/p/archive?path=/run/docker/plugins/")
    assert status == 200
    assert sorted(os.listdir(Path(one.more("p")["Socket"]).parent)) == ["plugin.sock"]


def test_i17_a_disable_while_a_standby_is_made_leaves_nothing(one: EngineProcess) -> None:
    one.create("p")
    one.request_own("PUT", "p", "policy", {"standby": True})
    for _ in range(3):
        one.enable("p")
        runtime = one.exec_root / "p" / one.inspect("p")["Id"][:12]
        one.wait_until((runtime / "n").exists, "a standby is being made")
        one.disable("p")
        assert not runtime.exists()


def test_i17_the_next_engine_makes_another_standby(one: EngineProcess) -> None:
    pid = with_standby(one)
    crashed(one)
    pid, more = standby(one), one.more("p")
    one.end()
    assert is_alive(pid)
    one.start()
    one.until("p", "ready")
    again = standby(one, pid)
    wait_until(lambda: not is_alive(pid), "the one of before is removed")
    assert one.more("p")["StartedAt"] == more["StartedAt"]
    assert crashed(one, 2)["Pid"] == again


def test_i17_a_restart_of_containerd_keeps_the_standby(one: EngineProcess) -> None:
    with_standby(one)
    (containerd,) = [int((one.exec_root / "containerd/pid").read_text())]
    os.kill(containerd, signal.SIGKILL)
    wait_until(lambda: not is_alive(containerd), "it is killed")
    wait_until(lambda: containerd_has_loaded(one.exec_root / "containerd"), "the next containerd is there")
    one.wait_until(lambda: one.info()["Moorage"]["Problem"] == "", "the engine has containerd again")
    one.until("p", "ready")
    pid = standby(one)
    one.wait_until(lambda: one.more("p")["StandbyPid"] == standby(one), "it is settled")
    assert crashed(one)["Pid"]
    assert pid


def test_i17_without_containerd_everything_is_stopped_at_once(one: EngineProcess) -> None:
    pid = with_standby(one)
    one.end(signal.SIGKILL)
    os.kill(int((one.exec_root / "containerd/pid").read_text()), signal.SIGKILL)
    one.down()
    assert not is_alive(pid)

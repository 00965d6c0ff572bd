"""``moorage volume`` over a real driver (FUSE), through the plugin proxy: mounts for owners, crashes, restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drivers import create_driver, driver_config
from support.engines import EngineProcess, Refused, engine
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


class Shell:
    """Gives commands to an engine with the volume driver ``d``."""

    def __init__(self, house: EngineProcess, data: Path) -> None:
        self.house = house
        self.data = data

    def give(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "moorage", "--host", str(self.house.socket), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)

    def run(self, *words: str) -> str:
        done = self.give("volume", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    def owners(self, volume: str = "data") -> list[str]:
        return [each["Consumer"] for each in json.loads(self.run("inspect", "--json", volume))["Mounts"]]

    def events(self) -> bytes:
        """Those up to now."""
        return self.house.request("GET", f"/events?since=1&until={time.time() + 1:.0f}")[1]

    def kill_plugin(self) -> None:
        """Kill it, and return when it is ready again."""
        before = self.house.more("d")
        os.kill(before["Pid"], signal.SIGKILL)
        self.house.until_restarted("d", before["Restarts"] + 1)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    data = tmp_path / "driver-data"
    data.mkdir()
    with engine(tmp_path) as house:
        create_driver(house, "d", driver_config("volume", data))
        made = Shell(house, data)
        yield made
        house.remove("d", force=True)


def test_v01_volumes_of_a_real_driver_are_created_listed_and_removed(shell: Shell) -> None:
    assert shell.run("create", "data", "-d", "d") == "data"
    assert shell.run("ls") == "DRIVER     VOLUME NAME\nd:latest   data"
    (found,) = json.loads(shell.run("inspect", "data"))
    assert shell.run("inspect", "-f", "{{.Name}}", "data").strip() == "data"
    assert (found["Name"], found["Driver"], found["Mounts"]) == ("data", "d:latest", [])
    assert shell.run("rm", "data") == "data"
    assert shell.run("ls", "-q") == ""
    assert "no such volume: data" in shell.give("volume", "inspect", "data").stderr


def test_v01_a_disabled_driver_is_not_queried_and_a_hung_one_is_named(shell: Shell, tmp_path: Path) -> None:
    shell.run("create", "data", "-d", "d")
    other = tmp_path / "other"
    other.mkdir()
    create_driver(shell.house, "hung", driver_config("volume", other, "hang=/VolumeDriver.List"))
    done = shell.give("volume", "ls", "-q")
    assert (done.returncode, done.stdout) == (1, "data\n")
    assert "driver hung:latest does not list its volumes" in done.stderr
    shell.house.disable("hung")
    assert shell.run("ls", "-q") == "data"
    shell.house.remove("hung", force=True)


def test_v02_a_mount_survives_the_engine_and_is_made_again_after_a_crash(shell: Shell) -> None:
    shell.run("create", "data", "-d", "d")
    path = Path(shell.run("mount", "data", "--id", "web"))
    assert Path(shell.run("mount", "data", "--id", "web")) == path
    (path / "file").write_text("content")
    assert shell.owners() == ["web"]

    shell.house.end(signal.SIGKILL)
    assert (path / "file").read_text() == "content"
    shell.house.start()
    assert shell.owners() == ["web"]

    shell.kill_plugin()
    wait_until(lambda: _reads(path / "file") == "content", "the volume is mounted again", limit(30))
    (mount,) = json.loads(shell.run("inspect", "--json", "data"))["Mounts"]
    assert mount["Stale"]
    assert mount["Problem"] == ""
    assert "web (stale)" in shell.run("ls")
    assert Path(shell.run("mount", "data", "--id", "other")) == path
    for owner in ("web", "other"):
        shell.run("unmount", "data", "--id", owner)
    assert shell.owners() == []
    assert not os.path.ismount(path)


def test_v02_what_was_mounted_or_released_is_known_to_the_next_call(shell: Shell) -> None:
    shell.run("create", "data", "-d", "d")
    path = "/moorage/v1/volumes/data"
    for number in range(20):
        shell.house.request_json("POST", f"{path}/mount", {"owner": f"owner {number}"})
        with pytest.raises(Refused, match=f"it is in use by owner {number}"):
            shell.house.request_json("DELETE", path)
        shell.house.request_json("POST", f"{path}/unmount", {"owner": f"owner {number}"})
        assert shell.house.more("d")["Mounts"] == []
    shell.house.request_json("DELETE", path)


def test_v04_p12_a_volume_and_its_driver_are_in_use_while_it_is_mounted(shell: Shell) -> None:
    shell.run("create", "data", "-d", "d")
    shell.run("mount", "data", "--id", "web")
    done = shell.give("volume", "rm", "data")
    assert (done.returncode, "it is in use by web" in done.stderr) == (1, True)
    done = shell.give("disable", "d")
    assert (done.returncode, "web: volume data, 1 mount" in done.stderr) == (1, True), done.stderr
    assert shell.run("rm", "-f", "data") == "data"
    assert shell.give("disable", "d").returncode == 0


def test_v05_secrets_of_options_are_in_no_log_and_no_event(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cr3t-of-a-file\n")
    secrets = ("-o", "password=s3cr3t-of-a-line", "--secret", f"token=@{tmp_path / 'password'}", "-o", "plain=visible")
    shell.run("create", "data", "-d", "d", *secrets)
    logs = [shell.house.log, *(path for path in shell.house.exec_root.rglob("*") if path.is_file())]
    text = "".join(path.read_text(errors="replace") for path in logs)
    assert "plain=visible" in text
    assert "s3cr3t" not in text
    shell.run("mount", "data", "--id", "web")
    shell.run("unmount", "data", "--id", "web")
    shell.run("rm", "data")
    wait_until(lambda: b"volume-remove" in shell.events(), "the events of the volume", limit(20))
    events = [json.loads(line) for line in shell.events().splitlines()]
    found = [(each["Action"], each["Actor"]["Attributes"]) for each in events if each["Action"].startswith("volume-")]
    assert [action.removeprefix("volume-") for action, _ in found] == ["create", "mount", "unmount", "remove"]
    assert {attributes["volume"] for _, attributes in found} == {"data"}
    assert [attributes.get("consumer") for _, attributes in found][1:3] == ["web", "web"]
    assert b"s3cr3t" not in shell.events()


def test_v03_a_volume_is_mounted_at_a_directory_and_released(shell: Shell, tmp_path: Path) -> None:
    shell.run("create", "data", "-d", "d")
    point = tmp_path / "point"
    point.mkdir()

    def helper(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        program = f"from moorage.cli.volumes.mount_helper import {name}; {name}()"
        environment = {**os.environ, "MOORAGE_HOST": str(shell.house.socket)}
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit(60), check=False)

    try:
        done = helper("mount", "d/data", str(point), "-o", "rw,_netdev")
        assert (done.returncode, done.stderr) == (0, "")
        (point / "file").write_text("content")
        assert (shell.data / "data/file").read_text() == "content"
        assert shell.owners() == [str(point)]
    finally:
        done = helper("umount", str(point))
    assert (done.returncode, done.stderr) == (0, "")
    assert shell.owners() == []


def _reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

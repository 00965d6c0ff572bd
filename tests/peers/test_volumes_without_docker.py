"""`moorage volume` with real drivers: for podman by a path, for containers of ctr, and for plain programs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peers.consumers import Consumers, Driver, Make, kill_plugin, plugin_name
from support.consumers import BUSYBOX
from support.engines import EngineProcess
from support.foreground import environment
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("podman", "busybox", "static-cc")]

Volume = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def volume(publisher: EngineProcess) -> Volume:
    """Types `moorage volume` with these words; the status is expected to be 0, or as it says."""

    def run(*words: str | Path, status: int = 0) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "moorage", "volume", *map(str, words)]
        surroundings = {**environment(None), "MOORAGE_HOST": str(publisher.socket)}
        done = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, timeout=limit(120), check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def driver(make: Make) -> Driver:
    return make("volume")


def test_v01_volumes_are_created_listed_and_removed(volume: Volume, driver: Driver) -> None:
    plugin = plugin_name(driver)
    assert volume("create", "one", "--driver", plugin, "-o", "size=1g").stdout == "one\n"
    volume("create", "two", "--driver", plugin)
    assert volume("ls", "-q").stdout == "one\ntwo\n"
    assert volume("ls", "--format", "{{.Driver}} {{.Name}}").stdout == f"{plugin} one\n{plugin} two\n"
    assert '"one"' in volume("inspect", "one").stdout
    assert volume("rm", "one", "two").stdout == "one\ntwo\n"
    assert volume("ls", "-q").stdout == ""
    assert list(driver.data.iterdir()) == []


def test_v01_a_silent_driver_delays_no_other(volume: Volume, driver: Driver, make: Make) -> None:
    hung = make("volume", "hang=/VolumeDriver.List")
    volume("create", "three", "--driver", plugin_name(driver))
    started = time.monotonic()
    done = volume("ls", "-q", status=1)
    assert time.monotonic() - started < limit(15)
    assert done.stdout == "three\n"
    assert plugin_name(hung) in done.stderr
    volume("rm", "three", "--driver", plugin_name(driver))


def test_v02_a_path_serves_any_program(
    consumers: Consumers, publisher: EngineProcess, volume: Volume, driver: Driver
) -> None:
    volume("create", "data", "--driver", plugin_name(driver))
    path = volume("mount", "data", "--id", "tests").stdout.strip()
    assert volume("mount", "data", "--id", "tests").stdout.strip() == path
    Path(path, "a").write_text("plain\n")
    assert consumers.podman.run("-v", f"{path}:/mnt", script="cat /mnt/a; echo podman >/mnt/b") == "plain\n"
    assert run_by_ctr(publisher, consumers.machine.directory, path, "cat /mnt/b; echo ctr >/mnt/c") == "podman\n"
    assert {each.name: each.read_text() for each in (driver.data / "data").iterdir()} == {
        "a": "plain\n", "b": "podman\n", "c": "ctr\n"
    }  # fmt: skip
    assert len(driver.mounts()) == 1
    volume("unmount", "data", "--id", "tests")
    assert driver.mounts() == set()
    volume("rm", "data")


def run_by_ctr(house: EngineProcess, directory: Path, path: str, script: str) -> str:
    """What a container of containerd prints that has a path of the host at /mnt."""
    root = directory / "ctr-root"
    if not root.exists():
        for name in ("bin", "mnt", "proc", "dev", "sys", "run"):
            (root / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin/busybox")
        for name in ("sh", "cat"):
            (root / "bin" / name).symlink_to("busybox")
    address = house.info()["Moorage"]["ContainerdAddress"]
    mount = f"type=bind,src={path},dst=/mnt,options=rbind:rw"
    run = ("run", "--rm", "--rootfs", f"--mount={mount}", str(root), "tests", "/bin/sh", "-ec", script)
    command = ["ctr", f"--address={address}", "--namespace=tests", *run]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_v02_mounts_outlive_engine_and_plugin(publisher: EngineProcess, volume: Volume, driver: Driver) -> None:
    plugin = plugin_name(driver)
    volume("create", "lasting", "--driver", plugin)
    path = Path(volume("mount", "lasting", "--id", "me").stdout.strip())
    publisher.end(signal.SIGKILL)
    (path / "a").write_text("while there is no engine\n")
    publisher.start()
    assert "me" in volume("ls").stdout
    before = publisher.more(plugin)["Restarts"]
    kill_plugin(publisher, driver)
    publisher.until_restarted(plugin, before + 1)
    publisher.wait_until(lambda: os.path.ismount(path) and (path / "a").exists(), "mounted again")
    assert (path / "a").read_text() == "while there is no engine\n"
    volume("unmount", "lasting", "--id", "me")
    assert not os.path.ismount(path)
    volume("rm", "lasting")


def test_v04_a_volume_in_use_is_not_removed(consumers: Consumers, volume: Volume, driver: Driver) -> None:
    volume("create", "used", "--driver", plugin_name(driver))
    path = volume("mount", "used", "--id", "backup of the night").stdout.strip()
    refused = volume("rm", "used", status=1)
    assert "backup of the night" in refused.stderr
    assert os.path.ismount(path)
    volume("unmount", "used", "--id", "backup of the night")
    consumers.podman("volume", "create", f"--driver={driver.name}", "of-podman")
    podman = consumers.podman
    podman("run", "-d", "--network=none", "--name=v04", "-v", "of-podman:/mnt", "localhost/busybox:1", "sleep", "1000")
    try:
        assert "podman" in volume("rm", "of-podman", status=1).stderr
    finally:
        podman("rm", "--force", "--time=0", "v04")
        podman("volume", "rm", "of-podman")
    volume("rm", "used")


def test_v05_secrets_are_masked(publisher: EngineProcess, volume: Volume, driver: Driver) -> None:
    refused = volume(
        "create",
        "secret",
        "--driver",
        plugin_name(driver),
        "-o",
        "password=hunter2x",
        "-o",
        "fail=it may not",
        status=1,
    )
    assert "hunter2x" not in publisher.log.read_text()
    volume("create", "secret", "--driver", plugin_name(driver), "-o", "password=hunter2x")
    assert "hunter2x" not in publisher.log.read_text() + volume("inspect", "secret").stdout
    assert "it may not" in refused.stderr
    volume("rm", "secret")

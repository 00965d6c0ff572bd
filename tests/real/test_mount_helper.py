"""``mount -t moorage`` and ``umount``, given to the real mount(8) and umount(8), which run the helpers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from moorage.api.server import serve_api
from moorage.engine.lifecycle import State
from moorage.host.mounts import is_mount_point
from moorage.plugins import parse_config
from support.fake_backend import FakeBackend
from support.fake_volumes import FakeVolumeDriver
from support.limits import limit
from support.mount_helpers import HELPERS, helpers_alone

pytestmark = pytest.mark.real

CONFIG = b'{"entrypoint": ["/p"], "interface": {"socket": "p.sock", "types": ["docker.volumedriver/1.0"]}}'


class House:
    """A volume driver, with its volumes in a directory, and a mount point."""

    def __init__(self, base: Path) -> None:
        self.socket = base / "m.sock"
        self.backend = FakeBackend()
        view = self.backend.add("d:latest", parse_config(CONFIG).config)
        self.backend.put(view, enabled=True, state=State.READY)
        self.driver = self.backend.drivers.setdefault(view.id, FakeVolumeDriver())
        self.driver.root = str(base / "volumes")
        for name in ("data", "more"):
            (base / "volumes" / name).mkdir(parents=True)
            self.driver.volumes[name] = {}
        (base / "volumes/data/file").write_text("content")
        self.point = base / "mount point"
        self.point.mkdir()

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "MOORAGE_HOST": str(self.socket)}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit(30), check=False)

    def mount(self, source: str = "d/data", options: str = "_netdev") -> "subprocess.CompletedProcess[str]":
        return self.run("mount", "-t", "moorage", source, str(self.point), "-o", options)

    @property
    def owners(self) -> list[str]:
        return [each.consumer for each in self.backend.get("d").mounts]


@pytest.fixture
def alone() -> Iterator[None]:
    """No other process of the tests changes the helpers of this machine."""
    with helpers_alone():
        yield


@pytest.fixture
def house(tmp_path: Path, alone: None) -> Iterator[House]:
    made = House(tmp_path)
    programs = [HELPERS / name for name in ("mount.moorage", "umount.moorage")]
    for program in programs:
        call = f"from moorage.cli.volumes.mount_helper import {program.stem} as run; run()"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{call}' \"$@\"\n")
        program.chmod(0o755)
    try:
        with (
            start_blocking_portal("asyncio") as portal,
            portal.wrap_async_context_manager(portal.call(serve_api, made.backend, made.socket, None)),
        ):
            yield made
    finally:
        while is_mount_point(made.point):
            subprocess.run(["umount", "-i", made.point], check=True)
        for program in programs:
            program.unlink()


def test_v03_mount_binds_the_volume_and_umount_releases_it(house: House) -> None:
    done = house.mount()
    assert (done.returncode, done.stderr) == (0, "")
    assert (house.point / "file").read_text() == "content"
    (house.point / "new").write_text("x")
    assert house.owners == [str(house.point).replace(" ", "%20")]
    done = house.run("umount", str(house.point))
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mount_point(house.point)
    assert house.owners == []


def test_v03_a_volume_can_be_mounted_read_only(house: House) -> None:
    assert house.mount(options="ro,nosuid").returncode == 0
    assert os.statvfs(house.point).f_flag & (os.ST_RDONLY | os.ST_NOSUID) == os.ST_RDONLY | os.ST_NOSUID
    with pytest.raises(OSError, match="Read-only"):
        (house.point / "new").write_text("x")
    assert house.run("umount", str(house.point)).returncode == 0


def test_v03_a_busy_mount_stays_and_its_volume_with_it(house: House) -> None:
    assert house.mount().returncode == 0
    with (house.point / "file").open():
        assert house.run("umount", str(house.point)).returncode == 32
        assert len(house.owners) == 1
        assert house.run("umount", "--lazy", str(house.point)).returncode == 0
    assert house.owners == []


@pytest.mark.parametrize(
    ("source", "options", "status", "said"),
    [
        ("data", "", 1, "give DRIVER/NAME"),
        ("other/data", "", 32, "cannot mount other/data: it names no volume driver; known are: d:latest"),
        ("d/missing", "", 32, "cannot mount d/missing: volume missing not found"),
        ("d/data", "sshcmd=x", 1, "unknown option sshcmd=x"),
    ],
)
def test_v03_what_cannot_be_mounted_is_reported_by_the_statuses_of_mount(
    house: House, source: str, options: str, status: int, said: str
) -> None:
    done = house.mount(source, options)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert done.stderr.startswith("mount.moorage: ")
    assert house.owners == []
    assert not is_mount_point(house.point)


def test_v03_two_volumes_are_not_mounted_at_one_directory(house: House) -> None:
    assert house.mount().returncode == 0
    done = house.mount("d/more")
    assert (done.returncode, "d:latest/data is mounted at" in done.stderr) == (32, True)
    assert house.run("umount", str(house.point)).returncode == 0


def test_v03_a_bind_that_fails_releases_the_volume(house: House) -> None:
    house.driver.root = "/nonexistent"
    assert house.mount().returncode != 0
    assert house.owners == []

"""``moorage publish`` on a real engine: sockets for consumers, and who may use them."""

import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drivers import create_driver, driver_config
from support.engines import EngineProcess, engine
from support.limits import limit
from support.local_user import USER, open_to_all, run_as_user

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

GROUP = "users"
CALL = """
import http.client, socket, sys
connection = http.client.HTTPConnection("plugin")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("POST", sys.argv[2], sys.argv[3])
print(connection.getresponse().read().decode())
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    data = tmp_path / "driver-data"
    data.mkdir()
    with engine(tmp_path) as made:
        create_driver(made, "d", driver_config("volume", data))
        yield made
        made.remove("d", force=True)


def moorage(house: EngineProcess, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "moorage", "--host", str(house.socket), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)


def call(socket: Path, method: str, body: str = "{}") -> object:
    done = subprocess.run(
        [sys.executable, "-c", CALL, socket, f"/{method}", body], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_p01_publish_makes_a_socket_that_answers_and_unpublish_removes_it(house: EngineProcess) -> None:
    done = moorage(house, "publish", "d", "--as", "a/b:1", "--as", "c")
    assert (done.returncode, done.stdout) == (0, "a/b:1\nc\n"), done.stderr
    for name in ("a/b:1", "c"):
        socket = house.published / f"{name}.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert call(socket, "Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert moorage(house, "publish", "d", "--as", "c").returncode == 0
    assert not (house.published / "a/b:1.sock").exists()
    assert moorage(house, "unpublish", "d").returncode == 0
    assert not (house.published / "c.sock").exists()


def test_p15_podman_knows_a_published_volume_driver(house: EngineProcess) -> None:
    assert moorage(house, "publish", "d", "--podman").returncode == 0
    assert f'"d:latest" = "{house.published}/d:latest.sock"' in house.podman_config.read_text()
    assert moorage(house, "publish", "d", "--no-podman").returncode == 0
    assert not house.podman_config.exists()
    assert moorage(house, "publish", "d", "--podman").returncode == 0
    house.remove("d", force=True)
    assert not house.podman_config.exists()
    create_driver(house, "d", driver_config("volume", house.root.parent / "driver-data"))


def test_p14_p19_members_of_the_group_use_the_socket_and_reach_the_mount(house: EngineProcess) -> None:
    gid = grp.getgrnam(GROUP).gr_gid
    open_to_all(house.root.parent)
    assert moorage(house, "publish", "d", "--group", GROUP).returncode == 0
    socket = house.published / "d:latest.sock"
    call(socket, "VolumeDriver.Create", '{"Name": "data", "Opts": {}}')
    answer = call(socket, "VolumeDriver.Mount", '{"Name": "data", "ID": "me"}')
    assert isinstance(answer, dict)
    point = Path(answer["Mountpoint"])
    (point / "file").write_text("content")
    user = ("/usr/bin/python3", "-c", CALL, str(socket), "/VolumeDriver.Path", '{"Name": "data"}')
    for groups, is_member in (([gid], True), ([], False)):
        found = run_as_user(*user, groups=groups)
        assert (found.returncode == 0, str(point) in found.stdout) == (is_member, is_member), found.stderr
        listed = run_as_user("cat", str(point / "file"), groups=groups)
        assert (listed.stdout == "content") == is_member, listed.stderr
        plugins = house.root / "plugins"
        assert run_as_user("ls", str(plugins), groups=groups).returncode != 0
        assert run_as_user("ls", str(plugins / house.inspect("d")["Id"]), groups=groups).returncode != 0
    call(socket, "VolumeDriver.Unmount", '{"Name": "data", "ID": "me"}')
    assert moorage(house, "unpublish", "d").returncode == 0
    directory = house.root / "plugins" / house.inspect("d")["Id"]
    assert (stat.S_IMODE(directory.stat().st_mode), directory.stat().st_gid) == (0o700, 0)
    assert USER not in os.getgroups()

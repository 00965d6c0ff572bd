"""Reports of users elsewhere, on a real engine: holders that leak, new plugins of old names, odd data directories."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.engines import EngineProcess, Refused, config

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

MOUNT_INSIDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY), 0) == 0
os.makedirs(sys.argv[2])
assert libc.mount(b"none", sys.argv[2].encode(), b"tmpfs", 0, None) == 0
open(f"{sys.argv[2]}/file", "w").write("from inside")
"""
"""Mounts at a path inside the mount namespace of a process; its program is loaded before it goes there."""


def test_case_006_a_hundred_holders_that_fail_leave_none(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    for number in range(100):
        if number % 2:
            with pytest.raises(Refused, match="400"):
                house.request_own("POST", "p", "holders", {"owner": ""})
        else:  # one who asks for it and is gone before it has the answer
            request_and_disconnect(house, b'{"owner": "gone"}')
    house.wait_until(lambda: house.more("p")["Holders"] == [], "none of them holds it")
    token = house.request_own("POST", "p", "holders", {"owner": "alive"})["Token"]
    with pytest.raises(Refused, match="409: plugin p:latest is in use by alive"):
        house.disable("p")
    house.request_own("DELETE", "p", f"holders/{token}")
    house.disable("p")
    house.enable("p")
    house.request_own("POST", "p", "holders", {"owner": "alive"})
    house.remove("p", force=True)


def request_and_disconnect(house: EngineProcess, owner: bytes) -> None:
    head = f"POST /moorage/v1/plugins/p/holders?attached=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(owner)}\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.socket))
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + owner)


def test_case_043_a_new_plugin_of_an_old_name_is_found_by_the_name(house: EngineProcess) -> None:
    seen = []
    for _ in range(2):
        house.create("p")
        house.enable("p")
        document = house.inspect("p")
        path = Path(document["Moorage"]["Socket"])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        seen.append((document["Id"], path))
        house.remove("p", force=True)
        assert not path.exists()
    assert len({id for id, _ in seen}) == len({path for _, path in seen}) == 2


@contextmanager
def on_a_disk(base: Path, point: Path, *options: str) -> Iterator[EngineProcess]:
    """An engine below ``base``, with a file system of its own at a directory there, whose mounts do not propagate."""
    made = EngineProcess(base)
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("mode=0755", *options)), "none", point], check=True)
    try:
        subprocess.run(["mount", "--make-private", point], check=True)
        try:
            yield made.start()
        finally:
            made.down()
    finally:
        subprocess.run(["umount", point], check=True)
    made.close()


@pytest.mark.parametrize("where", ["root of a private disk", "directory on a private disk"])
def test_case_046_a_mount_made_inside_is_seen_outside_on_any_data_directory(tmp_path: Path, where: str) -> None:
    base = tmp_path / "base"
    with on_a_disk(base, base / "data" if where.startswith("root") else base) as house:
        house.create("p", config(propagatedMount="/mnt/volumes"))  # a path that its root file system lacks
        house.enable("p")
        pid = str(house.more("p")["Pid"])
        subprocess.run([sys.executable, "-c", MOUNT_INSIDE, pid, "/mnt/volumes/v"], check=True)
        outside = Path(house.request_own("GET", "p", "path?path=/mnt/volumes/v/file")["Path"])
        assert outside.read_text() == "from inside"
        house.disable("p")
        assert not outside.exists()


def test_case_025_a_data_directory_without_exec_is_reported_at_the_start_and_plugins_run(tmp_path: Path) -> None:
    base = tmp_path / "base"
    with on_a_disk(base, base / "data", "noexec") as house:
        assert "mounted noexec" in house.log.read_text()
        house.create("p")
        house.enable("p")  # overlay does not inherit the flag
        assert house.state("p") == "ready"

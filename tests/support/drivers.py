"""Plugins of each kind that real consumers use: one static program, as a package for an engine or as a process.

A process of its own is the direct side of a comparison: what a consumer meets where no engine is between.
"""

import contextlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.engines import EngineProcess
from support.foreground import wait_until
from support.limits import limit

SOURCES = Path(__file__).with_name("drivers")
TYPES = {
    "volume": ["docker.volumedriver/1.0"],
    "log": ["docker.logdriver/1.0"],
    "authorization": ["docker.authz/1.0"],
    "network": ["docker.networkdriver/1.0", "docker.ipamdriver/1.0"],
    "metrics": ["docker.metricscollector/1.0"],
}
ACTIVATED = {
    "volume": "VolumeDriver",
    "log": "LogDriver",
    "authorization": "authz",
    "network": "NetworkDriver,IpamDriver",
    "metrics": "MetricsCollector",
}


@cache
def driver() -> bytes:
    """The program."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "driver")
        flags = ("-static", "-O1", "-s", "-Wall", "-Werror", "-pthread")
        subprocess.run(["gcc", *flags, "-o", program, *sorted(SOURCES.glob("*.c"))], check=True)
        return program.read_bytes()


def driver_config(kind: str, data: Path, *options: str, **fields: Any) -> dict[str, Any]:
    """The config of a driver whose data are in a directory of the host; its volumes' mounts are propagated."""
    settings: dict[str, Any] = {
        "description": f"a {kind} driver",
        "entrypoint": ["/driver", kind, f"types={ACTIVATED[kind]}", *options],
        "interface": {"types": TYPES[kind], "socket": "plugin.sock"},
        "network": {"type": "host" if kind == "network" else "none"},
        "mounts": [
            {"name": "data", "source": str(data), "destination": "/data", "type": "bind", "options": ["rbind", "rw"]}
        ],
    }
    if kind == "volume":
        settings["propagatedMount"] = "/mnt"
        settings["linux"] = {
            "capabilities": ["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"],
            "devices": [{"name": "fuse", "path": "/dev/fuse", "settable": ["path"]}],
        }
    if kind == "network":
        settings["linux"] = {"capabilities": ["CAP_NET_ADMIN"], "devices": []}
    return settings | fields


def driver_package(document: dict[str, Any]) -> bytes:
    """A package as a tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        raw = json.dumps(document).encode()
        for name, data, mode in (("config.json", raw, 0o644), ("rootfs/driver", driver(), 0o755)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def write_driver(directory: Path, document: dict[str, Any]) -> None:
    """A package as a new directory."""
    (directory / "rootfs").mkdir(parents=True)
    (directory / "rootfs/driver").write_bytes(driver())
    (directory / "rootfs/driver").chmod(0o755)
    (directory / "config.json").write_text(json.dumps(document))


def create_driver(house: EngineProcess, name: str, document: dict[str, Any]) -> None:
    """Create and enable it in an engine."""
    path = f"/plugins/create?name={quote(name, safe='')}"
    house.request_json("POST", path, driver_package(document), headers={"Content-Type": "application/x-tar"})
    house.enable(name)


@contextlib.contextmanager
def direct_driver(directory: Path, socket: Path, kind: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A driver without an engine: a process on this machine, whose data and mounts are below a directory."""
    program = directory / "driver"
    program.write_bytes(driver())
    program.chmod(0o755)
    for name in ("data", "mnt"):
        (directory / name).mkdir(exist_ok=True)
    paths = [f"socket={socket}", f"data={directory / 'data'}", f"at={directory / 'mnt'}"]
    with (directory / "driver.log").open("ab") as log:
        child = subprocess.Popen(
            [program, kind, f"types={ACTIVATED[kind]}", *paths, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(socket.exists, f"{kind} driver listens", limit(10))
        yield child
    finally:
        child.kill()
        child.wait()
        socket.unlink(missing_ok=True)
        for point in (directory / "mnt").iterdir():
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)

"""A plugin that tries what it is asked to (``attempts.c``), in an engine of a test."""

import io
import json
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from support.engines import EngineProcess

__all__ = ("add_attempts", "attempt", "attempts_program", "read_inside", "status_inside", "write_inside")

SOURCE = Path(__file__).with_name("attempts.c")


@cache
def attempts_program() -> bytes:
    """The static program."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "attempts")
        subprocess.run(["gcc", "-static", "-O1", "-s", "-Wall", "-o", program, SOURCE], check=True)
        return program.read_bytes()


def add_attempts(house: EngineProcess, name: str, *, enable: bool = True, policy: Any = None, **fields: Any) -> None:
    """Create such a plugin with these fields of its config, set its policy, and enable it."""
    document = {
        "description": "attempts",
        "entrypoint": ["/attempts"],
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"},
        "network": {"type": "none"},
        **fields,
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        files = (("config.json", json.dumps(document).encode(), 0o644), ("rootfs/attempts", attempts_program(), 0o755))
        for path, data, mode in files:
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
        for path in ("rootfs/mnt", "rootfs/run", "rootfs/tmp"):
            member = tarfile.TarInfo(path)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
    headers = {"Content-Type": "application/x-tar"}
    house.ask("POST", f"/plugins/create?name={name}", stream.getvalue(), headers=headers)
    if policy:
        house.ours("PUT", name, "policy", policy)
    if enable:
        house.enable(name)


def attempt(house: EngineProcess, name: str, what: str) -> int:
    """The error number of an attempt, 0 where it succeeded."""
    number = int(house.call(name, f"try/{what}"))
    assert number != 9999, f"there is no attempt {what}"
    return number


def write_inside(house: EngineProcess, name: str, path: str) -> int:
    """The error number of making a file inside a plugin."""
    return int(house.call(name, f"write{path}"))


def read_inside(house: EngineProcess, name: str, path: str) -> str:
    """What a plugin reads from a file."""
    return house.call(name, f"read{path}")


def status_inside(house: EngineProcess, name: str) -> dict[str, str]:
    """The fields of /proc/self/status as a plugin sees them."""
    lines = read_inside(house, name, "/proc/self/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

"""A plugin that tries what a request names (``attempts.c``), in an engine of a test."""

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from support.engines import EngineProcess, UnixConnection
from support.limits import limit

__all__ = (
    "Send",
    "add_attempts",
    "attempt",
    "attempts_config",
    "attempts_program",
    "attempts_tar",
    "read_inside",
    "sender_to",
    "status_inside",
    "write_inside",
)

_SECONDS = limit(60.0)
Send = Callable[[str], str]
"""Sends a request to such a plugin."""

SOURCE = Path(__file__).with_name("attempts.c")


@cache
def attempts_program() -> bytes:
    """The static program."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "attempts")
        subprocess.run(["gcc", "-static", "-O1", "-s", "-Wall", "-o", program, SOURCE], check=True)
        return program.read_bytes()


def sender_to(path: Path) -> Send:
    """Requests to a program that listens there."""

    def send(request: str) -> str:
        connection = UnixConnection(path, _SECONDS)
        try:
            connection.request("POST", f"/{request}")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    return send


def attempts_config(**fields: Any) -> dict[str, Any]:
    """The config of such a plugin, with these fields."""
    return {
        "description": "attempts",
        "entrypoint": ["/attempts"],
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"},
        "network": {"type": "none"},
        **fields,
    }


def attempts_tar(**fields: Any) -> bytes:
    """Such a plugin as a package."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        config = json.dumps(attempts_config(**fields)).encode()
        program = attempts_program()
        for path, data, mode in (
            ("config.json", config, 0o644),
            ("rootfs/attempts", program, 0o755),
            ("rootfs/set-uid", program, 0o4755),
        ):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
        for path in ("rootfs/mnt", "rootfs/run", "rootfs/tmp"):
            member = tarfile.TarInfo(path)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
    return stream.getvalue()


def add_attempts(house: EngineProcess, name: str, *, enable: bool = True, policy: Any = None, **fields: Any) -> None:
    """Create such a plugin with these fields of its config, set its policy, and enable it."""
    headers = {"Content-Type": "application/x-tar"}
    house.request_json("POST", f"/plugins/create?name={name}", attempts_tar(**fields), headers=headers)
    if policy:
        house.request_own("PUT", name, "policy", policy)
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

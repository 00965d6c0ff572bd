"""Files of apply for tests, and plugins in a registry that they name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.engines import EngineProcess, Refused, config
from support.limits import limit

__all__ = ("Done", "moorage_command", "push_version", "run_moorage")

Done = subprocess.CompletedProcess[str]


def push_version(house: EngineProcess, target: str, *arguments: str, **fields: Any) -> None:
    """Push a plugin that does this to a registry, as ``target``; the engine does not have it afterwards."""
    house.create("pushed:1", config(*arguments, **fields))
    status, raw = house.request("POST", f"/plugins/pushed:1/push?to={quote(target, safe='')}")
    lines = raw.splitlines()
    if status != 200 or "error" in json.loads(lines[-1]):
        raise Refused(status, raw.decode())
    house.remove("pushed:1")


def moorage_command(socket: Path, *words: str) -> list[str]:
    """The command line for an engine."""
    return [sys.executable, "-m", "moorage", "--host", f"unix://{socket}", *words]


def run_moorage(house: EngineProcess, *words: str, status: int = 0, stdin: str = "") -> Done:
    """Run a command that exits with this status."""
    command = moorage_command(house.socket, *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(90), input=stdin)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done

"""How a task ended, written into its directory before containerd is told to forget it.

The answer to the deletion may get lost with a connection, and whoever asked may be killed before it could be told.
"""

import json
from datetime import datetime
from pathlib import Path

from moorage.containerd.types import ProcessExit

_NAME = "exit.json"


def keep_exit(directory: Path, ended: ProcessExit) -> None:
    """Write it down. A directory that is gone has nobody to tell it to."""
    note = {"code": ended.code, "exited_at": ended.exited_at.isoformat() if ended.exited_at else None}
    new = directory / f"{_NAME}.new"
    try:
        new.write_text(json.dumps(note))
        new.replace(directory / _NAME)
    except (FileNotFoundError, NotADirectoryError):
        pass


def find_exit(directory: Path) -> ProcessExit | None:
    """What was written down; None where nothing was, or nothing that can be read."""
    try:
        note = json.loads((directory / _NAME).read_text())
        exited_at = note["exited_at"]
        return ProcessExit(int(note["code"]), datetime.fromisoformat(exited_at) if exited_at else None)
    except (OSError, ValueError, KeyError, TypeError):
        return None

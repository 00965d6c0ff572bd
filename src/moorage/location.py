"""Which engine a command means: its data directory, its run-time directory and its socket, from what was given.

What was not given is what the engine recorded at its start. Standard library only: every command line loads this.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moorage import errors

__all__ = ("DEFAULT_EXEC_ROOT", "DEFAULT_ROOT", "Location", "locate", "locate_by_socket")

DEFAULT_ROOT = Path("/var/lib/moorage")
DEFAULT_EXEC_ROOT = Path("/run/moorage")

_RECORD = "engine.json"
_SOCKET = "moorage.sock"


class LocationInformation(Protocol):
    """The part of the answer to GET /info that locates an engine."""

    @property
    def docker_root_dir(self) -> str:
        """The data directory."""

    @property
    def moorage(self) -> "EngineDirectories":
        """What Moorage adds to Docker's answer."""


class EngineDirectories(Protocol):
    """The part of Moorage's own information that locates an engine."""

    @property
    def exec_root(self) -> str:
        """The run-time directory; empty for an engine of an earlier version."""


Query = Callable[[], LocationInformation]
"""The answer of the engine at a socket to GET /info. Raises: MoorageError."""


@dataclass(frozen=True)
class Location:
    """Where one engine works."""

    root: Path
    exec_root: Path
    socket: Path
    """Where its API listens, as far as that is recorded."""


def locate(root: Path | None, exec_root: Path | None) -> Location:
    """The engine of these directories; None for one that was not given."""
    if root is None and exec_root is not None:
        found = _read(exec_root).get("root")
        root = Path(found) if isinstance(found, str) and found else None
    root = _absolute(root or DEFAULT_ROOT)
    if exec_root is None:
        found = _read(root).get("exec_root")
        exec_root = Path(found) if isinstance(found, str) and found else DEFAULT_EXEC_ROOT
    exec_root = _absolute(exec_root)
    return Location(root, exec_root, _socket(exec_root, root))


def locate_by_socket(socket: Path, query: Query) -> Location:
    """The engine whose API listens there: what it says, or where it does not answer, what it has left beside it.

    Raises: Denied where this user has no access; Unavailable where nothing says which engine that is.
    """
    beside = _read(socket.parent)
    if beside.get("socket") == str(socket) and isinstance(beside.get("root"), str):
        return Location(Path(beside["root"]), socket.parent, socket)
    try:
        info = query()
    except errors.Denied:
        raise
    except errors.MoorageError as error:
        raise errors.Unavailable(
            f"cannot determine which engine unix://{socket} is: it does not answer, and nothing beside it names its "
            f"data directory; give that with --root ({error})"
        ) from error
    root, exec_root = info.docker_root_dir, info.moorage.exec_root
    if not root or not exec_root:
        raise errors.Unavailable(
            f"cannot determine which engine unix://{socket} is: it is not of this version; give --root"
        )
    return Location(Path(root), Path(exec_root), socket)


def _socket(exec_root: Path, root: Path) -> Path:
    recorded = _read(exec_root)
    found = recorded.get("socket")
    if isinstance(found, str) and found and recorded.get("root") == str(root):
        return Path(found)
    return exec_root / _SOCKET


def _read(directory: Path) -> dict[str, Any]:
    """The engine's record in a directory; nothing where there is none of root's that this user can read."""
    try:
        with open(directory / _RECORD, "rb") as file:
            if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):
                return {}
            found = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))

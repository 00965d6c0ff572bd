"""How a task ended, asked of its shim, which knows it for as long as it lives.

From 1.7 on, a containerd that starts ends every shim in which nothing runs any more, and then nobody knows how that
ended. So while containerd is away the shim is asked, over the socket that containerd would use: ttrpc, on which one
request and its answer are a header of ten bytes and a message each.

Source: ttrpc's PROTOCOL.md; containerd's shim manager (``loadShims``) of 1.6, 1.7 and 2.x; the file ``address``, and
``bootstrap.json`` of 2.x, in the directory that a shim works in.
"""

import json
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd import _wire
from moorage.containerd._exit_note import find_exit, keep_exit
from moorage.containerd._proto import moorage_process_pb2, moorage_shim_pb2
from moorage.containerd._shims import find_shims
from moorage.containerd.types import ProcessExit

__all__ = ("ask_how_it_ended", "noting_ends")

log = logging.getLogger(__name__)

_WITHIN = 1.0  # seconds; a shim that is well answers within a millisecond
_REAPED = 0.1  # seconds in which a shim has noticed the end of a process; 4 ms are usual
_LOOK_AGAIN = 0.005
_LIMIT = 1 << 20  # bytes; an answer has some hundred
_REQUEST, _RESPONSE = 1, 2
_HEADER = struct.Struct(">IIBB")  # length, stream, kind, flags


@asynccontextmanager
async def noting_ends(namespace: str, id: str, directory: Path) -> AsyncIterator[None]:
    """Where containerd is away in this block, the end of a task, if it has ended, is kept in its directory."""

    def note() -> None:
        if directory.is_dir() and find_exit(directory) is None:
            ended = ask_how_it_ended(namespace, id, directory)
            if ended is not None:
                keep_exit(directory, ended)

    try:
        yield
    except errors.Unavailable:
        try:
            await run_blocking(note)
        except OSError as error:
            log.warning("cannot keep how %s ended: %s", id, error)
        raise


def ask_how_it_ended(namespace: str, id: str, directory: Path) -> ProcessExit | None:
    """The end of a task whose streams are in this directory; None for one that runs, or of which no shim tells.

    A shim of the same name that serves another containerd has its streams elsewhere, and is not heard. Blocks.
    """
    for pid, _ in find_shims(namespace, id):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, DecodeError):  # also of what it says
            deadline = time.monotonic() + _REAPED
            while state := _state(Path(f"/proc/{pid}/cwd"), id):
                if Path(state.stdout).parent != directory:
                    break
                if state.status == moorage_process_pb2.STOPPED:
                    return ProcessExit(state.exit_status, _wire.instant(state.exited_at))
                if not _is_dead(state.pid) or time.monotonic() > deadline:
                    break
                time.sleep(_LOOK_AGAIN)
    return None


def _state(directory: Path, id: str) -> moorage_shim_pb2.StateResponse | None:
    """What a shim that works there says of a task. Raises: much, where it says nonsense."""
    path, version = _endpoint(directory)
    request = moorage_shim_pb2.Request(
        service=f"containerd.task.v{version}.Task",
        method="State",
        payload=moorage_shim_pb2.StateRequest(id=id).SerializeToString(),
        timeout_nano=int(_WITHIN * 1e9),
    ).SerializeToString()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_WITHIN)
        connection.connect(path)
        connection.sendall(_HEADER.pack(len(request), 1, _REQUEST, 0) + request)
        length, _, kind, _ = _HEADER.unpack(_receive(connection, _HEADER.size))
        if kind != _RESPONSE or length > _LIMIT:
            raise ValueError(f"a message of kind {kind} with {length} bytes")
        response = moorage_shim_pb2.Response.FromString(_receive(connection, length))
    return None if response.status.code else moorage_shim_pb2.StateResponse.FromString(response.payload)


def _endpoint(directory: Path) -> tuple[str, int]:
    """The path of its socket, and the version of what it speaks there."""
    try:
        said = json.loads((directory / "bootstrap.json").read_bytes())
    except FileNotFoundError:
        said = {"address": (directory / "address").read_text(), "version": 2, "protocol": "ttrpc"}
    if said["protocol"] != "ttrpc":
        raise ValueError(f"a shim that speaks {said['protocol']}")
    return said["address"].removeprefix("unix://"), int(said["version"])


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise ConnectionError("the shim hung up")
        received += piece
    return received


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True

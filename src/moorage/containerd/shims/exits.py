"""The exit of a task that only its shim knows, and whether there is a task that only the list, or no list, shows.

From 1.7 on, a containerd that starts kills every shim in which nothing runs any more, and then the exit status
is lost. So while containerd is unavailable the shim is queried, over the socket that containerd would use: ttrpc, on
which one request and its answer are a header of ten bytes and a message each. The exit is recorded in the directory of
the task before containerd deletes the task, since the answer to the deletion may get lost with a connection, and the
process that requested it may be killed before it could record the answer.

Source: ttrpc's PROTOCOL.md; containerd's shim manager (``loadShims``) of 1.6, 1.7 and 2.x; the file ``address``, and
``bootstrap.json`` of 2.x, in the working directory of a shim.
"""

from __future__ import annotations  # messages are named in them, and are made when they are first used

import json
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from google.protobuf.message import DecodeError

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd._proto import moorage_process_pb2, moorage_shim_pb2
from moorage.containerd.calls import wire
from moorage.containerd.shims.processes import find_shims
from moorage.containerd.types import Process, ProcessExit, Status
from moorage.host import proc
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = (
    "KnownTasks",
    "find_recorded_exit",
    "find_task",
    "find_task_without_record",
    "preparing_queries",
    "query_exit",
    "record_exit",
    "recording_exit",
    "wait_for_exit",
)

log = logging.getLogger(__name__)

_EXIT_FILE = "exit.json"


def record_exit(directory: Path, exited: ProcessExit) -> None:
    """Record the exit in the directory of the task (blocking). A missing one is ignored: the task was deleted.

    A failure is logged: it must not prevent what the exit is recorded for.
    """
    record = {"code": exited.code, "exited_at": exited.exited_at.isoformat() if exited.exited_at else None}
    new = directory / f"{_EXIT_FILE}.new"
    try:
        new.write_text(json.dumps(record))
        new.replace(directory / _EXIT_FILE)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        log.warning("cannot record the exit of %s: %s", directory.name, error)


def find_recorded_exit(directory: Path) -> ProcessExit | None:
    """The recorded exit; None if none was recorded, or it cannot be read."""
    try:
        record = json.loads((directory / _EXIT_FILE).read_text())
        exited_at = record["exited_at"]
        return ProcessExit(int(record["code"]), datetime.fromisoformat(exited_at) if exited_at else None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class KnownTasks:
    """What containerd has said of tasks and cannot change any more, so that it is not queried again."""

    def __init__(self) -> None:
        self.exits: dict[str, ProcessExit] = {}
        """Of tasks that are stopped."""
        self.deleted: set[str] = set()
        """Ids whose tasks it has deleted for this process, and whose records it may still have."""

    def exit_of(self, id: str) -> tuple[int, datetime | None] | None:
        """Code and time of a task that is stopped; None for one of which that is not known."""
        return (self.exits[id].code, self.exits[id].exited_at) if id in self.exits else None

    def forget(self, id: str) -> None:
        """There is another task of this id, or none any more."""
        self.exits.pop(id, None)
        self.deleted.discard(id)


async def find_task(client: Client, id: str) -> Process | None:
    """The task, None if there is none; one of unknown status if its shim does not answer. Raises: Unavailable."""
    try:
        return await client.get_task(id)
    except errors.NotFound:
        return None
    except errors.Unavailable:
        raise
    except errors.MoorageError:
        return Process(id, id, 0, Status.UNKNOWN)


async def wait_for_exit(client: Client, id: str, within: float) -> None:
    """Return when the task has exited. Raises: Unavailable where it has not within so many seconds."""
    try:
        await client.wait(id, within=within)
    except errors.NotFound:
        pass
    except errors.Unavailable as error:
        raise errors.Unavailable(f"cannot stop container {id}, its process may still run: {error}") from error
    except errors.MoorageError:
        # The shim exited meanwhile; containerd then kills and removes the task itself.
        log.debug("waiting for the exit of %s failed", id, exc_info=True)


_SHIM_LIMIT = DEFAULT.shim_answer  # seconds; a healthy shim answers within a millisecond
_REAP_LIMIT = DEFAULT.shim_reap  # seconds within which a shim reaps a process; 4 ms are usual
_STATE_INTERVAL = 0.005
_MESSAGE_LIMIT = 1 << 20  # bytes; an answer has some hundred
_REQUEST, _RESPONSE = 1, 2
_HEADER = struct.Struct(">IIBB")  # length, stream, kind, flags


@asynccontextmanager
async def recording_exit(namespace: str, id: str, directory: Path) -> AsyncIterator[None]:
    """If containerd is unavailable in this block, the exit of the task, if it has exited, is recorded."""

    def query() -> None:
        if directory.is_dir() and find_recorded_exit(directory) is None:
            exited = query_exit(namespace, id, directory)
            if exited is not None:
                record_exit(directory, exited)

    try:
        yield
    except errors.Busy:
        raise
    except errors.Unavailable:
        try:
            await run_blocking(query)
        except OSError as error:
            log.warning("cannot record the exit of %s: %s", id, error)
        raise


@asynccontextmanager
async def preparing_queries() -> AsyncIterator[None]:
    """If containerd is lost in this block, the messages of a query are made at once.

    That takes longer than a query: a containerd that starts might have killed the shim before it is queried.
    """

    def make() -> None:
        for each in ("Request", "Response", "StateRequest", "StateResponse"):
            getattr(moorage_shim_pb2, each)

    try:
        yield
    except errors.Unavailable:
        with anyio.CancelScope(shield=True):
            await run_blocking(make)
        raise


def query_exit(namespace: str, id: str, directory: Path) -> ProcessExit | None:
    """The exit of a task whose streams are in this directory; None if it runs, or no shim answers (blocking).

    A shim of the same name that serves another containerd has its streams elsewhere, and is ignored.
    """
    for pid, _ in find_shims(namespace, id):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, DecodeError):  # malformed answers too
            deadline = time.monotonic() + _REAP_LIMIT
            while state := _state(proc.working_directory_path(pid), id):
                if Path(state.stdout).parent != directory:
                    break
                if state.status == moorage_process_pb2.STOPPED:
                    return ProcessExit(state.exit_status, wire.instant(state.exited_at))
                if not proc.has_exited(state.pid) or time.monotonic() > deadline:
                    break
                time.sleep(_STATE_INTERVAL)
    return None


async def find_task_without_record(client: Client, id: str) -> Status | None:
    """The state of a task whose record was deleted; None if there is none.

    The list may leave out a task whose shim does not answer. With a record, such a shim has a half-created task, which
    is none: containerd says of every other one that its shim does not answer.
    """
    for task in await client.list_tasks():
        if task.container_id == id:
            return task.status
    try:
        await client.get_container(id)
    except errors.NotFound:
        return Status.UNKNOWN if await run_blocking(lambda: _has_silent_shim(client, id)) else None
    return None


def _has_silent_shim(client: Client, id: str) -> bool:
    """Whether a shim of this container has processes and does not answer, so that their state is unknown (blocking)."""
    for pid, children in find_shims(client.namespace, id, client.address):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, DecodeError):  # malformed answers too
            try:
                if children:
                    _state(proc.working_directory_path(pid), id)
            except TimeoutError:
                return True
    return False


def _state(directory: Path, id: str) -> moorage_shim_pb2.StateResponse | None:
    """The state of a task, as the shim with this working directory reports it. A malformed answer raises anything."""
    path, version = _endpoint(directory)
    request = moorage_shim_pb2.Request(
        service=f"containerd.task.v{version}.Task",
        method="State",
        payload=moorage_shim_pb2.StateRequest(id=id).SerializeToString(),
        timeout_nano=int(_SHIM_LIMIT * 1e9),
    ).SerializeToString()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SHIM_LIMIT)
        connection.connect(path)
        connection.sendall(_HEADER.pack(len(request), 1, _REQUEST, 0) + request)
        length, _, kind, _ = _HEADER.unpack(_receive(connection, _HEADER.size))
        if kind != _RESPONSE or length > _MESSAGE_LIMIT:
            raise ValueError(f"a message of kind {kind} with {length} bytes")
        response = moorage_shim_pb2.Response.FromString(_receive(connection, length))
    return None if response.status.code else moorage_shim_pb2.StateResponse.FromString(response.payload)


def _endpoint(directory: Path) -> tuple[str, int]:
    """The path of the shim's socket, and the version of its API."""
    try:
        endpoint = json.loads((directory / "bootstrap.json").read_bytes())
    except FileNotFoundError:
        endpoint = {"address": (directory / "address").read_text(), "version": 2, "protocol": "ttrpc"}
    if endpoint["protocol"] != "ttrpc":
        raise ValueError(f"a shim that speaks {endpoint['protocol']}")
    return endpoint["address"].removeprefix("unix://"), int(endpoint["version"])


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise ConnectionError("the shim closed the connection")
        received += piece
    return received

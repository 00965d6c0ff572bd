"""A process beside the plugin's own, over one request: its input is the body, its output the answer, both as they come.

The answer is a row of frames: one byte of kind, four bytes of length (most significant first), and so many bytes.
Kinds: 0 JSON with the id and the pid, first; 1 standard output (all of it where there is a terminal); 2 standard error;
3 JSON with the exit code, last; 4 JSON with an error, last.
"""

import json
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
from aiohttp import web

from moorage import errors
from moorage.api.query import boolean, integer
from moorage.api.request import Request
from moorage.containerd.stdio import FifoReader

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess

__all__ = ("execute", "resize")

STARTED, OUT, ERR, EXIT, ERROR = range(5)

_MOST_CELLS = 10_000
_REST_OF_OUTPUT = 2.0
"""Seconds from the end of a process until its output is taken for ended. Source: moby daemon/monitor.go, of execs."""

Write = Callable[[int, bytes], Awaitable[None]]


async def execute(request: Request) -> web.StreamResponse:
    """POST exec. The query has ``command`` and ``env`` as JSON lists, ``tty``, and ``rows`` and ``columns`` with it."""
    command, environment = _texts(request, "command"), _texts(request, "env")
    terminal = boolean(request.query("tty"))
    size = _size(request) if request.query("rows") else None
    backend, name = request.backend, request.name
    async with (
        backend.execute(name, command, environment, terminal=terminal) as process,
        request.stream("application/vnd.moorage.exec") as response,
    ):

        async def write(kind: int, data: bytes) -> None:
            await response.write(struct.pack(">BI", kind, len(data)) + data)

        await write(STARTED, json.dumps({"Id": process.exec_id, "Pid": process.pid}).encode())
        if size:
            await process.resize(*size)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, request, process, terminal)
            end = await _copy_until_its_end(process, write)
            tasks.cancel_scope.cancel()
        await write(*end)
        await response.write_eof()
    return response


async def resize(request: Request) -> web.Response:
    """POST exec/{token}/resize."""
    await request.backend.resize(request.name, request.values["token"], *_size(request))
    return web.Response(status=204)


async def _feed(request: Request, process: "AddedProcess", terminal: bool) -> None:
    try:
        async for chunk in request.chunks():
            await process.write(chunk)
    except errors.MoorageError:
        pass  # the client is gone: the end of the answer is noticed elsewhere
    if not terminal:  # containerd would hang the terminal up
        await process.close_input()


async def _copy_until_its_end(process: "AddedProcess", write: Write) -> tuple[int, bytes]:
    """Pass its output on until it has ended, and all that was written by then; the last frame.

    What it has started may keep its output open: that is waited for as long as Docker does, and no longer.
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_copy_all, process, write)
        try:
            end = EXIT, json.dumps({"Code": (await process.wait()).code}).encode()
        except errors.MoorageError as error:
            end = ERROR, json.dumps({"message": f"the plugin ended, and the process with it: {error}"}).encode()
        tasks.cancel_scope.deadline = anyio.current_time() + _REST_OF_OUTPUT
    return end


async def _copy_all(process: "AddedProcess", write: Write) -> None:
    async def copy(reader: FifoReader, kind: int) -> None:
        while data := await reader.read():
            await write(kind, data)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(copy, process.stdout, OUT)
        if process.stderr is not None:
            tasks.start_soon(copy, process.stderr, ERR)


def _texts(request: Request, key: str) -> list[str]:
    try:
        found = json.loads(request.query(key) or "[]")
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"invalid {key}: it must be a JSON list of texts") from error
    if not isinstance(found, list) or not all(isinstance(each, str) and "\0" not in each for each in found):
        raise errors.Invalid(f"invalid {key}: it must be a JSON list of texts")
    if key == "env" and any("=" not in each for each in found):
        raise errors.Invalid("invalid env: each must be NAME=VALUE")
    return found


def _size(request: Request) -> tuple[int, int]:
    rows, columns = integer(request.query("rows")), integer(request.query("columns"))
    if not (0 < rows <= _MOST_CELLS and 0 < columns <= _MOST_CELLS):
        raise errors.Invalid(f"cannot make a terminal of {rows} rows and {columns} columns")
    return rows, columns

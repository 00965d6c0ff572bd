"""A process beside the plugin's own, over one request: the body is its input, the answer its output, as they come.

A body of type ``application/vnd.moorage.exec`` begins with one frame of kind 0, JSON with ``command``, ``env``,
``tty``, ``rows`` and ``columns``; all that follows is input. Without that type, the query has them, and all of the body
is input: the older form, whose arguments are bounded by the longest URL.

The answer is a row of frames: one byte of kind, four bytes of length (most significant first), and so many bytes.
Kinds: 0 JSON with the id and the pid, first; 1 standard output (all of it where there is a terminal); 2 standard error;
3 JSON with the exit code, last; 4 JSON with an error, last.
"""

import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from aiohttp import web
from msgspec import Struct

from moorage import errors
from moorage.api.query import boolean, integer, json_body
from moorage.api.request import BODY_BYTES, Request
from moorage.containerd.stdio import FifoReader

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess

__all__ = ("execute", "resize")

STARTED, OUT, ERR, EXIT, ERROR = range(5)

_MOST_CELLS = 10_000
_REST_OF_OUTPUT = 2.0
"""Seconds from the end of a process until its output is taken for ended. Source: moby daemon/monitor.go, of execs."""

_TYPE = "application/vnd.moorage.exec"
_LONGEST_TEXT = 128 * 1024 - 1
"""Bytes of one argument or variable. Source: linux/binfmts.h, MAX_ARG_STRLEN, without the end of the text."""


class _Wish(Struct, frozen=True):
    """What is to be run, and how."""

    command: list[str]
    env: list[str]
    tty: bool
    size: tuple[int, int] | None
    """Rows and columns of the terminal."""


Write = Callable[[int, bytes], Awaitable[None]]


async def execute(request: Request) -> web.StreamResponse:
    """POST exec."""
    wish = await _read_wish(request)
    backend, name = request.backend, request.name
    async with (
        backend.execute(name, wish.command, wish.env, terminal=wish.tty) as process,
        request.stream(_TYPE) as response,
    ):

        async def write(kind: int, data: bytes) -> None:
            await response.write(struct.pack(">BI", kind, len(data)) + data)

        await write(STARTED, json.dumps({"Id": process.exec_id, "Pid": process.pid}).encode())
        if wish.size:
            await process.resize(*wish.size)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, request, process, wish.tty)
            end = await _copy_until_its_end(process, write)
            tasks.cancel_scope.cancel()
        await write(*end)
        await response.write_eof()
    return response


async def resize(request: Request) -> web.Response:
    """POST exec/{token}/resize."""
    rows, columns = integer(request.query("rows"), 0), integer(request.query("columns"), 0)
    await request.backend.resize(request.name, request.values["token"], *_size(rows, columns))
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


async def _read_wish(request: Request) -> _Wish:
    """What is to be run. Raises: Invalid."""
    if request.http.headers.get("Content-Type", "").partition(";")[0].strip().lower() == _TYPE:
        kind, length = struct.unpack(">BI", await request.read_exactly(5))
        if kind != STARTED or length > BODY_BYTES:
            raise errors.Invalid(
                f"cannot read the request: its body must begin with a frame of kind 0 of at most {BODY_BYTES} bytes"
            )
        found = json_body(await request.read_exactly(length), "application/json", has_body=True)
        if not isinstance(found, dict):
            raise errors.Invalid("invalid JSON: the first frame must be an object")
    else:
        found = {key: _parse(request, key) for key in ("command", "env")}
        found |= {key: integer(request.query(key)) for key in ("rows", "columns") if request.query(key)}
        found["tty"] = boolean(request.query("tty"))
    command, environment = _texts(found, "command"), _texts(found, "env")
    if any("=" not in each for each in environment):
        raise errors.Invalid("invalid env: each must be NAME=VALUE")
    rows, columns = found.get("rows"), found.get("columns")
    return _Wish(command, environment, bool(found.get("tty")), None if rows is None else _size(rows, columns))


def _parse(request: Request, key: str) -> Any:
    try:
        return json.loads(request.query(key) or "[]")
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"invalid {key}: it must be a JSON list of texts") from error


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    values = found.get(key) or []
    if not isinstance(values, list) or not all(isinstance(each, str) and "\0" not in each for each in values):
        raise errors.Invalid(f"invalid {key}: it must be a JSON list of texts")
    for number, each in enumerate(values, 1):
        if (length := len(each.encode(errors="surrogateescape"))) > _LONGEST_TEXT:
            raise errors.Invalid(
                f"cannot use text {number} of {key}: it has {length} bytes, the kernel takes {_LONGEST_TEXT} at most"
            )
    return values


def _size(rows: Any, columns: Any) -> tuple[int, int]:
    if not (_is_length(rows) and _is_length(columns)):
        raise errors.Invalid(f"cannot make a terminal of {rows or 0} rows and {columns or 0} columns")
    return rows, columns


def _is_length(cells: Any) -> bool:
    return isinstance(cells, int) and 0 < cells <= _MOST_CELLS

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
from moorage.api.http.query import boolean, integer, json_body
from moorage.api.request import BODY_BYTES, Request
from moorage.api.schema.base import ErrorResponse, to_document
from moorage.api.schema.output import ExecExit, ExecStarted
from moorage.containerd.processes import ExecCommand
from moorage.containerd.stdio import FifoReader
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess

__all__ = ("MEDIA_TYPE", "execute", "resize")

STARTED, OUT, ERR, EXIT, ERROR = range(5)

_MOST_CELLS = 10_000
_REST_OF_OUTPUT = DEFAULT.added_process_output
"""Seconds from the exit of the command until its output counts as ended. Source: moby daemon/monitor.go, of execs."""

MEDIA_TYPE = "application/vnd.moorage.exec"
_LONGEST_TEXT = 128 * 1024 - 1
"""Bytes of one argument or variable. Source: linux/binfmts.h, MAX_ARG_STRLEN, without the end of the text."""


class _Command(Struct, frozen=True):
    """A command and its terminal."""

    command: ExecCommand
    size: tuple[int, int] | None
    """Rows and columns of the terminal."""


def _frame(value: object) -> bytes:
    return json.dumps(to_document(value)).encode()


Write = Callable[[int, bytes], Awaitable[None]]


async def execute(request: Request) -> web.StreamResponse:
    """POST exec."""
    exec_command = await _read_command(request)
    backend, name = request.backend, request.name
    async with (
        backend.execute(name, exec_command.command) as process,
        request.stream(MEDIA_TYPE) as response,
    ):

        async def write(kind: int, data: bytes) -> None:
            await response.write(struct.pack(">BI", kind, len(data)) + data)

        await write(STARTED, _frame(ExecStarted(process.exec_id, process.pid)))
        if exec_command.size:
            await process.resize(*exec_command.size)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, request, process, exec_command.command.terminal)
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
            end = EXIT, _frame(ExecExit((await process.wait()).code))
        except errors.MoorageError as error:
            end = ERROR, _frame(ErrorResponse(f"the plugin exited, and the command with it: {error}"))
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


async def _read_command(request: Request) -> _Command:
    """The command that a request has.

    Raises:
        errors.Invalid: there is none, or a part of it is of a wrong type
    """
    if request.http.headers.get("Content-Type", "").partition(";")[0].strip().lower() == MEDIA_TYPE:
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
        found |= {"tty": boolean(request.query("tty")), **{key: request.query(key) for key in ("user", "workdir")}}
    command, environment = _texts(found, "command"), _texts(found, "env")
    if any("=" not in each for each in environment):
        raise errors.Invalid("invalid env: each must be NAME=VALUE")
    rows, columns = found.get("rows"), found.get("columns")
    user, directory = (_text(found, key) for key in ("user", "workdir"))
    added = ExecCommand(command, environment, bool(found.get("tty")), user, directory)
    return _Command(added, None if rows is None else _size(rows, columns))


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


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key) or ""
    if not isinstance(value, str) or "\0" in value:
        raise errors.Invalid(f"invalid {key}: it must be a text")
    return value


def _size(rows: Any, columns: Any) -> tuple[int, int]:
    if not (_is_length(rows) and _is_length(columns)):
        raise errors.Invalid(f"cannot make a terminal of {rows or 0} rows and {columns or 0} columns")
    return rows, columns


def _is_length(cells: Any) -> bool:
    return isinstance(cells, int) and 0 < cells <= _MOST_CELLS

"""The progress of a long operation as Docker's clients read it: JSON objects, one a line, until it is done.

An operation that fails after the first byte ends with a line that has ``error`` and ``errorDetail``: the status of the
answer is out by then. ``errorDetail.code`` is the status that it would have had.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import anyio
from aiohttp import web
from msgspec import UNSET, UnsetType

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.api.http.errors import log_failure, status_of
from moorage.api.request import Request
from moorage.api.schema.base import from_document, to_document
from moorage.api.schema.packages import ErrorDetail, OperationResult, ProgressDetail, ProgressLine
from moorage.engine.installation import Operation
from moorage.packages.source import ProgressStep, ReportProgress
from moorage.timeouts import DEFAULT

__all__ = ("stream_operation", "stream_progress")

_EVERY = 0.1  # seconds between two writes: a count of bytes is for people
_LAST_LINES = DEFAULT.last_progress  # seconds that a client has to read the end; a name is reserved until then


async def stream_operation(
    request: Request, operation: AbstractAsyncContextManager[Operation], *, has_name: bool = False
) -> web.StreamResponse:
    """Run an operation and stream its progress; with ``has_name`` a header names its plugin, for the docker CLI.

    Raises:
        MoorageError: What the operation refuses before its first line of progress.
    """

    async def run() -> web.StreamResponse:
        async with operation as started:
            headers = {"Docker-Plugin-Name": started.name} if has_name else None
            return await stream_progress(request, started.run, headers)

    return await request.while_connected(run)


async def stream_progress(
    request: Request,
    operation: Callable[[ReportProgress], Awaitable[Mapping[str, object] | None]],
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Run it and stream its progress and result. It is cancelled when the client disconnects, or the server stops."""
    async with request.stream("application/json", headers) as response:
        lines = _Lines()
        async with background_tasks() as tasks:
            tasks.start_soon(lines.write_to, response)
            try:
                if (aux := await operation(lines.report)) is not None:
                    lines.end(
                        ProgressLine(progress_detail=ProgressDetail(), aux=from_document(dict(aux), OperationResult))
                    )
            except Exception as error:  # noqa: BLE001 - reported to the client, and logged
                lines.end(_failure(error, f"{request.http.method} {request.http.rel_url.raw_path}"))
        with anyio.move_on_after(_LAST_LINES):
            await lines.flush(response)
    return response


class _Lines:
    """What is to be written. Of the counts of a blob only the newest is."""

    def __init__(self) -> None:
        self._lines: list[ProgressLine] = []
        self._counts: dict[str, ProgressStep] = {}
        self._lock = anyio.Lock()

    def report(self, progress: ProgressStep) -> None:
        """Note a step. Never waits."""
        if progress.total:
            self._counts[progress.id] = progress
            return
        if (count := self._counts.pop(progress.id, None)) is not None:
            self._lines.append(_to_line(count))
        self._lines.append(_to_line(progress))

    def end(self, line: ProgressLine) -> None:
        """Note the last line."""
        self._settle()
        self._lines.append(line)

    def _settle(self) -> None:
        self._lines += map(_to_line, self._counts.values())
        self._counts.clear()

    async def write_to(self, response: web.StreamResponse) -> None:
        """Write what comes, as it comes, until the client is gone."""
        try:
            while True:
                await self.flush(response)
                await anyio.sleep(_EVERY)
        except ConnectionResetError:
            pass  # the watcher of the connection cancels the operation

    async def flush(self, response: web.StreamResponse) -> None:
        """Write what was noted."""
        async with self._lock:
            self._settle()
            lines, self._lines = self._lines, []
            if lines:
                await response.write(b"".join(json.dumps(to_document(line)).encode() + b"\r\n" for line in lines))


def _to_line(progress: ProgressStep) -> ProgressLine:
    detail: ProgressDetail | UnsetType = UNSET
    if progress.is_of_blob:
        detail = ProgressDetail(progress.current, progress.total) if progress.total else ProgressDetail()
    return ProgressLine(status=progress.status, progress_detail=detail, id=progress.id or UNSET)


def _failure(error: Exception, what: str) -> ProgressLine:
    message = log_failure(error, what)
    is_rolled_back = isinstance(error, errors.MoorageError) and error.is_rolled_back
    detail = ErrorDetail(status_of(error), message, is_rolled_back or UNSET)
    return ProgressLine(error_detail=detail, error=message)

"""The progress of a long operation as Docker's clients read it: JSON objects, one a line, while it goes on.

An operation that fails after the first byte ends with a line that has ``error`` and ``errorDetail``: the status of the
answer is out by then. ``errorDetail.code`` is the status that it would have had.
"""

import json
from collections.abc import Awaitable, Callable, Mapping

import anyio
from aiohttp import web

from moorage._lib.groups import background_tasks
from moorage.api.errors import log_failure, status_of
from moorage.api.request import Request
from moorage.distribution.source import Progress, Report

__all__ = ("stream_progress",)

_EVERY = 0.1  # seconds between two writes: a count of bytes is for people
_LAST_LINES = 10.0  # seconds that a client has to read the end; a name is reserved until then


async def stream_progress(
    request: Request,
    operation: Callable[[Report], Awaitable[Mapping[str, object] | None]],
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Do it and tell of it, at last what it returns. It is cancelled when the client goes away, or the server ends."""
    async with request.stream("application/json", headers) as response:
        lines = _Lines()
        async with background_tasks() as tasks:
            tasks.start_soon(lines.write_to, response)
            try:
                if (aux := await operation(lines.report)) is not None:
                    lines.end({"progressDetail": {}, "aux": dict(aux)})
            except Exception as error:  # noqa: BLE001 - told to the client, and logged as the server logs it
                lines.end(_failure(error, f"{request.http.method} {request.http.rel_url.raw_path}"))
        with anyio.move_on_after(_LAST_LINES):
            await lines.flush(response)
    return response


class _Lines:
    """What is to be written. Of the counts of a blob only the newest is."""

    def __init__(self) -> None:
        self._lines: list[dict[str, object]] = []
        self._counts: dict[str, Progress] = {}
        self._lock = anyio.Lock()

    def report(self, progress: Progress) -> None:
        """Note a step. Never waits."""
        if progress.total:
            self._counts[progress.id] = progress
            return
        if (count := self._counts.pop(progress.id, None)) is not None:
            self._lines.append(_to_api(count))
        self._lines.append(_to_api(progress))

    def end(self, line: dict[str, object]) -> None:
        """Note the last line."""
        self._settle()
        self._lines.append(line)

    def _settle(self) -> None:
        self._lines += map(_to_api, self._counts.values())
        self._counts.clear()

    async def write_to(self, response: web.StreamResponse) -> None:
        """Write what comes, as it comes, until the client is gone."""
        try:
            while True:
                await self.flush(response)
                await anyio.sleep(_EVERY)
        except ConnectionResetError:
            pass  # whoever watches the connection ends the operation

    async def flush(self, response: web.StreamResponse) -> None:
        """Write what was noted."""
        async with self._lock:
            self._settle()
            lines, self._lines = self._lines, []
            if lines:
                await response.write(b"".join(json.dumps(line).encode() + b"\r\n" for line in lines))


def _to_api(progress: Progress) -> dict[str, object]:
    made: dict[str, object] = {"status": progress.status}
    if progress.is_of_blob:
        made["progressDetail"] = {"current": progress.current, "total": progress.total} if progress.total else {}
    if progress.id:
        made["id"] = progress.id
    return made


def _failure(error: Exception, what: str) -> dict[str, object]:
    message = log_failure(error, what)
    return {"errorDetail": {"code": status_of(error), "message": message}, "error": message}

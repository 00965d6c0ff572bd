"""Docker's progress streams: one JSON object a line while an operation goes on, and its failure as the last one."""

import json
import math
from collections.abc import Awaitable, Callable, Mapping

import anyio
from aiohttp import web
from anyio.streams.memory import MemoryObjectSendStream

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage.api.request import Request
from moorage.distribution.source import Progress, Report

__all__ = ("progress_to_api", "stream_progress")

Aux = Mapping[str, object] | None

_BEHIND = 256  # lines that wait for a slow reader; those that only count bytes are left out then


class _Outcome:
    """The operation beside the answer that tells of it."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        """Happens at its first word, or at its end."""
        self.failure: Exception | None = None
        self.aux: Aux = None

    async def run(self, work: Callable[[Report], Awaitable[Aux]], lines: MemoryObjectSendStream[Progress]) -> None:
        """Do it; what it raises is kept."""

        def report(progress: Progress) -> None:
            if not progress.total or lines.statistics().current_buffer_used < _BEHIND:
                lines.send_nowait(progress)
            self.begun.set()

        with lines:
            try:
                self.aux = await work(report)
            except Exception as error:  # noqa: BLE001 - raised, or told, where the answer is made
                self.failure = error
        self.begun.set()


async def stream_progress(request: Request, work: Callable[[Report], Awaitable[Aux]]) -> web.StreamResponse:
    """What ``work`` reports, line by line, then what it returns as ``aux``. It is cancelled where the client goes.

    Raises: what it raises before its first word; after that its failure is the last line, as Docker has it (A04).
    """
    outcome = _Outcome()
    send, receive = anyio.create_memory_object_stream[Progress](math.inf)
    async with background_tasks() as tasks:
        tasks.start_soon(outcome.run, work, send)
        await request.while_connected(outcome.begun.wait)
        if outcome.failure is not None and not receive.statistics().current_buffer_used:
            raise outcome.failure
        async with request.stream("application/json") as response:
            async for progress in receive:
                await response.write(_line(progress_to_api(progress)))
            if outcome.failure is not None:
                await response.write(_line(_failure(outcome.failure)))
            elif outcome.aux is not None:
                await response.write(_line({"progressDetail": {}, "aux": dict(outcome.aux)}))
    return response


def progress_to_api(progress: Progress) -> dict[str, object]:
    """A step as Docker's clients read it."""
    if not progress.id:
        return {"status": progress.status}
    detail = {"current": progress.current, "total": progress.total} if progress.total else {}
    return {"status": progress.status, "progressDetail": detail, "id": progress.id}


def _failure(error: Exception) -> dict[str, object]:
    known = isinstance(error, errors.MoorageError)
    message = str(error) if known else "moorage failed in a way that it did not foresee; its log says more"
    return {"errorDetail": {"message": message}, "error": message}


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode() + b"\r\n"

"""The route for the output of a plugin."""

from aiohttp import web

from moorage import errors
from moorage.api.conversion import to_log_line
from moorage.api.http.query import boolean, instant, integer
from moorage.api.request import Request, json_line

__all__ = ("read",)


async def read(request: Request) -> web.StreamResponse:
    """GET logs: one JSON object a line."""
    tail = integer(request.query("tail")) if request.query("tail") not in ("", "all") else None
    if tail is not None and tail < 0:
        raise errors.Invalid(f"cannot show {tail} lines")
    since = instant(request.query("since"), "since")
    follow = boolean(request.query("follow"))
    reading = request.backend.logs(request.name, tail=tail, since=since, follow=follow)
    async with reading as lines, request.stream("application/x-ndjson") as response:
        async for line in lines:
            await response.write(json_line(to_log_line(line)))
    return response

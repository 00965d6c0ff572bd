"""Routes for what a plugin prints, and for its resource usage."""

from contextlib import suppress

from aiohttp import web

from moorage import errors
from moorage.api.conversion import to_log_line, to_stats
from moorage.api.http.query import boolean, instant, integer
from moorage.api.request import Request, json_answer, json_line

__all__ = ("logs", "stats", "stats_of_all")


async def logs(request: Request) -> web.StreamResponse:
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


async def stats(request: Request) -> web.Response:
    """GET stats of one plugin."""
    usage = await request.backend.usage(request.name)
    return json_answer(to_stats(request.backend.get(request.name), usage))


async def stats_of_all(request: Request) -> web.Response:
    """GET stats of every plugin that runs."""
    found = []
    for plugin in request.backend.list():
        with suppress(errors.Conflict, errors.NotFound):  # not running, or removed meanwhile
            found.append(to_stats(plugin, await request.backend.usage(plugin.id)))
    return json_answer(found)

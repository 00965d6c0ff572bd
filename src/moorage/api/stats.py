"""Routes for resource usage: of one plugin, or of each one that runs."""

from contextlib import suppress

from aiohttp import web

from moorage import errors
from moorage.api.conversion import to_stats
from moorage.api.request import Request, json_answer

__all__ = ("of_all", "of_one")


async def of_one(request: Request) -> web.Response:
    """GET stats of one plugin."""
    usage = await request.backend.usage(request.name)
    return json_answer(to_stats(request.backend.get(request.name), usage))


async def of_all(request: Request) -> web.Response:
    """GET stats of every plugin that runs."""
    found = []
    for plugin in request.backend.list():
        with suppress(errors.Conflict, errors.NotFound):  # not running, or removed meanwhile
            found.append(to_stats(plugin, await request.backend.usage(plugin.id)))
    return json_answer(found)

"""Routes for holders: users of a plugin, while which it is not disabled or removed."""

import anyio
from aiohttp import web

from moorage import errors
from moorage.api.conversion import to_holder
from moorage.api.http.query import boolean
from moorage.api.request import Request, json_answer, json_line
from moorage.api.schema.plugins import HolderLine, HolderRequest
from moorage.timeouts import DEFAULT

__all__ = ("add", "list_all", "remove")

_RELEASE_SECONDS = DEFAULT.release
"""Time to wait for other operations of the plugin when an attached holder disconnects."""


async def list_all(request: Request) -> web.Response:
    """GET holders."""
    return json_answer([to_holder(each) for each in request.backend.get(request.name).holders])


async def add(request: Request) -> web.StreamResponse:
    """POST holders. An attached holder lasts as long as the answer, whose first line it is.

    A second line asks the holder to release: a forced disable or remove waits a few seconds for that. Source: case 106.
    """
    owner = (await request.read(HolderRequest)).owner
    if not owner or not owner.strip():
        raise errors.Invalid("cannot add a holder: missing field 'owner'")
    is_attached = boolean(request.query("attached"))
    holder = await request.backend.acquire(request.name, owner, is_attached=is_attached)
    made = to_holder(holder)
    if not is_attached:
        return json_answer(made, 201)
    try:
        async with request.stream("application/x-ndjson") as response:
            await response.write(json_line(made))
            await request.backend.wait_release_requested(request.name, holder.token)
            await response.write(json_line(HolderLine(event="stopping")))
            await anyio.sleep_forever()  # the holder releases by closing the connection
    finally:
        with anyio.move_on_after(_RELEASE_SECONDS, shield=True):
            try:
                await request.backend.release(request.name, holder.token)
            except errors.NotFound:
                pass  # a forced disable released it, or the plugin is removed
    return response


async def remove(request: Request) -> web.Response:
    """DELETE holders/{token}."""
    await request.backend.release(request.name, request.values["token"])
    return web.Response(status=204)

"""Routes for packages that are here or come in archives: Docker's push, and ours for names, archives and the disk."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from aiohttp import web

from moorage import errors
from moorage.api.progress import stream_progress
from moorage.api.query import texts
from moorage.api.request import Request, json_answer
from moorage.api.wire import loaded_to_api, pruned_to_api, usage_to_api
from moorage.distribution.auth import Credentials, decode_registry_auth
from moorage.engine.arrivals import Loaded
from moorage.engine.packages import Operation

__all__ = ("create_from", "df", "load", "prune", "push", "save", "save_listed", "tag")


async def push(request: Request) -> web.StreamResponse:
    """POST /plugins/{name}/push. ``to`` is ours: where it goes, if that is not its name."""
    moving = request.backend.moving
    return await _run(request, moving.push(request.name, request.query("to"), _credentials(request)))


async def tag(request: Request) -> web.Response:
    """POST tag: a further name. DELETE /plugins/{name} with it takes it away."""
    if not request.query("to"):
        raise errors.Invalid("cannot name a plugin nothing: give the name, as in ?to=NAME")
    await request.backend.moving.tag(request.name, request.query("to"))
    return web.Response(status=204)


async def save(request: Request) -> web.StreamResponse:
    """GET save: an OCI archive of every plugin that is named in the query."""
    return await _save(request, [each for each in request.http.query.getall("name", []) if each])


async def save_listed(request: Request) -> web.StreamResponse:
    """POST save: the same, of the names in the body, of which there may be any number."""
    document = await request.json()
    if not isinstance(document, dict) or set(document) != {"names"}:
        raise errors.Invalid('invalid JSON: the body must be an object with "names"')
    return await _save(request, [each for each in texts(document["names"], "names of plugins") if each])


async def _save(request: Request, names: Sequence[str]) -> web.StreamResponse:
    async with (
        request.backend.moving.save(names) as chunks,
        request.stream("application/x-tar") as response,
    ):
        async for chunk in chunks:
            await response.write(chunk)
    return response


async def load(request: Request) -> web.Response:
    """POST load: every plugin of an OCI archive, or none. A client that goes away before the answer has none."""
    loaded: list[Sequence[Loaded]] = []

    async def work() -> None:
        loaded.append(await request.backend.arrivals.load(request.upload(), request.query("name")))

    await request.while_connected(work)
    return json_answer([loaded_to_api(each) for each in loaded[0]])


async def create_from(request: Request) -> web.StreamResponse:
    """POST create: a plugin of a container image."""
    name, remote = request.query("name"), request.query("remote")
    credentials = _credentials(request)
    return await _run(request, request.backend.arrivals.create_from(name, request.upload(), remote, credentials))


async def _run(request: Request, operation: AbstractAsyncContextManager[Operation]) -> web.StreamResponse:
    """Do it and tell of it. Raises: what can be refused before the first word."""
    made: list[web.StreamResponse] = []

    async def work() -> None:
        async with operation as begun:
            made.append(await stream_progress(request, begun.run))

    await request.while_connected(work)
    return made[0]


def _credentials(request: Request) -> Credentials:
    return decode_registry_auth(request.http.headers.get("X-Registry-Auth", ""))


async def df(request: Request) -> web.Response:
    """GET df: what plugins take of the disk."""
    return json_answer(usage_to_api(await request.backend.moving.usage()))


async def prune(request: Request) -> web.Response:
    """POST prune: remove what nothing refers to."""
    return json_answer(pruned_to_api(await request.backend.moving.prune()))

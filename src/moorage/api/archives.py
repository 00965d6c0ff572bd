"""Routes for plugins in archives: save and load, and create from a container image."""

from collections.abc import Sequence

from aiohttp import web

from moorage import errors
from moorage.api.conversion import to_loaded_plugin
from moorage.api.http.query import match_fields, texts
from moorage.api.progress import stream_operation
from moorage.api.request import Request, json_answer, registry_credentials
from moorage.api.schema.packages import SaveRequest

__all__ = ("create_from", "load", "read_files", "save", "save_listed", "write_files")


async def save(request: Request) -> web.StreamResponse:
    """GET save: an OCI archive of every plugin that is named in the query."""
    return await _save(request, [each for each in request.http.query.getall("name", []) if each])


async def save_listed(request: Request) -> web.StreamResponse:
    """POST save: the same, of the names in the body, of which there may be any number."""
    fields = match_fields(await request.json(), SaveRequest)
    if "names" not in fields:
        raise errors.Invalid("invalid JSON: missing field 'names'")
    return await _save(request, [each for each in texts(fields["names"], "names of plugins") if each])


async def read_files(request: Request) -> web.StreamResponse:
    """GET archive: a file or a directory of a plugin, below its own name."""
    async with (
        request.backend.read_files(request.name, request.query("path") or "/") as chunks,
        request.stream("application/x-tar") as response,
    ):
        async for chunk in chunks:
            await response.write(chunk)
    return response


async def write_files(request: Request) -> web.Response:
    """PUT archive: the body is unpacked into a directory of a plugin."""
    path = request.query("path") or "/"
    await request.while_connected(lambda: request.backend.write_files(request.name, path, request.upload()))
    return web.Response(status=204)


async def _save(request: Request, names: Sequence[str]) -> web.StreamResponse:
    async with (
        request.backend.transfers.save(names) as chunks,
        request.stream("application/x-tar") as response,
    ):
        async for chunk in chunks:
            await response.write(chunk)
    return response


async def load(request: Request) -> web.Response:
    """POST load: every plugin of an OCI archive, or none. A client that disconnects before the answer loads none."""
    loaded = await request.while_connected(
        lambda: request.backend.transfers.load(request.upload(), request.query("name"))
    )
    return json_answer([to_loaded_plugin(each) for each in loaded])


async def create_from(request: Request) -> web.StreamResponse:
    """POST create: a plugin of a container image."""
    name, remote = request.query("name"), request.query("remote")
    credentials = registry_credentials(request)
    operation = request.backend.transfers.create_from(name, request.upload(), remote, credentials)
    return await stream_operation(request, operation)

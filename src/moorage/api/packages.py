"""Routes for plugins' packages: push as Docker has it, and ours for names, archives and the disk."""

from aiohttp import web

from moorage import errors
from moorage.api.progress import stream_progress
from moorage.api.request import Request, json_answer
from moorage.api.wire import pruned_to_api, usage_to_api
from moorage.distribution.auth import decode_registry_auth
from moorage.distribution.source import Progress, Report

__all__ = ("df", "prune", "push", "save", "tag")


async def push(request: Request) -> web.StreamResponse:
    """POST /plugins/{name}/push. ``to`` is ours: where it goes, if that is not its name."""
    credentials = decode_registry_auth(request.http.headers.get("X-Registry-Auth", ""))
    packages = request.backend.packages
    target = packages.target(request.name, request.query("to"))

    async def work(report: Report) -> dict[str, object]:
        report(Progress(f"The push refers to repository [{target.familiar_name}]"))
        pushed = await packages.push(request.name, target, credentials, report)
        manifest = pushed.manifest
        return {"Tag": target.tag, "Digest": manifest.digest, "Size": manifest.size_bytes}

    return await stream_progress(request, work)


async def tag(request: Request) -> web.Response:
    """POST tag: a further name. DELETE /plugins/{name} with it takes it away."""
    if not request.query("to"):
        raise errors.Invalid("cannot name a plugin nothing: give the name, as in ?to=NAME")
    await request.backend.packages.tag(request.name, request.query("to"))
    return web.Response(status=204)


async def save(request: Request) -> web.StreamResponse:
    """GET save: an OCI archive of every plugin that is named."""
    names = [each for each in request.http.query.getall("name", []) if each]
    async with (
        request.backend.packages.save(names) as chunks,
        request.stream("application/x-tar") as response,
    ):
        async for chunk in chunks:
            await response.write(chunk)
    return response


async def df(request: Request) -> web.Response:
    """GET df: what plugins take of the disk."""
    return json_answer(usage_to_api(await request.backend.packages.usage()))


async def prune(request: Request) -> web.Response:
    """POST prune: remove what nothing refers to."""
    return json_answer(pruned_to_api(await request.backend.packages.prune()))

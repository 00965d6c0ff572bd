"""Docker's routes for plugins: request in, backend asked, answer out."""

from aiohttp import web

from moorage import errors
from moorage.api.query import boolean, integer, parse_filters, texts, truth
from moorage.api.request import Request, json_answer
from moorage.api.wire import plugin_to_api, process_to_api

__all__ = (
    "create",
    "disable",
    "enable",
    "inspect",
    "list_all",
    "remove",
    "set_",
)

_FILTERS = frozenset({"enabled", "capability"})
_ALIASES = {"enable": "enabled"}  # the published description of the API has the first, the daemon's code the second


async def list_all(request: Request) -> web.Response:
    """GET /plugins. A plugin with several types is found by each of them."""
    filters = parse_filters(request.query("filters"), _FILTERS, _ALIASES)
    enabled = truth(filters, "enabled")
    capabilities = {each.lower() for each in filters.get("capability", ())}
    return json_answer(
        [
            plugin_to_api(plugin)
            for plugin in request.backend.list()
            if (enabled is None or plugin.enabled is enabled)
            and (not capabilities or capabilities & {each.capability.lower() for each in plugin.config.interface.types})
        ]
    )


async def inspect(request: Request) -> web.Response:
    """GET /plugins/{name}/json, with the processes of the plugin among what is ours."""
    processes = [process_to_api(each) for each in await request.backend.processes(request.name)]
    document = plugin_to_api(request.backend.get(request.name))
    ours = document["Moorage"]
    assert isinstance(ours, dict)
    return json_answer({**document, "Moorage": {**ours, "Processes": processes}})


async def create(request: Request) -> web.Response:
    """POST /plugins/create. A client that goes away before the answer has made nothing."""
    name = request.query("name")
    await request.while_connected(lambda: request.backend.create(name, request.upload()))
    return web.Response(status=204)


async def enable(request: Request) -> web.Response:
    """POST /plugins/{name}/enable. A timeout that is not given is the default, as 0 is."""
    within = integer(request.query("timeout"), 0)
    if within < 0:
        raise errors.Invalid(f"cannot wait {within} s: negative timeout")
    await request.backend.enable(request.name, float(within))
    return web.Response()


async def disable(request: Request) -> web.Response:
    """POST /plugins/{name}/disable."""
    await request.backend.disable(request.name, force=boolean(request.query("force")))
    return web.Response()


async def set_(request: Request) -> web.Response:
    """POST /plugins/{name}/set."""
    assignments = texts(await request.json(), "the body must be a list of texts NAME=VALUE")
    request.backend.get(request.name)
    await request.backend.set(request.name, assignments, ())
    return web.Response(status=204)


async def remove(request: Request) -> web.Response:
    """DELETE /plugins/{name}."""
    await request.backend.remove(request.name, force=boolean(request.query("force")))
    return web.Response()

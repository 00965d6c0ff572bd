"""Routes for one plugin: Docker's, and those for its policy, path, names and calls to it."""

from aiohttp import web

from moorage import errors
from moorage.api.conversion import to_plugin, to_policy, to_policy_change
from moorage.api.http.query import boolean, integer, parse_filters, seconds, signal_number, texts, truth
from moorage.api.request import Request, json_answer
from moorage.api.schema.plugins import HostPath, LabelsRequest, PackageReplacement, PolicyRequest, SetRequest

__all__ = (
    "call",
    "create",
    "disable",
    "enable",
    "inspect",
    "kill",
    "list_all",
    "path",
    "policy",
    "remove",
    "rename",
    "replace_package",
    "restart",
    "set_",
    "set_labels",
    "set_policy",
    "set_with_secrets",
    "tag",
    "wait",
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
            to_plugin(plugin)
            for plugin in request.backend.list()
            if (enabled is None or plugin.enabled is enabled)
            and (not capabilities or capabilities & {each.capability.lower() for each in plugin.config.interface.types})
        ]
    )


async def inspect(request: Request) -> web.Response:
    """GET /plugins/{name}/json, with the processes of the plugin."""
    processes = await request.backend.processes(request.name)
    return json_answer(to_plugin(request.backend.get(request.name), processes))


async def create(request: Request) -> web.Response:
    """POST /plugins/create. A client that disconnects before the answer has created nothing."""
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


async def set_with_secrets(request: Request) -> web.Response:
    """POST set: as Docker's, with secrets beside."""
    body = await request.read(SetRequest)
    await request.backend.set(request.name, body.assignments or (), body.secrets or ())
    return web.Response(status=204)


async def restart(request: Request) -> web.Response:
    """POST restart."""
    await request.backend.restart(request.name)
    return web.Response(status=204)


async def wait(request: Request) -> web.Response:
    """POST wait: the answer comes when the plugin is ready, and healthy where it has checks."""
    within = seconds(request.query("timeout"), "timeout")
    await request.while_connected(lambda: request.backend.wait_healthy(request.name, within))
    return web.Response(status=204)


async def call(request: Request) -> web.Response:
    """POST call: the body is sent to the plugin, and its answer is returned, with its status in a header."""
    method = request.query("method").lstrip("/")
    if not method or any(each.isspace() for each in method):
        raise errors.Invalid("cannot call a plugin without a method, as in ?method=VolumeDriver.List")
    within = seconds(request.query("timeout"), "timeout")
    answer = await request.backend.call(request.name, method, await request.body(), within)
    headers = {"X-Plugin-Status": str(answer.status), "Content-Type": answer.content_type or "application/octet-stream"}
    return web.Response(body=answer.body, headers=headers)


async def path(request: Request) -> web.Response:
    """GET path: where on the host is what the plugin calls so."""
    return json_answer(HostPath(request.backend.host_path(request.name, request.query("path"))))


async def policy(request: Request) -> web.Response:
    """GET policy."""
    return json_answer(to_policy(request.backend.get(request.name)))


async def set_policy(request: Request) -> web.Response:
    """PUT policy: only what is given changes."""
    body = await request.read(PolicyRequest)
    change = to_policy_change(body)
    return json_answer(to_policy(await request.backend.set_policy(request.name, change)))


async def set_labels(request: Request) -> web.Response:
    """PUT labels: those that are not named stay."""
    body = await request.read(LabelsRequest)
    return json_answer(
        to_plugin(await request.backend.set_labels(request.name, body.add or {}, tuple(body.remove or ())))
    )


async def replace_package(request: Request) -> web.Response:
    """POST package: as create; with ``restart`` also of an enabled plugin, with ``force`` of one in use.

    With ``wait`` the new version must be healthy after so many seconds, or the one before it is started again.
    """
    change = request.change_terms()
    dropped = await request.while_connected(
        lambda: request.backend.replace_package(request.name, request.upload(), change)
    )
    return json_answer(PackageReplacement(list(dropped)))


async def kill(request: Request) -> web.Response:
    """POST kill: the signal is a number, or a name with or without SIG; SIGKILL where none is given."""
    await request.backend.signal(request.name, signal_number(request.query("signal") or "KILL"))
    return web.Response(status=204)


async def rename(request: Request) -> web.Response:
    """POST rename: a new name replaces the plugin's own, as docker renames containers."""
    if not request.query("name"):
        raise errors.Invalid("cannot name a plugin nothing: give the name, as in ?name=NAME")
    await request.backend.transfers.rename(request.name, request.query("name"))
    return web.Response(status=204)


async def tag(request: Request) -> web.Response:
    """POST tag: a further name. DELETE /plugins/{name} with that name removes it."""
    if not request.query("to"):
        raise errors.Invalid("cannot name a plugin nothing: give the name, as in ?to=NAME")
    await request.backend.transfers.tag(request.name, request.query("to"))
    return web.Response(status=204)

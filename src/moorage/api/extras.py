"""Our own routes, below /moorage/v1: what Docker's API has no call for."""

import json
from contextlib import suppress
from typing import Any

import anyio
from aiohttp import web

from moorage import errors
from moorage.api.confinement import CONFINEMENT_FIELDS, confinement_from_api
from moorage.api.info import moorage_info_to_api
from moorage.api.openapi import make_document
from moorage.api.query import boolean, instant, integer, seconds
from moorage.api.request import Request, json_answer
from moorage.api.wire import figures_to_api, holder_to_api, line_to_api, policy_to_api
from moorage.engine.values import PolicyChange

__all__ = (
    "call",
    "document",
    "hold",
    "holders",
    "info",
    "logs",
    "path",
    "policy",
    "release",
    "restart",
    "set_",
    "set_policy",
    "stats",
    "stats_of_all",
)


_RELEASE = 10.0  # seconds; how long the end of an attached hold waits for the plugin's other work
_MOST = 1_000_000_000


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
            await response.write(json.dumps(line_to_api(line)).encode() + b"\n")
    return response


async def call(request: Request) -> web.Response:
    """POST call: the body goes to the plugin, its answer comes back, with its status in a header."""
    method = request.query("method").lstrip("/")
    if not method or any(each.isspace() for each in method):
        raise errors.Invalid("cannot call a plugin without a method, as in ?method=VolumeDriver.List")
    within = seconds(request.query("timeout"), "timeout")
    answer = await request.backend.call(request.name, method, await request.body(), within)
    headers = {"X-Plugin-Status": str(answer.status), "Content-Type": answer.content_type or "application/octet-stream"}
    return web.Response(body=answer.body, headers=headers)


async def path(request: Request) -> web.Response:
    """GET path: where on the host is what the plugin calls so."""
    return json_answer({"Path": request.backend.host_path(request.name, request.query("path"))})


async def restart(request: Request) -> web.Response:
    """POST restart."""
    await request.backend.restart(request.name)
    return web.Response(status=204)


async def policy(request: Request) -> web.Response:
    """GET policy."""
    return json_answer(policy_to_api(request.backend.get(request.name)))


async def set_policy(request: Request) -> web.Response:
    """PUT policy: only what is given changes."""
    known = {"restarts": str, "most": int, "stop_timeout": (int, float), "attended": bool}
    body = _fields(await request.json(), {**known, **CONFINEMENT_FIELDS})
    if not -_MOST <= body.get("most", 0) <= _MOST:
        raise errors.Invalid(f"cannot restart {body['most']} times: at most {_MOST} are possible; 0 is no limit")
    change = PolicyChange(
        restarts=body.get("restarts"),
        most=body.get("most"),
        stop_timeout=body.get("stop_timeout"),
        confinement=confinement_from_api(body),
        is_attended=bool(body.get("attended")),
    )
    return json_answer(policy_to_api(await request.backend.set_policy(request.name, change)))


async def set_(request: Request) -> web.Response:
    """POST set: as Docker's, with secrets beside."""
    body = _fields(await request.json(), {"assignments": list, "secrets": list})
    for values in body.values():
        if not all(isinstance(value, str) for value in values):
            raise errors.Invalid("invalid JSON: assignments and secrets are lists of texts NAME=VALUE")
    await request.backend.set(request.name, body.get("assignments", []), body.get("secrets", []))
    return web.Response(status=204)


async def holders(request: Request) -> web.Response:
    """GET holders."""
    return json_answer([holder_to_api(each) for each in request.backend.get(request.name).holders])


async def stats(request: Request) -> web.Response:
    """GET stats of one plugin."""
    figures = await request.backend.figures(request.name)
    return json_answer(figures_to_api(request.backend.get(request.name), figures))


async def stats_of_all(request: Request) -> web.Response:
    """GET stats of every plugin that runs."""
    found = []
    for plugin in request.backend.list():
        with suppress(errors.Conflict, errors.NotFound):  # it does not run, or is gone meanwhile
            found.append(figures_to_api(plugin, await request.backend.figures(plugin.id)))
    return json_answer(found)


async def hold(request: Request) -> web.StreamResponse:
    """POST holders. With ``attached`` the hold lasts as long as the answer, whose first line it is.

    A second line asks to let go: a forced disable or remove waits for that for a few seconds. Source: case 106.
    """
    owner = _fields(await request.json(), {"owner": str}).get("owner", "")
    if not owner.strip():
        raise errors.Invalid("cannot hold a plugin for nobody: give the owner")
    is_attached = boolean(request.query("attached"))
    holder = await request.backend.hold(request.name, owner, is_attached=is_attached)
    made = holder_to_api(holder)
    if not is_attached:
        return json_answer(made, 201)
    try:
        async with request.stream("application/x-ndjson") as response:
            await response.write(json.dumps(made).encode() + b"\n")
            await request.backend.until_asked_to_let_go(request.name, holder.token)
            await response.write(b'{"Event": "stopping"}\n')
            await anyio.sleep_forever()  # it lets go by closing the connection
    finally:
        with anyio.move_on_after(_RELEASE, shield=True):
            try:
                await request.backend.release(request.name, holder.token)
            except errors.NotFound:
                pass  # a forced disable let it go, or the plugin is removed
    return response


async def release(request: Request) -> web.Response:
    """DELETE holders/{token}."""
    await request.backend.release(request.name, request.values["token"])
    return web.Response(status=204)


async def document(request: Request) -> web.Response:
    """GET openapi.json."""
    from moorage.api.routes import ROUTES  # the table has this handler in it

    return json_answer(make_document(ROUTES))


async def info(request: Request) -> web.Response:
    """GET info: what ``/info`` has of ours."""
    return json_answer(moorage_info_to_api(request.backend.info()))


def _fields(document: Any, known: dict[str, Any]) -> dict[str, Any]:
    """The fields of a JSON object, checked, by the names in ``known``. Raises: Invalid naming the one that is wrong.

    Keys count in any letter case and with or without underscores, so that what a GET answered can be sent back.
    """
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise errors.Invalid("invalid JSON: the body must be an object")
    names = {_plain(name): name for name in known}
    found: dict[str, Any] = {}
    for key, value in document.items():
        name = names.get(_plain(key))
        if name is None:
            raise errors.Invalid(f"invalid JSON: there is no field {key!r} here; known: {', '.join(known)}")
        is_wrong = not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] not in (bool, object))
        if value is not None and is_wrong:
            raise errors.Invalid(f"invalid JSON: the field {key!r} is of a wrong type")
        if value is not None:
            found[name] = value
    return found


def _plain(key: str) -> str:
    return key.replace("_", "").lower()

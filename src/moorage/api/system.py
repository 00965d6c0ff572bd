"""Docker's routes around plugins: ping, version, info, events."""

import json
import re

from aiohttp import web

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.api.info import info_to_api
from moorage.api.query import Filters, nanoseconds, parse_filters
from moorage.api.request import Request, json_answer
from moorage.api.wire import event_to_api, version_to_api
from moorage.engine.values import Happened

__all__ = ("events", "info", "ping", "version")

_FILTERS = frozenset(
    {"type", "plugin", "event", "scope", "label", "container", "image", "volume", "network", "daemon", "service",
     "node", "secret", "config"}
)  # fmt: skip
_OTHERS = _FILTERS - {"type", "plugin", "event", "scope", "label"}
_LINES = ("application/jsonl", "application/x-ndjson", "application/json-seq")
_LINES_SINCE = (1, 52)
"""The version of the API whose events are called lines of JSON; before that they were called JSON."""


async def ping(request: Request) -> web.Response:
    """GET and HEAD /_ping."""
    headers = {
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Builder-Version": "1",
        "Swarm": "inactive",
        "Content-Type": "text/plain; charset=utf-8",
    }
    if request.http.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": "0"})
    return web.Response(body=b"OK", headers=headers)


async def version(request: Request) -> web.Response:
    """GET /version."""
    return json_answer(version_to_api(request.backend.info()))


async def info(request: Request) -> web.Response:
    """GET /info."""
    engine, plugins = request.backend.info(), request.backend.list()
    return json_answer(await run_blocking(lambda: info_to_api(engine, plugins)))


async def events(request: Request) -> web.StreamResponse:
    """GET /events: buffered ones where ``since`` or ``until`` is given, then those that come, until ``until``."""
    filters = parse_filters(request.query("filters"), _FILTERS)
    since, until = nanoseconds(request.query("since"), "since"), nanoseconds(request.query("until"), "until")
    if since is not None and until is not None and until < since:
        raise errors.Invalid(
            f"`since` time ({request.query('since')}) cannot be after `until` time ({request.query('until')})"
        )
    listening = request.backend.events(since=since, until=until)
    kind = _accepted(request.http.headers.get("Accept", ""))
    if not kind:
        kind = _LINES[0] if request.version >= _LINES_SINCE else "application/json"
    mark = b"\x1e" if kind == "application/json-seq" else b""
    async with listening as happened, request.stream(kind) as response:
        async for each in happened:
            if _passes(each, filters):
                await response.write(mark + json.dumps(event_to_api(each)).encode() + b"\n")
    return response


def _accepted(header: str) -> str:
    """The form of a stream that an Accept header names with the highest weight; "" for none, wildcards included."""
    weights: dict[str, float] = {}
    for each in header.split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        weights[kind] = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 0.0
    best = max(_LINES, key=lambda kind: weights.get(kind, 0.0))  # of equal ones the first
    return best if weights.get(best) else ""


def _passes(each: Happened, filters: Filters) -> bool:
    """Whether an event is asked for. All keys must fit, and of a key any value."""
    if any(filters.get(key) for key in _OTHERS):
        return False
    plugins = filters.get("plugin")
    return (
        _fits(filters, "type", "plugin")
        and _fits(filters, "event", each.action)
        and _fits(filters, "scope", "local")
        and (not plugins or any(_names(each, plugin) for plugin in plugins))
        and all(_has_label(each, label) for label in filters.get("label", ()))
    )


def _has_label(each: Happened, label: str) -> bool:
    """A label is KEY or KEY=VALUE of the attributes. As in the daemon, of several all must fit."""
    key, equals, value = label.partition("=")
    found = {"name": each.name, **each.attributes}
    return key in found and (not equals or found[key] == value)


def _fits(filters: Filters, key: str, value: str) -> bool:
    return not filters.get(key) or value in filters[key]


def _names(each: Happened, plugin: str) -> bool:
    name = each.name.removesuffix(":latest")
    return plugin in (each.name, name, each.id) or (len(plugin) > 0 and each.id.startswith(plugin))

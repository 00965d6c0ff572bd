"""The whole route table on one page, and how a path finds its row.

A plugin's name may hold slashes, a port, a tag, and words that are verbs here, so the last part of the path is the verb
and what stands before it is the name; a path without a place for a name goes before one with.
"""

import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from urllib.parse import unquote

from aiohttp import web
from msgspec import Struct

from moorage import errors
from moorage.api import exec, extras, login, metrics, moving, packages, plugins, system
from moorage.api.request import Request
from moorage.api.wire import API_VERSION, MIN_API_VERSION

__all__ = ("ROUTES", "Route", "find_route", "split_version")

Handler = Callable[[Request], Awaitable[web.StreamResponse]]

_OURS = "/moorage/v1"
_VERSION = re.compile(r"/v(\d{1,4})\.(\d{1,4})(?=/)")


class Route(Struct, frozen=True, dict=True):
    """One row."""

    method: str
    template: str
    handler: Handler
    summary: str
    answers: int = 200
    """The status of success."""
    query: tuple[str, ...] = ()
    least: tuple[int, int] = MIN_API_VERSION
    """The version of the API that has it first."""
    body: str = ""
    """What is sent: json, tar, or any bytes; empty for nothing."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What paths of this row look like."""
        places = {"{name}": r"(?P<name>[\s\S]+)", "{token}": "(?P<token>[^/]+)"}
        text = re.escape(self.template).replace(r"\{", "{").replace(r"\}", "}")
        for place, pattern in places.items():
            text = text.replace(place, pattern)
        return re.compile(text)


ROUTES = (
    Route("GET", "/_ping", system.ping, "whether the engine answers"),
    Route("HEAD", "/_ping", system.ping, "the same, headers only"),
    Route("GET", "/version", system.version, "versions of the engine and of the API"),
    Route("GET", "/info", system.info, "the engine as a whole"),
    Route("GET", "/events", system.events, "what happens to plugins", query=("since", "until", "filters")),
    Route("POST", "/auth", login.auth, "check credentials against a registry", body="json"),
    Route("GET", "/plugins", plugins.list_all, "every plugin", query=("filters",)),
    Route("GET", "/plugins/privileges", packages.privileges, "what a plugin asks for", query=("remote",)),
    Route("POST", "/plugins/pull", packages.pull, "install a plugin", query=("remote", "name"), body="json"),
    Route("POST", "/plugins/create", plugins.create, "make a plugin", 204, query=("name",), body="tar"),
    Route("GET", "/plugins/{name}/json", plugins.inspect, "one plugin"),
    Route("POST", "/plugins/{name}/enable", plugins.enable, "start a plugin for good", query=("timeout",)),
    Route("POST", "/plugins/{name}/disable", plugins.disable, "stop a plugin for good", query=("force",)),
    Route("POST", "/plugins/{name}/set", plugins.set_, "change settings", 204, body="json"),
    Route(
        "POST",
        "/plugins/{name}/upgrade",
        packages.upgrade,
        "change the version",
        query=("remote",),
        least=(1, 26),
        body="json",
    ),
    Route("POST", "/plugins/{name}/push", moving.push, "bring a plugin to a registry", query=("to",)),
    Route("DELETE", "/plugins/{name}", plugins.remove, "remove a plugin", query=("force",)),
    Route("GET", f"{_OURS}/info", extras.info, "our part of the engine as a whole"),
    Route(
        "POST",
        f"{_OURS}/pull",
        packages.pull_with,
        "install a plugin with settings",
        query=("remote", "name"),
        body="json",
    ),
    Route(
        "POST",
        f"{_OURS}/ensure",
        packages.ensure,
        "install a plugin unless it is there",
        query=("remote", "name"),
        body="json",
    ),
    Route(
        "POST",
        f"{_OURS}/privileges",
        packages.request,
        "what a plugin would request with settings",
        query=("remote", "name"),
        body="json",
    ),
    Route("GET", f"{_OURS}/stats", extras.stats_of_all, "what every plugin that runs uses"),
    Route("GET", f"{_OURS}/metrics", metrics.scrape, "metrics for Prometheus"),
    Route("GET", f"{_OURS}/save", moving.save, "an OCI archive of plugins", query=("name",)),
    Route("POST", f"{_OURS}/save", moving.save_listed, "the same, of any number of them", body="json"),
    Route("POST", f"{_OURS}/load", moving.load, "take in an OCI archive", query=("name",), body="tar"),
    Route("POST", f"{_OURS}/create", moving.create_from, "a plugin of an image", query=("name", "remote"), body="tar"),
    Route("GET", f"{_OURS}/df", moving.df, "what plugins take of the disk"),
    Route("POST", f"{_OURS}/prune", moving.prune, "remove what nothing refers to"),
    Route("POST", f"{_OURS}/plugins/{{name}}/tag", moving.tag, "a further name", 204, query=("to",)),
    Route("GET", f"{_OURS}/openapi.json", extras.document, "this API as a document"),
    Route("GET", f"{_OURS}/plugins/{{name}}/logs", extras.logs, "output", query=("tail", "since", "follow")),
    Route(
        "POST", f"{_OURS}/plugins/{{name}}/call", extras.call, "call a plugin", query=("method", "timeout"), body="any"
    ),
    Route("GET", f"{_OURS}/plugins/{{name}}/path", extras.path, "the host's path of one inside", query=("path",)),
    Route("GET", f"{_OURS}/plugins/{{name}}/stats", extras.stats, "what a plugin uses of the machine"),
    Route(
        "POST",
        f"{_OURS}/plugins/{{name}}/exec",
        exec.execute,
        "run a process beside a plugin's own",
        query=("command", "env", "tty", "rows", "columns"),
        body="any",
    ),
    Route(
        "POST",
        f"{_OURS}/plugins/{{name}}/exec/{{token}}/resize",
        exec.resize,
        "the size of its terminal",
        204,
        query=("rows", "columns"),
    ),
    Route(
        "POST",
        f"{_OURS}/plugins/{{name}}/upgrade",
        packages.upgrade_with,
        "change the version, also of a running plugin",
        query=("remote", "restart", "force"),
        body="json",
    ),
    Route("POST", f"{_OURS}/plugins/{{name}}/grant", packages.grant, "grant what it requests", body="json"),
    Route("POST", f"{_OURS}/plugins/{{name}}/restart", extras.restart, "stop and start a plugin", 204),
    Route("GET", f"{_OURS}/plugins/{{name}}/policy", extras.policy, "when a plugin is restarted"),
    Route("PUT", f"{_OURS}/plugins/{{name}}/policy", extras.set_policy, "change that", body="json"),
    Route("POST", f"{_OURS}/plugins/{{name}}/set", extras.set_, "change settings and secrets", 204, body="json"),
    Route("GET", f"{_OURS}/plugins/{{name}}/holders", extras.holders, "who uses a plugin"),
    Route("POST", f"{_OURS}/plugins/{{name}}/holders", extras.hold, "use it", 201, query=("attached",), body="json"),
    Route("DELETE", f"{_OURS}/plugins/{{name}}/holders/{{token}}", extras.release, "use it no longer", 204),
)


def split_version(raw_path: str) -> tuple[str, tuple[int, int]]:
    """A path without the version of the API that it may begin with, and that version (ours where there is none).

    Raises: Invalid for a version that is too old or too new, in Docker's words.
    """
    match = _VERSION.match(raw_path)
    if match is None:
        return raw_path, API_VERSION
    asked = (int(match[1]), int(match[2]))
    lowest, highest = (f"{major}.{minor}" for major, minor in (MIN_API_VERSION, API_VERSION))
    if asked < MIN_API_VERSION:
        raise errors.Invalid(
            f"client version {match[1]}.{match[2]} is too old. Minimum supported API version is {lowest}, "
            "please upgrade your client to a newer version"
        )
    if asked > API_VERSION:
        raise errors.Invalid(
            f"client version {match[1]}.{match[2]} is too new. Maximum supported API version is {highest}"
        )
    return raw_path[match.end() :], asked


def find_route(method: str, raw_path: str, version: tuple[int, int] = API_VERSION) -> tuple[Route, dict[str, str]]:
    """The row of a path without version, and what stands in its places.

    Raises: NotFound, Invalid for a row that this version of the API does not have.
    """
    path = unquote(raw_path)
    if len(path) > 1:
        path = path.rstrip("/")
    for route in ROUTES:
        if route.method == method and (match := route.pattern.fullmatch(path)):
            if version < route.least:
                shown = route.template.replace("{name}", "{name:.*}")
                raise errors.Invalid(f"{method} {shown} requires minimum API version {route.least[0]}.{route.least[1]}")
            return route, match.groupdict()
    raise errors.NotFound("page not found")

"""The whole route table on one page, and how a path finds its row.

A plugin's name may contain slashes, a port, a tag, and words that are verbs here, so the last part of the path is the
verb and everything before it is the name; a path without a name goes before one with.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from moorage import errors
from moorage.api import archives, consumers, exec, holders, metrics, output, packages, plugins, system
from moorage.api.http.route import Route, get, post
from moorage.api.request import Request, json_answer
from moorage.api.schema.base import API_VERSION, MIN_API_VERSION
from moorage.api.schema.consumers import (
    MountedVolume,
    PublishRequest,
    VolumeDetails,
    VolumeList,
    VolumeMountRequest,
    VolumeRequest,
)
from moorage.api.schema.openapi import make_document
from moorage.api.schema.output import LogLine, PluginStats
from moorage.api.schema.packages import (
    ApplyRequest,
    InstallRequest,
    LoadedPlugin,
    PrivilegeReview,
    ProgressLine,
    SaveRequest,
    TermsRequest,
)
from moorage.api.schema.plugins import (
    HolderLine,
    HolderRequest,
    HostPath,
    LabelsRequest,
    PackageReplacement,
    PluginDetails,
    PluginHolder,
    PluginPolicy,
    PluginPrivilege,
    PolicyRequest,
    SetRequest,
)
from moorage.api.schema.system import (
    AuthRequest,
    AuthStatus,
    DiskUsageReport,
    EngineDetails,
    EventMessage,
    PruneReport,
    SystemInfo,
    SystemVersion,
)

__all__ = ("ROUTES", "find_route", "split_version")

_OWN = "/moorage/v1"
_VERSION = re.compile(r"/v(\d{1,4})\.(\d{1,4})(?=/)")


async def _document(_: Request) -> web.Response:
    """GET openapi.json: this table."""
    return json_answer(make_document(ROUTES))


_REFERENCE = ("remote", "name")
_PROGRESS: Mapping[str, Any] = {"streams": ProgressLine, "media_types": ("application/json",)}
_PRIVILEGES = list[PluginPrivilege]
_ONE = f"{_OWN}/plugins/{{name}}"
_EVENT_LINES = ("application/json", "application/jsonl", "application/x-ndjson", "application/json-seq")
_LINES = ("application/x-ndjson",)
_TAR = ("application/x-tar",)
_METRICS = ("text/plain", "application/openmetrics-text")
_TEXT = ("text/plain",)

_VOLUME = f"{_OWN}/volumes/{{name}}"
_VOLUMES = (
    get(f"{_OWN}/volumes", consumers.list_volumes, "List volumes", query=("driver",), returns=VolumeList),
    post(
        f"{_OWN}/volumes",
        consumers.create_volume,
        "Create a volume",
        answers=201,
        takes=VolumeRequest,
        returns=VolumeDetails,
    ),
    post(
        f"{_VOLUME}/mount",
        consumers.mount_volume,
        "Mount a volume for an owner",
        query=("driver",),
        takes=VolumeMountRequest,
        returns=MountedVolume,
    ),
    post(
        f"{_VOLUME}/unmount",
        consumers.unmount_volume,
        "Release a mount of a volume",
        answers=204,
        query=("driver",),
        takes=VolumeMountRequest,
    ),
    get(_VOLUME, consumers.inspect_volume, "Inspect a volume", query=("driver",), returns=VolumeDetails),
    Route("DELETE", _VOLUME, consumers.remove_volume, "Remove a volume", answers=204, query=("driver", "force")),
)

ROUTES = (
    # Docker's calls
    get("/_ping", system.ping, "Check whether the engine answers", media_types=_TEXT),
    Route("HEAD", "/_ping", system.ping, "Check whether the engine answers, headers only"),
    get("/version", system.version, "Get the versions of the engine and of the API", returns=SystemVersion),
    get("/info", system.info, "Get information about the engine", returns=SystemInfo),
    get(
        "/events",
        system.events,
        "Monitor events",
        query=("since", "until", "filters"),
        streams=EventMessage,
        media_types=_EVENT_LINES,
    ),
    post("/auth", system.auth, "Check credentials against a registry", takes=AuthRequest, returns=AuthStatus),
    get("/plugins", plugins.list_all, "List plugins", query=("filters",), returns=list[PluginDetails]),
    get(
        "/plugins/privileges",
        packages.privileges,
        "Get the privileges that a plugin requests",
        query=("remote",),
        returns=_PRIVILEGES,
    ),
    post("/plugins/pull", packages.pull, "Install a plugin", query=_REFERENCE, takes=_PRIVILEGES, **_PROGRESS),
    post("/plugins/create", plugins.create, "Create a plugin", answers=204, query=("name",), takes="tar"),
    get("/plugins/{name}/json", plugins.inspect, "Inspect a plugin", returns=PluginDetails),
    post("/plugins/{name}/enable", plugins.enable, "Enable a plugin", query=("timeout",)),
    post("/plugins/{name}/disable", plugins.disable, "Disable a plugin", query=("force",)),
    post("/plugins/{name}/set", plugins.set_, "Change settings of a plugin", answers=204, takes=list[str]),
    post(
        "/plugins/{name}/upgrade",
        packages.upgrade,
        "Upgrade a plugin",
        query=("remote",),
        least=(1, 26),
        takes=_PRIVILEGES,
        **_PROGRESS,
    ),
    post("/plugins/{name}/push", packages.push, "Push a plugin to a registry", query=("to",), **_PROGRESS),
    Route("DELETE", "/plugins/{name}", plugins.remove, "Remove a plugin", query=("force",)),
    # the engine's own
    get(f"{_OWN}/info", system.moorage_info, "Get what Docker's information lacks", returns=EngineDetails),
    post(
        f"{_OWN}/pull",
        packages.pull_with,
        "Install a plugin with settings",
        query=_REFERENCE,
        takes=InstallRequest,
        **_PROGRESS,
    ),
    post(
        f"{_OWN}/ensure",
        packages.ensure,
        "Install a plugin unless it is installed with these settings",
        query=_REFERENCE,
        takes=InstallRequest,
        **_PROGRESS,
    ),
    post(
        f"{_OWN}/privileges",
        packages.request,
        "Get the privileges that a plugin requests with settings",
        query=_REFERENCE,
        takes=TermsRequest,
        returns=PrivilegeReview,
    ),
    get(
        f"{_OWN}/stats",
        output.stats_of_all,
        "Get the resource usage of every running plugin",
        returns=list[PluginStats],
    ),
    get(f"{_OWN}/metrics", metrics.scrape, "Get metrics in the format of Prometheus", media_types=_METRICS),
    get(f"{_OWN}/save", archives.save, "Save plugins to an OCI archive", query=("name",), media_types=_TAR),
    post(
        f"{_OWN}/save",
        archives.save_listed,
        "Save any number of plugins to an OCI archive",
        takes=SaveRequest,
        media_types=_TAR,
    ),
    post(
        f"{_OWN}/load",
        archives.load,
        "Load plugins from an OCI archive",
        query=("name",),
        takes="tar",
        returns=list[LoadedPlugin],
    ),
    post(
        f"{_OWN}/create",
        archives.create_from,
        "Create a plugin from a container image",
        query=("name", "remote"),
        takes="tar",
        **_PROGRESS,
    ),
    get(f"{_OWN}/df", system.df, "Get disk usage", returns=DiskUsageReport),
    post(f"{_OWN}/prune", system.prune, "Remove unused data", returns=PruneReport),
    *_VOLUMES,
    get(f"{_OWN}/openapi.json", _document, "Get this document", returns=dict[str, Any]),
    get(
        f"{_ONE}/archive",
        archives.read_files,
        "Get files of a plugin",
        query=("path",),
        media_types=_TAR,
    ),
    Route(
        "PUT",
        f"{_ONE}/archive",
        archives.write_files,
        "Put files into a plugin",
        answers=204,
        query=("path",),
        takes="tar",
    ),
    post(
        f"{_ONE}/package",
        plugins.replace_package,
        "Replace the package of a plugin",
        query=("restart", "force", "wait"),
        takes="tar",
        returns=PackageReplacement,
    ),
    post(f"{_ONE}/kill", plugins.kill, "Send a signal to a plugin", answers=204, query=("signal",)),
    post(f"{_ONE}/rename", plugins.rename, "Rename a plugin", answers=204, query=("name",)),
    post(f"{_ONE}/tag", plugins.tag, "Add a name to a plugin", answers=204, query=("to",)),
    get(
        f"{_ONE}/logs",
        output.logs,
        "Get the output of a plugin",
        query=("tail", "since", "follow"),
        streams=LogLine,
        media_types=_LINES,
    ),
    post(f"{_ONE}/call", plugins.call, "Call a plugin", query=("method", "timeout"), takes="any"),
    get(f"{_ONE}/path", plugins.path, "Get the host's path of a path in a plugin", query=("path",), returns=HostPath),
    get(f"{_ONE}/stats", output.stats, "Get the resource usage of a plugin", returns=PluginStats),
    post(
        f"{_ONE}/exec",
        exec.execute,
        "Run a command in a running plugin",
        query=("command", "env", "tty", "rows", "columns", "user", "workdir"),
        takes="any",
        media_types=(exec.MEDIA_TYPE,),
    ),
    post(
        f"{_ONE}/exec/{{token}}/resize",
        exec.resize,
        "Resize the terminal of such a command",
        answers=204,
        query=("rows", "columns"),
    ),
    post(
        f"{_ONE}/upgrade",
        packages.upgrade_with,
        "Upgrade a plugin, also an enabled one",
        query=("remote", "restart", "force", "wait"),
        takes=TermsRequest,
        **_PROGRESS,
    ),
    post(
        f"{_OWN}/fetch",
        packages.fetch,
        "Fetch a package that is applied within an hour",
        query=("remote",),
        **_PROGRESS,
    ),
    post(
        f"{_ONE}/apply",
        packages.apply,
        "Install or change a plugin, and roll back what fails",
        query=("remote", "wait"),
        takes=ApplyRequest,
        **_PROGRESS,
    ),
    post(f"{_ONE}/grant", packages.grant, "Grant privileges to a plugin", takes=TermsRequest, returns=_PRIVILEGES),
    post(f"{_ONE}/restart", plugins.restart, "Restart a plugin", answers=204),
    post(f"{_ONE}/wait", plugins.wait, "Wait until a plugin is ready and healthy", query=("timeout",), answers=204),
    post(
        f"{_ONE}/publish",
        consumers.publish,
        "Publish a plugin to programs that use it",
        takes=PublishRequest,
        returns=PluginDetails,
    ),
    post(f"{_ONE}/unpublish", consumers.unpublish, "Unpublish a plugin", answers=204, query=("force",)),
    get(f"{_ONE}/policy", plugins.policy, "Get the policy of a plugin", returns=PluginPolicy),
    Route(
        "PUT",
        f"{_ONE}/policy",
        plugins.set_policy,
        "Change the policy of a plugin",
        takes=PolicyRequest,
        returns=PluginPolicy,
    ),
    Route(
        "PUT",
        f"{_ONE}/labels",
        plugins.set_labels,
        "Change the labels of a plugin",
        takes=LabelsRequest,
        returns=PluginDetails,
    ),
    post(
        f"{_ONE}/set",
        plugins.set_with_secrets,
        "Change settings and secrets of a plugin",
        answers=204,
        takes=SetRequest,
    ),
    get(f"{_ONE}/holders", holders.list_all, "List the holders of a plugin", returns=list[PluginHolder]),
    post(
        f"{_ONE}/holders",
        holders.add,
        "Add a holder to a plugin",
        answers=201,
        query=("attached",),
        takes=HolderRequest,
        returns=PluginHolder,
        streams=HolderLine,
        media_types=_LINES,
    ),
    Route("DELETE", f"{_ONE}/holders/{{token}}", holders.remove, "Remove a holder from a plugin", answers=204),
)


def split_version(raw_path: str) -> tuple[str, tuple[int, int]]:
    """A path without the version of the API that it may begin with, and that version (the newest where there is none).

    Raises: Invalid for a version that is too old or too new, in Docker's words.
    """
    match = _VERSION.match(raw_path)
    if match is None:
        return raw_path, API_VERSION
    requested = (int(match[1]), int(match[2]))
    lowest, highest = (f"{major}.{minor}" for major, minor in (MIN_API_VERSION, API_VERSION))
    if requested < MIN_API_VERSION:
        raise errors.Invalid(
            f"client version {match[1]}.{match[2]} is too old. Minimum supported API version is {lowest}, "
            "please upgrade your client to a newer version"
        )
    if requested > API_VERSION:
        raise errors.Invalid(
            f"client version {match[1]}.{match[2]} is too new. Maximum supported API version is {highest}"
        )
    return raw_path[match.end() :], requested


def find_route(method: str, raw_path: str, version: tuple[int, int] = API_VERSION) -> tuple[Route, dict[str, str]]:
    """The row of a path without version, and the values in it.

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

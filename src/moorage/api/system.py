"""Routes for the engine as a whole: ping, version, info, events, login and disk usage."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage._version import __version__
from moorage.api.conversion import to_disk_usage, to_event, to_prune_report, to_version
from moorage.api.http.query import Filters, json_body, nanoseconds, parse_filters
from moorage.api.request import Request, json_answer, json_line
from moorage.api.schema import system
from moorage.engine.values import EngineInfo, PluginEvent, PluginView
from moorage.host import proc
from moorage.host.cgroups import CgroupLayout, cgroup_layout
from moorage.plugins import has_label
from moorage.registry.credentials import parse_credentials
from moorage.registry.hosts import Options

__all__ = ("auth", "df", "events", "info", "moorage_info", "ping", "prune", "version")

_FILTERS = frozenset(
    {"type", "plugin", "event", "scope", "label", "container", "image", "volume", "network", "daemon", "service",
     "node", "secret", "config"}
)  # fmt: skip
_OTHERS = _FILTERS - {"type", "plugin", "event", "scope", "label"}
_LINES = ("application/jsonl", "application/x-ndjson", "application/json-seq")
_LINES_SINCE = (1, 52)
"""The version of the API whose events are called lines of JSON; before that they were called JSON."""

_LOOPBACK = ("127.0.0.0/8", "::1/128")
_RUNTIME = "io.containerd.runc.v2"

_KERNEL_LIMITS: Mapping[str, Any] = dict.fromkeys(
    (
        "memory_limit",
        "swap_limit",
        "cpu_cfs_period",
        "cpu_cfs_quota",
        "cpu_shares",
        "cpu_set",
        "pids_limit",
        "oom_kill_disable",
        "bridge_nf_iptables",
        "bridge_nf_ip6tables",
    ),
    True,
)
"""What the kernel can limit, and what does not apply here but makes old docker commands warn where it is false."""

_CONSTANTS: Mapping[str, Any] = {
    "containers": 0,
    "containers_running": 0,
    "containers_paused": 0,
    "containers_stopped": 0,
    "images": 0,
    "driver_status": [],
    "debug": False,
    "n_goroutines": 0,
    "logging_driver": "local",
    "os_type": "linux",
    "index_server_address": "https://index.docker.io/v1/",
    "generic_resources": None,
    "labels": [],
    "experimental_build": False,
    "default_runtime": _RUNTIME,
    "swarm": system.InfoSwarm(),
    "isolation": "",
    "init_binary": "",
    "runc_commit": system.InfoCommit(""),
    "init_commit": system.InfoCommit(""),
    "security_options": [],
    "cdi_spec_dirs": [],
}
"""Fields that are the same for every engine."""


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
    return json_answer(to_version(request.backend.info()))


async def info(request: Request) -> web.Response:
    """GET /info."""
    engine, plugins = request.backend.info(), request.backend.list()
    return json_answer(await run_blocking(lambda: read_info(engine, plugins)))


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
    async with listening as occurred, request.stream(kind) as response:
        async for each in occurred:
            if _passes(each, filters):
                await response.write(mark + json_line(to_event(each)))
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


def _passes(each: PluginEvent, filters: Filters) -> bool:
    """Whether an event passes. All keys must match, and of a key any value."""
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


def _has_label(each: PluginEvent, label: str) -> bool:
    """A label is KEY or KEY=VALUE of the attributes. As in the daemon, of several all must fit."""
    return has_label({"name": each.name, **each.attributes}, label)


def _fits(filters: Filters, key: str, value: str) -> bool:
    return not filters.get(key) or value in filters[key]


def _names(each: PluginEvent, plugin: str) -> bool:
    name = each.name.removesuffix(":latest")
    return plugin in (each.name, name, each.id) or (len(plugin) > 0 and each.id.startswith(plugin))


async def auth(request: Request) -> web.StreamResponse:
    """POST /auth: whether a registry accepts credentials."""
    body = await request.body()  # as JSON whatever its type says: that is how the daemon takes it
    document = json_body(body, "application/json", has_body=request.http.body_exists)
    if not isinstance(document, dict):
        raise errors.Invalid("invalid JSON: the body must be an object with serveraddress, username and password")
    credentials = parse_credentials(document, "the body of POST /auth")
    address = next((value for key, value in document.items() if key.lower() == "serveraddress"), None) or ""
    if not isinstance(address, str):
        raise errors.Invalid("cannot read the body of POST /auth: serveraddress is not a string")
    token = await request.while_connected(lambda: request.backend.packages.log_in(address, credentials))
    return json_answer(system.AuthStatus(token, "Login Succeeded"))


async def moorage_info(request: Request) -> web.Response:
    """GET info: what Moorage adds to ``/info``."""
    return json_answer(to_engine_details(request.backend.info()))


async def df(request: Request) -> web.Response:
    """GET df: what plugins take of the disk."""
    return json_answer(to_disk_usage(await request.backend.transfers.usage()))


async def prune(request: Request) -> web.Response:
    """POST prune: remove what nothing refers to."""
    return json_answer(to_prune_report(await request.backend.transfers.prune()))


def read_info(info: EngineInfo, plugins: Sequence[PluginView]) -> system.SystemInfo:
    """The engine and its host, as ``docker info`` shows them (blocking). Source: moby api/types/system/info.go."""
    http_proxy, https_proxy, no_proxy = map(_proxy, ("http_proxy", "https_proxy", "no_proxy"))
    return system.SystemInfo(
        id=info.engine_id,
        driver=info.snapshotter,
        plugins=_plugins(plugins),
        **_KERNEL_LIMITS,
        ipv4_forwarding=proc.kernel_parameter("net/ipv4/ip_forward") == "1",
        n_fd=len(proc.descriptors()),
        system_time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        cgroup_driver=info.cgroup_driver,
        cgroup_version="2" if cgroup_layout().layout is CgroupLayout.V2 else "1",
        n_events_listener=info.listeners,
        kernel_version=platform.release(),
        operating_system=_os_release().get("PRETTY_NAME", "Linux"),
        os_version=_os_release().get("VERSION_ID", ""),
        architecture=platform.machine(),
        n_cpu=os.cpu_count() or 1,
        mem_total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        name=platform.node(),
        registry_config=_registries(info.registries),
        docker_root_dir=info.root,
        http_proxy=http_proxy,
        https_proxy=https_proxy,
        no_proxy=no_proxy,
        **_CONSTANTS,
        server_version=__version__,
        runtimes={_RUNTIME: system.InfoRuntime(info.runtime or "runc")},
        live_restore_enabled=info.live_restore,
        containerd_commit=system.InfoCommit(info.containerd_version),
        containerd=system.ContainerdInfo(
            info.containerd_address, system.ContainerdNamespaces(containers="", plugins=info.namespace)
        ),
        warnings=[*([info.problem] if info.problem else []), *info.notices],
        moorage=to_engine_details(info),
    )


def to_engine_details(info: EngineInfo) -> system.EngineDetails:
    """What Docker's object has no field for."""
    return system.EngineDetails(
        containerd=info.containerd,
        containerd_address=info.containerd_address,
        containerd_version=info.containerd_version,
        namespace=info.namespace,
        problem=info.problem,
        notices=list(info.notices),
        exec_root=info.exec_root,
        started_at=info.started_at.isoformat(),
        runtime=info.runtime,
        runtime_version=info.runtime_version,
        runtime_reason=info.runtime_reason,
    )


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _registries(options: Options) -> system.RegistryConfig:
    """Registries that are used without TLS, and the mirrors of Docker Hub."""
    networks = [each for each in options.insecure if "/" in each]
    hosts = [each for each in options.insecure if "/" not in each]
    mirrors = list(options.mirrors)
    hub = system.IndexInfo(name="docker.io", mirrors=mirrors, secure=True, official=True)
    others = {host: system.IndexInfo(name=host, mirrors=[], secure=False, official=False) for host in hosts}
    return system.RegistryConfig([*networks, *_LOOPBACK], {"docker.io": hub, **others}, mirrors)


def _proxy(name: str) -> str:
    """A proxy of the environment, without its password."""
    value = os.environ.get(name) or os.environ.get(name.upper()) or ""
    scheme, mark, rest = value.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{mark}xxxxx:xxxxx@{host}" if at and user else value


def _plugins(plugins: Sequence[PluginView]) -> system.InfoPlugins:
    def names_of(capability: str) -> list[str]:
        return [
            plugin.name
            for plugin in plugins
            if plugin.enabled and any(each.capability.lower() == capability for each in plugin.config.interface.types)
        ]

    return system.InfoPlugins(
        volume=names_of("volumedriver"),
        network=names_of("networkdriver"),
        authorization=names_of("authz"),
        log=names_of("logdriver"),
    )

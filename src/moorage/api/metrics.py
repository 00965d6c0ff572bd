"""An engine's metrics as Prometheus reads them, on the API's socket and on a TCP port if one is given.

The table of all of them is docs/reference/metrics.md.
"""

import errno
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage._version import __version__
from moorage.api.backend import Backend
from moorage.api.http.errors import answer_failure, refusal
from moorage.api.http.listener import BACKLOG, ListenerLimits, serve_http, share_of_descriptors
from moorage.api.request import Request
from moorage.engine.telemetry import HistogramView, Metrics
from moorage.engine.values import EngineInfo
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ("parse_address", "render", "scrape", "serve_metrics")

log = logging.getLogger(__name__)

_LAST_ANSWERS = DEFAULT.metrics_shutdown
"""Seconds that scrapes have to end by themselves when the listener does; none takes so long."""
_ANSWER = DEFAULT.metrics_client
"""Seconds that a client has for a scrape; one that does not read its answer is cut off."""
_SHARE = 1 / 16
"""Of the descriptors that the process may have, what connections to this listener may take."""


async def scrape(request: Request) -> web.Response:
    """GET metrics: in the text format, or as OpenMetrics where the client accepts it."""
    return await _answer(request.backend, request.http)


async def _answer(backend: Backend, http: web.BaseRequest) -> web.Response:
    metrics, info, accept = await backend.metrics(), backend.info(), http.headers.get("Accept", "")
    body, content_type = await run_blocking(lambda: render(metrics, info, accept))
    return web.Response(body=body, headers={"Content-Type": content_type})


def render(metrics: Metrics, info: EngineInfo, accept: str = "") -> tuple[bytes, str]:
    """The exposition and its content type, of those that this Accept header takes (blocking: the first one imports)."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector

    class Here(Collector):
        def collect(self) -> "Iterator[Metric]":
            yield from _of_engine(metrics, info)
            yield from _of_plugins(metrics)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Here())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _of_engine(metrics: Metrics, info: EngineInfo) -> "Iterator[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

    about = {"version": __version__, "namespace": info.namespace, "snapshotter": info.snapshotter}
    yield InfoMetricFamily("moorage_engine", "The engine; the snapshotter is known after the first create.", about)
    up = "Whether containerd answers."
    yield GaugeMetricFamily("moorage_containerd_up", up, float(metrics.is_containerd_up))
    plugins = GaugeMetricFamily("moorage_plugins", "Plugins by state; every state is listed.", labels=["state"])
    for state, count in metrics.states.items():
        plugins.add_metric([state.value], count)
    yield plugins
    for name, text, view in (
        ("moorage_plugin_start_seconds", "Time from the start of a plugin until it is ready.", metrics.starts),
        ("moorage_plugin_stop_seconds", "Time from the start of a stop until no process is left.", metrics.stops),
    ):
        yield HistogramMetricFamily(name, text, _buckets(view), view.seconds)
    calls = HistogramMetricFamily(
        "moorage_containerd_rpc_seconds", "Calls to containerd, those that failed included.", labels=["method"]
    )
    for method, view in metrics.calls.items():
        calls.add_metric([method], _buckets(view), view.seconds)
    yield calls
    failures = CounterMetricFamily(
        "moorage_containerd_rpc_failures", "Calls to containerd that failed, by kind.", labels=["method", "kind"]
    )
    for labels, count in metrics.failures.items():
        failures.add_metric(labels, count)
    yield failures


def _of_plugins(metrics: Metrics) -> "Iterator[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    one = ["plugin"]
    ready = GaugeMetricFamily("moorage_plugin_ready", "Whether the plugin's socket accepts.", labels=one)
    healthy = GaugeMetricFamily("moorage_plugin_healthy", "Whether the plugin's health checks pass.", labels=one)
    restarts = CounterMetricFamily("moorage_plugin_restarts", "Automatic restarts.", labels=one)
    exits = CounterMetricFamily(
        "moorage_plugin_exits", "Exits of the plugin, requested or not.", labels=["plugin", "code", "signal", "oom"]
    )
    output = CounterMetricFamily("moorage_plugin_log_bytes", "Bytes of output.", labels=["plugin", "stream"])
    lost = CounterMetricFamily(
        "moorage_plugin_log_dropped_lines", "Lines of output that could not be logged.", labels=one
    )
    for plugin in metrics.plugins:
        ready.add_metric([plugin.name], plugin.is_ready)
        if plugin.is_healthy is not None:
            healthy.add_metric([plugin.name], plugin.is_healthy)
        restarts.add_metric([plugin.name], plugin.restarts)
        for labels, count in plugin.exits.items():
            exits.add_metric([plugin.name, *labels], count)
        for stream, count in plugin.log.bytes.items():
            output.add_metric([plugin.name, stream], count)
        lost.add_metric([plugin.name], plugin.log.dropped_lines)
    yield from (ready, healthy, restarts, exits, *_of_groups(metrics), output, lost)


def _of_groups(metrics: Metrics) -> "Iterator[Metric]":
    """What control groups say of the plugins that run, as far as this machine counts it."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in _GROUPS:
        family = CounterMetricFamily if name == "cpu_seconds" else GaugeMetricFamily
        made = family(f"moorage_plugin_{name}", text, labels=["plugin"])
        for plugin in metrics.plugins:
            value = getattr(plugin.usage, name, None)
            if value is not None:
                made.add_metric([plugin.name], value)
        yield made


_GROUPS = (
    ("cpu_seconds", "Processor time of the present run of the plugin."),
    ("cpus_limit", "Limit of processor time, in processors; absent without one."),
    ("memory_bytes", "Memory, without page cache that can be dropped at once."),
    ("memory_limit_bytes", "Limit of its memory; absent without one."),
    ("standby_memory_bytes", "Memory of the standby of its next run; absent without one."),
    ("pids", "Processes and threads."),
    ("pids_limit", "Limit of processes and threads; absent without one."),
    ("zombies", "Zombie processes."),
)
"""Fields of ``CgroupUsage``, and what they are."""


def _buckets(view: HistogramView) -> list[tuple[str, float]]:
    pairs = zip((*(str(bound) for bound in view.bounds), "+Inf"), (*view.within, view.count), strict=True)
    return [(bound, float(count)) for bound, count in pairs]


# ---- the second listener


class _Address(Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [HOST]:PORT, or :PORT for this machine only. Raises: Invalid."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise errors.Invalid(
            f"cannot serve metrics on {text!r}: an address with colons goes in brackets, as in [::1]:9469"
        )
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise errors.Invalid(f"cannot serve metrics on {text!r}: it must be HOST:PORT, as in 127.0.0.1:9469")
    return host or "127.0.0.1", int(port)


@asynccontextmanager
async def serve_metrics(backend: Backend, address: str | None) -> AsyncIterator[str]:
    """Nothing but GET /metrics at HOST:PORT until the block ends; its URL, "" where no address is given.

    A host that is a name is for this machine only: one that others can reach must be given as the address that it is.

    Raises: Invalid for what cannot be listened on; Conflict where another program does.
    """
    if not address:
        yield ""
        return
    requested = _Address(*parse_address(address))
    listener = await run_blocking(lambda: _listen(requested))
    url = f"http://{_Address(*listener.getsockname()[:2])}/metrics"

    async def handle(http: web.BaseRequest) -> web.StreamResponse:
        if http.path != "/metrics":
            return refusal(404, "page not found; metrics are at /metrics")
        if http.method != "GET":
            return refusal(405, "only GET is possible here")
        try:
            return await _answer(backend, http)
        except Exception as error:  # noqa: BLE001 - reported to the client, and logged
            return answer_failure(error, f"GET {url}")

    most = share_of_descriptors(_SHARE, least=4, most=64)
    limits = ListenerLimits(most, answer=_ANSWER)
    try:
        async with serve_http(listener, handle, limits, {}, last_answers=_LAST_ANSWERS):
            log.info("metrics are at %s", url)
            yield url
    finally:
        listener.close()


def _listen(address: _Address) -> socket.socket:
    """The listening socket (blocking)."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, socket_address = found[0]
        _refuse_others(address, str(socket_address[0]))
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except (OSError, UnicodeError) as error:
        raise errors.Invalid(f"cannot serve metrics on {address}: {_cause(error)}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(socket_address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise errors.Conflict(f"cannot serve metrics on {address}: another program listens there") from error
        raise errors.Invalid(f"cannot serve metrics on {address}: {_cause(error)}") from error
    return listener


def _refuse_others(address: _Address, found: str) -> None:
    """Raises: Invalid for a name that is an address which other machines can reach."""
    if ipaddress.ip_address(found).is_loopback:
        return
    if not _is_that(address.host, found):
        raise errors.Invalid(
            f"cannot serve metrics on {address}: it is {found}, which other machines can reach; "
            f"if they may read metrics without a password, give that address itself"
        )
    log.warning("other machines can read the metrics on %s, without a password", address)


def _is_that(host: str, found: str) -> bool:
    """Whether the host is this address, in whatever spelling, and no name for it."""
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address(found)
    except ValueError:
        return False


def _cause(error: OSError | UnicodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

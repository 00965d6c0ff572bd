"""Telemetry of an engine: the events of its plugins, what it counts and times, and what it measures on request."""

import logging
import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import is_printable, quote
from moorage._lib.threads import run_blocking
from moorage.engine.lifecycle import Event, State
from moorage.engine.values import LastExit, PluginEvent
from moorage.executor import Exit
from moorage.health.model import HealthStatus
from moorage.host.cgroup_usage import CgroupUsage, read_plugin_usage
from moorage.host.cgroups import hierarchies
from moorage.logs.reader import LogTotals
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.engine.plugin import PluginState
    from moorage.engine.runtime import ContainerRuntime

__all__ = (
    "EngineCounters",
    "EventLog",
    "Histogram",
    "HistogramView",
    "Metrics",
    "PluginCounters",
    "PluginMetrics",
    "exit_fields",
    "log_event",
    "log_exit",
    "log_step",
    "measure",
)

log = logging.getLogger(__name__)

_PLUGIN_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CALL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class HistogramView(Struct, frozen=True):
    """A histogram at one instant."""

    bounds: tuple[float, ...]
    """Upper bounds in seconds, each part of its bucket; what is over the last one is in ``count`` alone."""
    within: tuple[int, ...]
    """How many were at most so long, for each bound: never less than for the bound before."""
    count: int
    seconds: float
    """All of them together."""


class Histogram:
    """How long something took, counted in buckets."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """``bounds`` in seconds, rising."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one that took this long."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def view(self) -> HistogramView:
        """The counts at this instant."""
        within: list[int] = []
        for count in self._counts[:-1]:
            within.append(count + (within[-1] if within else 0))
        return HistogramView(self._bounds, tuple(within), sum(self._counts), self._seconds)


class EngineCounters:
    """What an engine counts that belongs to no single plugin. Begins at zero with the engine."""

    def __init__(self) -> None:
        self.starts = Histogram(_PLUGIN_BOUNDS)
        """From the beginning of a start, requested or automatic, until ready; one that fails is not in it."""
        self.stops = Histogram(_PLUGIN_BOUNDS)
        """From the beginning of a stop until nothing of the run is left."""
        self.calls: dict[str, Histogram] = {}
        """Calls to containerd that were answered or failed, by method ("Tasks.Start")."""
        self.failures: Counter[tuple[str, str]] = Counter()
        """Those that failed, by method and kind ("NotFound")."""

    def called(self, method: str, seconds: float, failure: errors.MoorageError | None) -> None:
        """Count a call to containerd; what ``moorage.containerd.connect`` takes."""
        self.calls.setdefault(method, Histogram(_CALL_BOUNDS)).observe(seconds)
        if failure is not None:
            self.failures[method, _kind(failure)] += 1


class PluginCounters:
    """What is counted of one plugin. It is part of the plugin, so it is gone when that is removed."""

    def __init__(self, meter: EngineCounters) -> None:
        self.restarts = 0
        """Automatic restarts."""
        self.exits: Counter[tuple[str, str, str]] = Counter()
        """Exits of runs, requested or not, by exit status ("" where it is unknown), signal ("" for none), and
        whether it was OOM-killed (true, false).
        """
        self._meter = meter
        self._since: float | None = None

    def exited(self, exit: Exit) -> None:
        """A run ended."""
        code = "" if exit.code is None else str(exit.code)
        self.exits[code, exit.signal or "", str(exit.oom).lower()] += 1

    def stepped(self, before: State, event: Event | None) -> None:
        """The plugin took a step of the state table from this state; None for a step that the table has not."""
        now = time.monotonic()
        started, self._since = self._since, None
        if event is Event.START:
            self.restarts += before is State.RESTARTING
            self._since = now
        elif event is Event.STOP:  # requested a second time, it is still the same stop
            self._since = started if before is State.STOPPING and started is not None else now
        elif started is not None and event is Event.ACCEPTED:
            self._meter.starts.observe(now - started)
        elif started is not None and event is Event.STOPPED:
            self._meter.stops.observe(now - started)


def _kind(failure: errors.MoorageError) -> str:
    return next(kind.__name__ for kind in type(failure).__mro__ if kind.__module__ == errors.__name__)


_ANSWER_WITHIN = DEFAULT.metrics_answer
"""Seconds that containerd has to answer; a scraper does not wait much longer than that for everything."""


class PluginMetrics(Struct, frozen=True):
    """One plugin."""

    name: str
    is_ready: bool
    is_healthy: bool | None
    """None where it has no health checks, or none has decided yet."""
    restarts: int
    exits: dict[tuple[str, str, str], int]
    """By exit status, signal, and whether it was OOM-killed; all as texts."""
    log: LogTotals
    usage: CgroupUsage | None
    """None while it does not run."""


class Metrics(Struct, frozen=True):
    """An engine at one instant. Counts begin with the engine, those of a log with the log."""

    states: dict[State, int]
    """How many plugins are in each state; every state has a number."""
    plugins: tuple[PluginMetrics, ...]
    """By name."""
    starts: HistogramView
    stops: HistogramView
    calls: dict[str, HistogramView]
    """To containerd, by method."""
    failures: dict[tuple[str, str], int]
    """Of calls to containerd, by method and kind."""
    is_containerd_up: bool
    """Whether it answered just now."""


async def measure(
    meter: EngineCounters, plugins: "Iterable[PluginState]", runtime: "ContainerRuntime | None"
) -> Metrics:
    """The metrics now. Never fails for a plugin that exits meanwhile; waits about a second where containerd hangs."""
    is_up = await _answers(runtime)
    # One instant for all that is in memory; what the control groups say is of a moment later.
    seen = [(plugin, _is_running(plugin)) for plugin in plugins]
    paths = [_groups(plugin) if is_running else ("", "") for plugin, is_running in seen]
    states = Counter(plugin.state for plugin, _ in seen)
    rows = [_row(plugin) for plugin, _ in seen]
    logs = [plugin.log for plugin, _ in seen]
    calls = {method: histogram.view() for method, histogram in sorted(meter.calls.items())}
    starts, stops, failures = meter.starts.view(), meter.stops.view(), dict(meter.failures)
    read = await run_blocking(lambda: zip([each.totals() for each in logs], _read(paths), strict=True))
    return Metrics(
        states={state: states[state] for state in State},
        plugins=tuple(PluginMetrics(*row, *rest) for row, rest in zip(rows, read, strict=True)),
        starts=starts,
        stops=stops,
        calls=calls,
        failures=failures,
        is_containerd_up=is_up,
    )


async def _answers(runtime: "ContainerRuntime | None") -> bool:
    if runtime is None:
        return False
    with anyio.move_on_after(_ANSWER_WITHIN):
        try:
            await runtime.client.version()
        except errors.MoorageError:
            return False
        return True
    return False


def _is_running(plugin: "PluginState") -> bool:
    return plugin.is_running


def _row(plugin: "PluginState") -> tuple[str, bool, bool | None, int, dict[tuple[str, str, str], int]]:
    counts, health = plugin.counts, plugin.health.state
    is_known = health is not None and health.status is not HealthStatus.STARTING
    is_healthy = health.status is HealthStatus.HEALTHY if health is not None and is_known else None
    return plugin.name, plugin.is_ready, is_healthy, counts.restarts, dict(counts.exits)


def _groups(plugin: "PluginState") -> tuple[str, str]:
    """The paths of the control groups of its run and of its standby; an empty one for none."""
    return plugin.run.control_group if plugin.run is not None else "", plugin.standby.control_group


def _read(paths: list[tuple[str, str]]) -> list[CgroupUsage | None]:
    """What the control groups of runs and their standbys use, None for one without a path (blocking)."""
    mounted = hierarchies()
    return [read_plugin_usage(run, standby, mounted) if run else None for run, standby in paths]


_STEPS = {
    "create": "is created",
    "upgrade": "is upgraded",
    "enable": "is enabled",
    "ready": "is ready",
    "restart": "is started again",
    "disable": "is disabled",
    "tag": "is tagged",
    "untag": "is untagged",
    "remove": "is removed",
}
"""What the log says of an event. Ends and failed starts are not here: their line also says what follows."""

_NOTHING: Mapping[str, object] = {}


def log_step(
    name: str, step: str, fields: Mapping[str, object] = _NOTHING, *, level: int = logging.INFO, text: str = ""
) -> None:
    """Log one step of a plugin's life: "plugin NAME STEP: KEY=VALUE KEY=VALUE: text", without fields that are empty."""
    pairs = (f"{key}={_value(str(value))}" for key, value in fields.items() if value not in (None, ""))
    log.log(level, "%s", ": ".join(filter(None, (f"plugin {name} {step}", " ".join(pairs), text))))


def log_event(name: str, action: str, attributes: Mapping[str, object]) -> None:
    """Log the event of a plugin, under its own name, whichever the caller used."""
    if action in _STEPS:
        log_step(name, _STEPS[action], attributes)


def _value(text: str) -> str:
    return text if is_printable(text) and " " not in text else quote(text)


def log_exit(name: str, last: LastExit, restarts: int, pause: float | None) -> None:
    """Log how a plugin exited or why it did not start, and what follows: a try after these seconds, or None."""
    next_try = "never"
    if pause is not None:
        next_try = (datetime.now(UTC) + timedelta(seconds=pause)).isoformat(timespec="milliseconds")
    level = logging.ERROR if pause is None else logging.WARNING
    step = "does not start" if last.error else "exited"
    fields = {**exit_fields(last), "restarts": restarts, "next_try": next_try}
    log_step(name, step, fields, level=level, text=last.error)


def exit_fields(last: LastExit) -> dict[str, object]:
    """How a run exited, for the log; nothing where none did."""
    if last.code is None and last.error:
        return {}
    code = "unknown" if last.code is None else last.code
    return {"exit": code, "signal": last.signal, "oom": "yes" if last.oom else "no"}


_BUFFERED = 256
_BEHIND = 1024
"""A listener that is this many events behind is closed: it must not use memory for every event."""


class EventLog:
    """The events of one engine. They are gone with it."""

    def __init__(self) -> None:
        self._buffer: deque[PluginEvent] = deque(maxlen=_BUFFERED)
        self._listeners: set[_Listener] = set()

    @property
    def listeners(self) -> int:
        """How many receive events now."""
        return len(self._listeners)

    def publish(self, action: str, id: str, name: str, /, **attributes: str) -> None:
        """Note an event and wake the listeners. Never waits."""
        nanoseconds = time.time_ns()
        whole, rest = divmod(nanoseconds, 10**9)
        at = datetime.fromtimestamp(whole, UTC) + timedelta(microseconds=rest // 1000)
        event = PluginEvent(action, id, name, at, attributes, nanoseconds)
        self._buffer.append(event)
        for listener in list(self._listeners):
            listener.put(event)

    @asynccontextmanager
    async def listen(self, since: int | None, until: int | None = None) -> AsyncIterator[AsyncIterator[PluginEvent]]:
        """Events from now on; before them, where one of both is given, the buffered ones from ``since``; to ``until``.

        Both are nanoseconds since 1970. Source: moby daemon/events/events.go, loadBufferedEvents.
        """
        buffered = [] if since is None and until is None else self._buffer
        listener = _Listener([each for each in buffered if each.nanoseconds >= (since or 0)], until)
        self._listeners.add(listener)
        try:
            yield listener.events()
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self, waiting: list[PluginEvent], until: int | None) -> None:
        self._waiting = deque(waiting)
        self._until = until
        self._more = anyio.Event()
        self._lost = False

    def put(self, event: PluginEvent) -> None:
        if len(self._waiting) >= _BEHIND:
            self._lost = True
        else:
            self._waiting.append(event)
        self._more.set()

    async def events(self) -> AsyncIterator[PluginEvent]:
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                if self._until is not None and event.nanoseconds > self._until:
                    return
                yield event
            left = math.inf if self._until is None else (self._until - time.time_ns()) / 10**9
            if self._lost or left <= 0:
                return
            self._more = anyio.Event()
            with anyio.move_on_after(left):
                await self._more.wait()

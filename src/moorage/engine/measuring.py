"""Everything that is counted, and what can only be measured at the moment when somebody asks."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.figures import Figures, find_groups, read_figures
from moorage.engine.lifecycle import State
from moorage.engine.machinery import Machinery
from moorage.engine.meter import HistogramView, Meter
from moorage.engine.plugin import Plugin
from moorage.logs.files import LogTotals

__all__ = ("Metrics", "PluginMetrics", "measure")

_ANSWER_WITHIN = 1.0
"""Seconds that containerd has to answer; a scraper does not wait much longer than that for everything."""


class PluginMetrics(Struct, frozen=True):
    """One plugin."""

    name: str
    is_ready: bool
    restarts: int
    exits: dict[tuple[str, str, str], int]
    """By exit status, signal, and whether it was for want of memory; all as texts."""
    log: LogTotals
    figures: Figures | None
    """None while it does not run."""


class Metrics(Struct, frozen=True):
    """An engine at one instant. Counts begin with the engine, those of a log with the log."""

    states: dict[State, int]
    """How many plugins are in each state; every state is there."""
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


async def measure(meter: Meter, plugins: Iterable[Plugin], machinery: Machinery | None) -> Metrics:
    """The metrics now. Never fails for a plugin that ends meanwhile; waits about a second where containerd hangs."""
    is_up = await _answers(machinery)
    # One instant for all that is in memory; what the control groups say is of a moment later.
    seen = [(plugin, _is_running(plugin)) for plugin in plugins]
    paths = [plugin.places.cgroup if is_running else "" for plugin, is_running in seen]
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


async def _answers(machinery: Machinery | None) -> bool:
    if machinery is None:
        return False
    with anyio.move_on_after(_ANSWER_WITHIN):
        try:
            await machinery.client.version()
        except errors.MoorageError:
            return False
        return True
    return False


def _is_running(plugin: Plugin) -> bool:
    return plugin.run is not None and not plugin.run.ended.is_set()


def _row(plugin: Plugin) -> tuple[str, bool, int, dict[tuple[str, str, str], int]]:
    counts = plugin.counts
    return plugin.name, plugin.is_ready, counts.restarts, dict(counts.exits)


def _read(paths: list[str]) -> list[Figures | None]:
    """What the control groups of these paths use, None for an empty path (blocking)."""
    mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [read_figures(find_groups(path, mountinfo)) if path else None for path in paths]

"""Counts of what happens to plugins, and how long it takes: plain numbers; the API makes an exposition of them."""

import time
from bisect import bisect_left
from collections import Counter

from msgspec import Struct

from moorage import errors
from moorage.engine.lifecycle import Event, State
from moorage.executor import Exit

__all__ = ("Histogram", "HistogramView", "Meter", "PluginCounts")

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


class Meter:
    """What an engine counts that belongs to no single plugin. Begins at zero with the engine."""

    def __init__(self) -> None:
        self.starts = Histogram(_PLUGIN_BOUNDS)
        """From the beginning of a start, asked for or not, until ready; one that fails is not in it."""
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


class PluginCounts:
    """What is counted of one plugin. It is part of the plugin, so it is gone when that is removed."""

    def __init__(self, meter: Meter) -> None:
        self.restarts = 0
        """Starts that nobody asked for."""
        self.exits: Counter[tuple[str, str, str]] = Counter()
        """Ends of runs, asked for or not, by exit status ("" where nobody can know it), signal ("" for none), and
        whether it was for want of memory (true, false).
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
        begun, self._since = self._since, None
        if event is Event.START:
            self.restarts += before is State.RESTARTING
            self._since = now
        elif event is Event.STOP:  # told a second time, it is still the same stop
            self._since = begun if before is State.STOPPING and begun is not None else now
        elif begun is not None and event is Event.ACCEPTED:
            self._meter.starts.observe(now - begun)
        elif begun is not None and event is Event.STOPPED:
            self._meter.stops.observe(now - begun)


def _kind(failure: errors.MoorageError) -> str:
    return next(kind.__name__ for kind in type(failure).__mro__ if kind.__module__ == errors.__name__)

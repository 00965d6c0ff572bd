"""CPU, memory and restarts of plugins over the last 24 hours, in ring buffers whose size never changes.

Each plugin has one ring of minutes for a day, and one of 5 seconds for the last 5 minutes: 31 KB together. Plugins
beyond ``MOST_PLUGINS`` are not recorded. What takes longer, or has to outlive this process, is Prometheus' job.
"""

import math
from array import array
from collections.abc import Iterable, Sequence

from msgspec import Struct

__all__ = ("DAY", "HOUR", "MINUTES", "MOST_PLUGINS", "Extent", "History", "Sample", "Series")

MOST_PLUGINS = 1000
_NOTHING = math.nan


class Extent(Struct, frozen=True):
    """How far back a series goes."""

    slot_seconds: int
    slots: int


MINUTES = Extent(5, 60)
HOUR = Extent(60, 60)
DAY = Extent(60, 24 * 60)
_RINGS = (MINUTES, DAY)


class Sample(Struct, frozen=True):
    """One measurement of a plugin; None is what is unknown, or does not run."""

    id: str
    cpu_percent: float | None
    """Of one processor, since the sample before."""
    memory_bytes: float | None
    restarts: int
    """Since the last enable."""


class Series(Struct, frozen=True):
    """The last slots of a plugin, oldest first; NaN where it did not run or was not measured."""

    extent: Extent
    cpu_percent: Sequence[float]
    """Mean of each slot."""
    memory_bytes: Sequence[float]
    """Most of each slot."""
    restarts: Sequence[float]
    """In each slot."""


class _Ring:
    """Slots of one plugin."""

    def __init__(self, extent: Extent, slot: int) -> None:
        self._extent = extent
        self._cpu = array("f", [_NOTHING]) * extent.slots
        self._memory = array("d", [_NOTHING]) * extent.slots
        self._restarts = array("f", [_NOTHING]) * extent.slots
        self._measured = array("f", [0.0]) * extent.slots
        self._slot = slot

    def add(self, slot: int, sample: Sample, restarts: int) -> None:
        self._go_to(slot)
        at = slot % self._extent.slots
        if sample.cpu_percent is not None:
            count = self._measured[at]
            before = self._cpu[at] if count else 0.0
            self._cpu[at] = (before * count + sample.cpu_percent) / (count + 1)
            self._measured[at] = count + 1
        if sample.memory_bytes is not None:
            self._memory[at] = max(sample.memory_bytes, self._memory[at] if self._memory[at] >= 0 else 0.0)
        self._restarts[at] = (self._restarts[at] if self._restarts[at] >= 0 else 0.0) + restarts

    def _go_to(self, slot: int) -> None:
        """Clear what was skipped, and what was there a whole ring ago."""
        slots = self._extent.slots
        for passed in range(max(self._slot + 1, slot - slots + 1), slot + 1):
            at = passed % slots
            self._cpu[at] = self._memory[at] = self._restarts[at] = _NOTHING
            self._measured[at] = 0.0
        self._slot = max(self._slot, slot)

    def series(self, slot: int, extent: Extent) -> Series:
        self._go_to(slot)
        order = [each % self._extent.slots for each in range(self._slot - extent.slots + 1, self._slot + 1)]
        cpu, memory, restarts = ([ring[at] for at in order] for ring in (self._cpu, self._memory, self._restarts))
        return Series(extent, cpu, memory, restarts)


class _Plugin:
    """The rings of one plugin, and how many of its restarts are counted."""

    def __init__(self, now: float) -> None:
        self.rings = {ring.slot_seconds: _Ring(ring, _slot(now, ring)) for ring in _RINGS}
        self._counted: int | None = None

    def add(self, now: float, sample: Sample) -> None:
        before = sample.restarts if self._counted is None else self._counted
        # an enable begins at 0 again: what is counted since then is new
        restarts = sample.restarts - before if sample.restarts >= before else sample.restarts
        self._counted = sample.restarts
        for ring in _RINGS:
            self.rings[ring.slot_seconds].add(_slot(now, ring), sample, restarts)


class History:
    """What was measured of each plugin, by id."""

    def __init__(self) -> None:
        self._plugins: dict[str, _Plugin] = {}

    def add(self, now: float, samples: Iterable[Sample]) -> None:
        """Take measurements of an instant, in seconds since 1970."""
        for sample in samples:
            plugin = self._plugins.get(sample.id)
            if plugin is None:
                if len(self._plugins) >= MOST_PLUGINS:
                    continue
                plugin = self._plugins[sample.id] = _Plugin(now)
            plugin.add(now, sample)

    def keep_only(self, ids: Iterable[str]) -> None:
        """Forget the plugins that are not among these."""
        for id in self._plugins.keys() - set(ids):
            del self._plugins[id]

    def series(self, id: str, now: float, extent: Extent) -> Series:
        """The last slots of a plugin until this instant."""
        plugin = self._plugins.get(id)
        if plugin is None:
            nothing = [_NOTHING] * extent.slots
            return Series(extent, nothing, nothing, nothing)
        return plugin.rings[extent.slot_seconds].series(_slot(now, extent), extent)


def _slot(now: float, extent: Extent) -> int:
    return int(now // extent.slot_seconds)

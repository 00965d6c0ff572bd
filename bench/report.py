"""What is measured against what, and the table of it. Pure: results are lists of values by name."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ("LINES", "Goal", "Line", "Measured", "growth_table", "judge", "peer_name", "table")

Results = Mapping[str, Sequence[float]]
"""Every single value of what was measured: seconds, MB/s, MB or percent, as the lines that use it say."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on Moorage's median."""

    limit: float
    is_ratio: bool = False
    """The bound is on Moorage's median divided by the peer's."""
    is_least: bool = False
    """The figure must not be below it, rather than not above."""

    def is_met(self, own: float, ratio: float | None) -> bool | None:
        """None where there is no peer to compare with."""
        value = ratio if self.is_ratio else own
        if value is None:
            return None
        return value >= self.limit if self.is_least else value <= self.limit

    def text(self, unit: str) -> str:
        """The bound for people."""
        bound = f"{self.limit:g} times" if self.is_ratio else shown(self.limit, unit)
        return f"{'≥' if self.is_least else '≤'} {bound}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    what: str
    own: str
    """Name of Moorage's result; the peer's is the next one."""
    peer: str = ""
    goal: Goal | None = None
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Measured:
    """A line with its medians."""

    line: Line
    own: float
    peer: float | None
    ratio: float | None
    is_met: bool | None


def _at_most(ratio: float) -> Goal:
    return Goal(ratio, is_ratio=True)


def _at_least(ratio: float) -> Goal:
    return Goal(ratio, is_ratio=True, is_least=True)


LINES = (
    Line("enable, plugin listens at once", "moorage: enable", "ctr run -d", _at_most(0.85)),
    Line("enable", "moorage: enable", "dockerd: enable", _at_most(0.125)),
    Line("enable", "moorage: enable", "runc create, start"),
    Line("enable with crun, with runc", "crun: enable", "runc: enable"),
    Line("disable", "moorage: disable", "dockerd: disable", _at_most(0.9)),
    Line("disable with crun, with runc", "crun: disable", "runc: disable"),
    Line("exit known after the death", "moorage: death to exit known", goal=Goal(0.005)),
    Line("handler called after the death", "moorage: death to handler called", goal=Goal(0.060)),
    Line("crash until the socket accepts again", "moorage: crash", "dockerd: crash", _at_most(0.75)),
    Line("crash until the socket accepts again", "moorage: crash", "ctr run -d"),
    Line("crash until the socket accepts, with a standby", "moorage: crash, standby", "moorage: crash", Goal(0.020)),
    Line("crash with crun, with runc", "crun: crash, until it accepts again", "runc: crash, until it accepts again"),
    Line("start, until the last of {plugins} accepts", "moorage: start", "dockerd: start", _at_most(0.8)),
    Line("start, until the last of {plugins} accepts", "moorage: start", "runc, all at once"),
    Line("start of {plugins} with crun, with runc", "crun: start", "runc: start"),
    Line("the same, one shim for all", "moorage, one shim: start", "dockerd: start"),
    Line("API answers after start", "moorage: API", "dockerd: API", _at_most(0.2)),
    Line("restart (kill -9), all {plugins} shown ready", "moorage: restart", "dockerd: live-restore", _at_most(0.6)),
    Line("stop of {plugins}", "moorage: stop", "dockerd: stop", _at_most(0.6)),
    Line("output, 64 KiB writes", "moorage: large writes", "dockerd: large writes", _at_least(20), "MB/s"),
    Line("output, 64 KiB writes", "moorage: large writes", "ctr discarding: large writes", _at_least(1.2), "MB/s"),
    Line("output, a write per line", "moorage: a write per line", "dockerd: a write per line", _at_least(10), "MB/s"),
    Line("output, a write per line", "moorage: a write per line", "ctr discarding: a write per line", unit="MB/s"),
    Line("memory of the engine (RSS), {plugins} plugins", "moorage: RSS", "dockerd: RSS", Goal(60), "MB"),
    Line("memory of the engine (PSS), {plugins} plugins", "moorage: PSS", "dockerd: PSS", _at_most(0.7), "MB"),
    Line("memory of its containerd (PSS)", "moorage: containerd PSS", "dockerd: containerd PSS", unit="MB"),
    Line("all memory per further plugin (PSS)", "moorage: PSS a plugin", "dockerd: PSS a plugin", unit="MB"),
    Line("the same, one shim for all", "moorage, one shim: PSS a plugin", "moorage: PSS a plugin", Goal(0.5), "MB"),
    Line("CPU of the engine when idle", "moorage: idle CPU", "dockerd: idle CPU", Goal(0.05), "%"),
    Line("CPU of its containerd when idle", "moorage: containerd idle CPU", "dockerd: containerd idle CPU", unit="%"),
    Line(
        "install of 100 MB, 8 layers", "moorage: install, 8 layers", "ctr images pull: install, 8 layers", _at_most(1)
    ),
    Line("install of 100 MB, 8 layers", "moorage: install, 8 layers", "ctr images pull, sync: install, 8 layers"),
    Line("install of 100 MB, 8 layers", "moorage: install, 8 layers", "dockerd: install, 8 layers", _at_most(1)),
    Line("install of 100 MB, 1 layer", "moorage: install, 1 layers", "ctr images pull: install, 1 layers", _at_most(1)),
    Line("install of 100 MB, 1 layer", "moorage: install, 1 layers", "ctr images pull, sync: install, 1 layers"),
    Line("install of 100 MB, 1 layer", "moorage: install, 1 layers", "dockerd: install, 1 layers", _at_most(1)),
    Line(
        "memory (largest RSS) while ten times as much is pulled",
        "moorage: memory while pulling",
        "dockerd: memory while pulling",
        Goal(150),
        "MB",
    ),
    Line("`moorage ls`, `docker plugin ls`", "moorage: ls", "dockerd: ls", _at_most(2.5)),
    Line("`moorage ls`", "moorage: ls", goal=Goal(0.040)),
)
"""The numbers to reach; 0.05 % is what rounds to 0.0 %."""

_GROWTH = (
    ("API", "s"),
    ("start", "s"),
    ("engine PSS", "MB"),
    ("all PSS", "MB"),
    ("engine idle CPU", "%"),
    ("containerd idle CPU", "%"),
    ("engine descriptors", ""),
    ("containerd descriptors", ""),
)


def judge(lines: Sequence[Line], results: Results) -> list[Measured]:
    """The lines that have a result, in their order."""
    return [_judge(line, results) for line in lines if results.get(line.own)]


def _judge(line: Line, results: Results) -> Measured:
    own = statistics.median(results[line.own])
    peer = statistics.median(results[line.peer]) if results.get(line.peer) else None
    ratio = own / peer if peer else None
    return Measured(line, own, peer, ratio, line.goal.is_met(own, ratio) if line.goal is not None else None)


def shown(value: float, unit: str) -> str:
    """A value for people; times below a second in milliseconds."""
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "%":
        return f"{value:.2f} %"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def peer_name(line: Line) -> str:
    """The peer of a line, for people."""
    return line.peer.removesuffix(": " + line.own.partition(": ")[2])


def growth_table(results: Results) -> str:
    """What each number of plugins takes, a column a number, in Markdown; empty where that was not measured."""
    keys = [(side, key) for side in ("growth", "growth, one shim") for key in _counts(results, side)]
    if not keys:
        return ""
    heads = [f"{count}, one shim" if side.endswith("shim") else f"{count}" for side, count in keys]
    rows = [("cold start, plugins", *heads)]
    for name, unit in _GROWTH:
        values = [statistics.median(results[f"{side}: {name}, {count}"]) for side, count in keys]
        rows.append((name, *(shown(value, unit) if unit else f"{value:.0f}" for value in values)))
    return _aligned(rows)


def _counts(results: Results, side: str) -> list[int]:
    prefix = f"{side}: start, "
    return sorted(int(name.removeprefix(prefix)) for name in results if name.startswith(prefix))


def table(measured: Sequence[Measured], plugins: int) -> str:
    """All lines as a table in Markdown, its columns aligned."""
    rows: list[tuple[str, ...]] = [("what", "moorage", "peer", "its median", "ratio", "goal", "met")]
    rows += [_row(each, plugins) for each in measured]
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def _row(measured: Measured, plugins: int) -> tuple[str, ...]:
    line = measured.line
    return (
        line.what.format(plugins=plugins),
        shown(measured.own, line.unit),
        peer_name(line) if measured.peer is not None else "",
        shown(measured.peer, line.unit) if measured.peer is not None else "",
        f"{measured.ratio:.2f}" if measured.ratio is not None else "",
        line.goal.text(line.unit) if line.goal is not None else "",
        {None: "", True: "yes", False: "**no**"}[measured.is_met],
    )

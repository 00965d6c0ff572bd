"""What is measured against what, and the table of it. Pure: results are lists of values by name."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ("LINES", "Goal", "Line", "Measured", "judge", "table")

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


_NO_LONGER = Goal(1.0, is_ratio=True)

LINES = (
    Line("enable, plugin listens at once", "moorage: enable", "ctr run -d", Goal(0.85, is_ratio=True)),
    Line("enable", "moorage: enable", "dockerd: enable", Goal(0.2, is_ratio=True)),
    Line("enable", "moorage: enable", "runc create, start"),
    Line("disable", "moorage: disable", "dockerd: disable", _NO_LONGER),
    Line("exit known after the death", "moorage: death to exit known", goal=Goal(0.005)),
    Line("handler called after the death", "moorage: death to handler called", goal=Goal(0.060)),
    Line("crash until the socket accepts again", "moorage: crash", "ctr run -d", Goal(1.2, is_ratio=True)),
    Line("crash until the socket accepts again", "moorage: crash", "dockerd: crash"),
    Line("start, until the last of {plugins} accepts", "moorage: start", "runc, all at once", Goal(1.2, is_ratio=True)),
    Line("start, until the last of {plugins} accepts", "moorage: start", "dockerd: start"),
    Line("the same, one shim for all", "moorage, one shim: start", "dockerd: start"),
    Line("API answers after start", "moorage: API", "dockerd: API", Goal(0.5)),
    Line("restart (kill -9), all {plugins} shown ready", "moorage: restart", "dockerd: live-restore", Goal(0.5)),
    Line("stop of {plugins}", "moorage: stop", "dockerd: stop", Goal(1.5)),
    Line("output, 64 KiB writes", "moorage: large writes", "dockerd: large writes", Goal(200, is_least=True), "MB/s"),
    Line("output, 64 KiB writes", "moorage: large writes", "ctr discarding: large writes", unit="MB/s"),
    Line(
        "output, a write per line",
        "moorage: a write per line",
        "ctr discarding: a write per line",
        Goal(0.8, is_ratio=True, is_least=True),
        "MB/s",
    ),
    Line("output, a write per line", "moorage: a write per line", "dockerd: a write per line", unit="MB/s"),
    Line("memory of the engine (RSS), {plugins} plugins", "moorage: RSS", "dockerd: RSS", Goal(60), "MB"),
    Line("memory of the engine (PSS), {plugins} plugins", "moorage: PSS", "dockerd: PSS", unit="MB"),
    Line("memory of its containerd (PSS)", "moorage: containerd PSS", "dockerd: containerd PSS", unit="MB"),
    Line("all memory per further plugin (PSS)", "moorage: PSS a plugin", "dockerd: PSS a plugin", unit="MB"),
    Line("the same, one shim for all", "moorage, one shim: PSS a plugin", "moorage: PSS a plugin", Goal(1.0), "MB"),
    Line("CPU of the engine when idle", "moorage: idle CPU", "dockerd: idle CPU", Goal(0.05), "%"),
    Line("CPU of its containerd when idle", "moorage: containerd idle CPU", "dockerd: containerd idle CPU", unit="%"),
    Line("install of 100 MB, 8 layers", "moorage: install, 8 layers", "dockerd: install, 8 layers", _NO_LONGER),
    Line("install of 100 MB, 1 layer", "moorage: install, 1 layers", "dockerd: install, 1 layers", _NO_LONGER),
    Line(
        "memory (largest RSS) while ten times as much is pulled",
        "moorage: memory while pulling",
        "dockerd: memory while pulling",
        Goal(150),
        "MB",
    ),
    Line("`moorage ls`, `docker plugin ls`", "moorage: ls", "dockerd: ls", Goal(3.0, is_ratio=True)),
)
"""The numbers to reach; 0.05 % is what rounds to 0.0 %."""


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


def table(measured: Sequence[Measured], plugins: int) -> str:
    """All lines as a table in Markdown, its columns aligned."""
    rows: list[tuple[str, ...]] = [("what", "moorage", "peer", "its median", "ratio", "goal", "met")]
    rows += [_row(each, plugins) for each in measured]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def _row(measured: Measured, plugins: int) -> tuple[str, ...]:
    line = measured.line
    return (
        line.what.format(plugins=plugins),
        shown(measured.own, line.unit),
        line.peer.removesuffix(": " + line.own.partition(": ")[2]) if measured.peer is not None else "",
        shown(measured.peer, line.unit) if measured.peer is not None else "",
        f"{measured.ratio:.2f}" if measured.ratio is not None else "",
        line.goal.text(line.unit) if line.goal is not None else "",
        {None: "", True: "yes", False: "**no**"}[measured.is_met],
    )

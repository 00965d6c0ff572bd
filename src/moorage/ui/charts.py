"""Charts as SVG, drawn here: a line or bars over time, with a text of what they show for those who cannot see them."""

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from moorage.ui.markup import Element, el

__all__ = ("Chart", "draw", "draw_small")

_WIDTH, _HEIGHT = 600, 120
_SMALL_WIDTH, _SMALL_HEIGHT = 64, 16
_GRID = 4
_STEPS = (1, 2, 4, 6, 8, 10)
_MOST_POINTS = 240
_MOST_GAP = 4  # slots without a measurement that a line crosses: it is queried less often while no page is open


class Chart(Struct, frozen=True):
    """What is drawn."""

    id: str
    title: str
    values: Sequence[float]
    """One a slot, oldest first; NaN where there is none."""
    slot_seconds: int
    ends_at: datetime
    text: Callable[[float], str]
    """A value for people."""
    is_bars: bool = False
    least_top: float = 1.0
    """The scale reaches at least so far."""
    is_binary: bool = False
    """Whether the scale has steps of 1024."""


def draw(chart: Chart) -> Element:
    """A chart with its scale, its times and a summary."""
    values = _thinned(chart.values, sums=chart.is_bars)
    known = [value for value in values if not math.isnan(value)]
    top = _top(max([chart.least_top, *known]), is_binary=chart.is_binary)
    shapes = _bars(values, top) if chart.is_bars else _lines(values, top)
    grid = [el("path", {"class": "grid", "d": f"M0 {y:g}H{_WIDTH}"}) for y in _grid()]
    svg = {
        "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
        "preserveAspectRatio": "none",
        "role": "img",
        "aria-label": f"{chart.title}: {_summary(chart)}",
    }
    labels = [el("span", {}, chart.text(top * (_GRID - at) / _GRID)) for at in range(_GRID + 1)]
    return el(
        "div",
        {"class": "chart", "id": chart.id, "data-live": True},
        el("div", {"class": "chart-head"}, el("h3", {}, chart.title), el("span", {"class": "muted"}, _summary(chart))),
        el(
            "div",
            {"class": "chart-body"},
            el("div", {"class": "scale", "aria-hidden": "true"}, labels),
            el("svg", svg, grid, shapes),
        ),
        el("div", {"class": "times", "aria-hidden": "true"}, [el("span", {}, text) for text in _times(chart)]),
    )


def draw_small(values: Sequence[float], title: str) -> Element:
    """A line without a scale, for a row of a table."""
    known = [value for value in values if not math.isnan(value)]
    top = max([*known, 1e-9])
    svg = {"class": "small", "viewBox": f"0 0 {_SMALL_WIDTH} {_SMALL_HEIGHT}", "aria-hidden": "true", "data-of": title}
    points = list(values)
    return el("svg", svg, [el("path", {"class": "line", "d": d}) for d in _runs(points, top, _SMALL_WIDTH, 15)])


def _thinned(values: Sequence[float], *, sums: bool) -> list[float]:
    """At most so many points: the highest value of several slots, or their sum."""
    size = max(1, math.ceil(len(values) / _MOST_POINTS))
    found = []
    for at in range(0, len(values), size):
        part = [value for value in values[at : at + size] if not math.isnan(value)]
        found.append((sum(part) if sums else max(part)) if part else math.nan)
    return found


def _top(value: float, *, is_binary: bool) -> float:
    """The end of the scale: a round number that is not below the value, and that the grid divides."""
    unit = 1.0
    while is_binary and value >= 1024 * unit:
        unit *= 1024
    size: float = 10 ** math.floor(math.log10(value / unit)) * unit
    return next((step * size for step in _STEPS if step * size >= value * 0.999999), 1024 * unit)


def _grid() -> Iterator[float]:
    return (_HEIGHT * at / _GRID for at in range(_GRID + 1))


def _runs(values: Sequence[float], top: float, width: float, height: float) -> Iterator[str]:
    """The path of each part without a gap."""
    step = width / max(len(values) - 1, 1)
    path, last = "", 0
    for at, value in enumerate(values):
        if math.isnan(value):
            continue
        if path and at - last > _MOST_GAP:
            yield _closed(path)
            path = ""
        y = height - height * min(value, top) / top
        path += f"{'L' if path else 'M'}{at * step:.1f} {y + 0.5:.1f}"
        last = at
    if path:
        yield _closed(path)


def _closed(path: str) -> str:
    """A single point becomes a line that can be seen."""
    return path if "L" in path else f"{path}L{path[1:]}h2"


def _lines(values: Sequence[float], top: float) -> list[Element]:
    shapes = []
    for path in _runs(values, top, _WIDTH, _HEIGHT):
        first, last = path[1:].split(" ")[0], path.split("L")[-1].split(" ")[0]
        shapes.append(el("path", {"class": "area", "d": f"{path}L{last} {_HEIGHT}L{first} {_HEIGHT}Z"}))
        shapes.append(el("path", {"class": "line", "d": path}))
    return shapes


def _bars(values: Sequence[float], top: float) -> list[Element]:
    step = _WIDTH / max(len(values), 1)
    return [
        el(
            "rect",
            {
                "class": "bar",
                "x": f"{at * step:.1f}",
                "y": f"{_HEIGHT - _HEIGHT * value / top:.1f}",
                "width": f"{max(step - 1, 1):.1f}",
                "height": f"{_HEIGHT * value / top:.1f}",
            },
        )
        for at, value in enumerate(values)
        if value > 0
    ]


def _summary(chart: Chart) -> str:
    known = [value for value in chart.values if not math.isnan(value)]
    if not known:
        return "no data yet"
    if chart.is_bars:
        return f"{chart.text(sum(known))} in all"
    return f"now {chart.text(known[-1])}, highest {chart.text(max(known))}"


def _times(chart: Chart) -> Iterator[str]:
    """Five instants from the first slot to now."""
    whole = timedelta(seconds=chart.slot_seconds * len(chart.values))
    for part in range(5):
        at = (chart.ends_at - whole * (4 - part) / 4).astimezone()
        yield "now" if part == 4 else f"{at:%H:%M}" if whole >= timedelta(hours=1) else f"{at:%H:%M:%S}"

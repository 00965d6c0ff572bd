"""What the page records: rings of a fixed size, charts of them, events with the last lines before an exit."""

import math
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from moorage.api.schema.output import LogLine
from moorage.api.schema.system import EventActor, EventMessage
from moorage.ui.charts import Chart, draw, draw_small
from moorage.ui.history import DAY, HOUR, MINUTES, MOST_PLUGINS, History, Sample
from moorage.ui.timeline import Timeline, lines_before

NOW = 1_800_000_000.0


def known(values: object) -> list[float]:
    return [value for value in values if not math.isnan(value)]  # type: ignore[attr-defined]


def test_u22_a_slot_has_mean_cpu_most_memory_and_the_restarts_in_it() -> None:
    history = History()
    for at, (cpu, memory, restarts) in enumerate([(10.0, 5.0, 3), (30.0, 9.0, 4), (None, None, 6)]):
        history.add(NOW + at, [Sample("a", cpu, memory, restarts)])
    series = history.series("a", NOW + 3, HOUR)
    assert len(series.cpu_percent) == HOUR.slots
    assert (known(series.cpu_percent), known(series.memory_bytes)) == ([20.0], [9.0])
    assert known(series.restarts) == [3.0]  # those before the first measurement are not of this time
    history.add(NOW + 60, [Sample("a", 1.0, 1.0, 1)])  # it was enabled again meanwhile
    assert known(history.series("a", NOW + 60, HOUR).restarts) == [3.0, 1.0]


def test_u22_after_a_day_everything_is_forgotten() -> None:
    history = History()
    history.add(NOW, [Sample("a", 10.0, 5.0, 0)])
    assert known(history.series("a", NOW + 23 * 3600, DAY).cpu_percent) == [10.0]
    assert known(history.series("a", NOW + 23 * 3600, MINUTES).cpu_percent) == []
    assert known(history.series("a", NOW + 24 * 3600 + 60, DAY).cpu_percent) == []


@given(some.lists(some.integers(-100_000, 200_000), max_size=30))
def test_u22_whatever_the_clock_does_a_series_has_its_length(steps: list[int]) -> None:
    history = History()
    for step in steps:
        history.add(NOW + step, [Sample("a", 1.0, 1.0, 0)])
        for extent in (MINUTES, HOUR, DAY):
            assert len(history.series("a", NOW + step, extent).restarts) == extent.slots


def test_u22_the_memory_of_the_rings_is_bounded() -> None:
    history = History()
    history.add(NOW, [Sample("0", 1.0, 1.0, 0)])
    rings = vars(next(iter(history._plugins.values())))["rings"].values()
    size = sum(sys.getsizeof(buffer) for ring in rings for buffer in vars(ring).values())
    assert size < 32 * 1024
    history.add(NOW, [Sample(str(number), 1.0, 1.0, 0) for number in range(MOST_PLUGINS + 50)])
    assert len(history._plugins) == MOST_PLUGINS
    history.keep_only(["1"])
    assert list(history._plugins) == ["1"]


@given(
    some.lists(some.one_of(some.just(math.nan), some.floats(0, 1e15)), max_size=300), some.booleans(), some.booleans()
)
def test_u22_any_values_can_be_drawn(values: list[float], is_bars: bool, is_binary: bool) -> None:
    chart = Chart("c", "Memory", values, 60, datetime.now(UTC), str, is_bars, 1.0, is_binary)
    assert "nan" not in draw(chart).html().replace("no data yet", "")
    draw_small(values, "memory").html()


@pytest.mark.parametrize(("value", "top"), [(0.2, "1.0"), (1.1, "2.0"), (99.0, "100.0"), (101.0, "200.0")])
def test_u22_the_scale_ends_at_a_round_number(value: float, top: str) -> None:
    assert f"<span>{top}</span>" in draw(Chart("c", "CPU", [value], 60, datetime.now(UTC), str)).html()


def message(at: int, action: str, id: str = "a", **attributes: str) -> EventMessage:
    return EventMessage("plugin", action, EventActor(id, {"name": "web:latest", **attributes}), "local", at, at * 10**9)


def line(second: int, text: str) -> LogLine:
    return LogLine(datetime.fromtimestamp(second, UTC).isoformat(), "stdout", text)


def test_u22_an_exit_has_the_last_lines_since_the_one_before() -> None:
    timeline = Timeline()
    first = timeline.add(message(100, "die", code="1"))
    timeline.add(message(101, "restart"))
    exit = timeline.add(message(110, "die", code="2"))
    assert first is not None
    assert exit is not None
    assert timeline.add(message(110, "die", code="2")) is None  # the engine sends it once more after a reconnection
    lines = [line(99, "old"), *(line(103, str(number)) for number in range(7)), line(110, "last"), line(111, "new run")]
    found = lines_before(lines, exit, timeline.exit_before(exit))
    assert [each.text for each in found] == ["3", "4", "5", "6", "last"]
    timeline.add_lines(exit, found)
    assert timeline.lines(exit) == tuple(found)
    assert [each.action for each in timeline.of("a")] == ["die", "restart", "die"]


def test_u22_a_timeline_is_bounded() -> None:
    timeline = Timeline()
    for at in range(1, 2001):
        made = timeline.add(message(at, "die", str(at % 10)))
        assert made is not None
        timeline.add_lines(made, [line(at, "x")])
    assert len(timeline.all()) == 500
    assert len(timeline.of("3")) == 60
    timeline.keep_only(["3"])
    assert timeline.of("4") == []
    assert len(timeline._lines) <= 500 + 600

from xml.etree import ElementTree

import pytest
from bench import page
from bench.chart import chart
from bench.report import LINES, Goal, Line, growth_table, judge, shown, table

RESULTS = {"moorage: start": [0.3, 0.1, 0.2], "peer: start": [0.4, 0.5, 0.4], "moorage: speed": [100.0, 300.0]}


def test_a_line_has_medians_and_their_ratio() -> None:
    (measured,) = judge([Line("start", "moorage: start", "peer: start", Goal(0.85, is_ratio=True))], RESULTS)
    assert (measured.own, measured.peer, measured.ratio, measured.is_met) == (0.2, 0.4, 0.5, True)


@pytest.mark.parametrize(
    ("goal", "own", "ratio", "is_met"),
    [
        (Goal(0.5), 0.5, None, True),
        (Goal(0.5), 0.6, None, False),
        (Goal(1.2, is_ratio=True), 9.0, 1.3, False),
        (Goal(200, is_least=True), 199.0, 0.1, False),
        (Goal(0.8, is_ratio=True, is_least=True), 1.0, 0.9, True),
        (Goal(0.8, is_ratio=True), 1.0, None, None),
    ],
)
def test_a_goal_bounds_the_median_or_the_ratio_from_above_or_below(
    goal: Goal, own: float, ratio: float | None, is_met: bool | None
) -> None:
    assert goal.is_met(own, ratio) is is_met


def test_what_was_not_measured_has_no_line_and_a_missing_peer_no_ratio() -> None:
    lines = [
        Line("missing", "moorage: missing"),
        Line("speed", "moorage: speed", "peer: speed", Goal(2, is_ratio=True), "MB/s"),
    ]
    (measured,) = judge(lines, RESULTS)
    assert (measured.own, measured.peer, measured.is_met) == (200.0, None, None)


def test_the_table_is_aligned_and_says_what_is_not_met() -> None:
    lines = [Line("start of {plugins}", "moorage: start", "peer: start", Goal(0.1)), Line("more", "moorage: start")]
    made = table(judge(lines, RESULTS), 30).splitlines()
    assert made == [
        "| what        | moorage  | peer | its median | ratio | goal       | met    |",
        "|-------------|----------|------|------------|-------|------------|--------|",
        "| start of 30 | 200.0 ms | peer | 400.0 ms   | 0.50  | ≤ 100.0 ms | **no** |",
        "| more        | 200.0 ms |      |            |       |            |        |",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (1.5, "s", "1.50 s"),
        (12.34, "MB", "12.3 MB"),
        (213.4, "MB/s", "213 MB/s"),
        (0, "%", "0.00 %"),
    ],
)
def test_values_are_shown_for_people(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_every_goal_compares_results_of_one_kind() -> None:
    assert all(line.goal is None or line.peer or not line.goal.is_ratio for line in LINES)
    assert {line.unit for line in LINES} <= {"s", "MB", "MB/s", "%"}


def test_growth_has_a_column_for_each_number_of_plugins_and_one_for_a_shared_shim() -> None:
    names = ["API", "start", "engine PSS", "all PSS", "engine idle CPU", "containerd idle CPU"]
    names += ["engine descriptors", "containerd descriptors"]
    results = {f"{side}, {count}": [0.25] for side in (f"growth: {name}" for name in names) for count in (30, 1)}
    results |= {f"growth, one shim: {name}, 30": [2.0] for name in names}
    lines = growth_table(results).splitlines()
    assert lines[0].split("|")[1:-1] == [" cold start, plugins    ", " 1        ", " 30       ", " 30, one shim "]
    assert lines[2].split("|")[1:-1] == [" API                    ", " 250.0 ms ", " 250.0 ms ", " 2.00 s       "]
    assert growth_table({}) == ""


def test_the_chart_has_a_bar_for_each_ratio_to_the_left_where_moorage_takes_less() -> None:
    lines = [Line("start", "moorage: start", "peer: start"), Line("speed", "moorage: speed", "ctr", unit="MB/s")]
    drawn = ElementTree.fromstring(chart(judge(lines, {**RESULTS, "ctr": [100.0]}), 30))
    start, speed = (each.attrib for each in drawn.iter("{http://www.w3.org/2000/svg}rect"))
    assert float(start["width"]) == pytest.approx(float(speed["width"]), abs=0.2)  # half of the time, twice the speed
    assert start["x"] == speed["x"]


def test_the_page_shows_the_result_that_it_names_and_is_short() -> None:
    assert page.differing() == {}, "run: scripts/bench page RESULT"
    assert len(page.PAGE.read_text().splitlines()) <= 100

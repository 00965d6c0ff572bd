"""Every number that bounds a wait in a test is scaled for slow machines: by ``limit`` of support/limits.py."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from moorage.timeouts import Timeouts
from support.limits import VARIABLE, factor

TESTS = Path(__file__).parents[1]

WAITS = {"fail_after": 0, "settimeout": 0, "wait_for": 1, "wait": 0, "join": 0, "result": 0}
"""Calls that give up after a number of seconds, and which of their arguments it is."""
SUPPORT = {"wait_until": 2, "until": 2, "until_restarted": 2, "eventually": 1, "next": 0}
KEYWORDS = {"timeout", "within", "total"}
NAMES = ("TIMEOUT", "SECONDS")
CLOCKS = ("monotonic", "process_time", "perf_counter")
LEAST = 2.0
"""What is shorter is meant to pass."""
ALL_OF_PRODUCT = {field.name for field in fields(Timeouts)}
OF_PRODUCT = {name for name in ALL_OF_PRODUCT if not name.endswith(("_first", "_limit", "_after"))}
"""Time limits of Moorage itself, which a test shortens; the others of that class are pauses."""
LEAST_OF_PRODUCT = 0.3
"""What is shorter is meant to pass on every machine."""
ALLOWED = {
    ("unit/test_engine_promises.py", 5): "virtual time: no machine is slow",
    ("support/engine_scenario.py", 200.0): "the same",
    ("support/engine_simulator.py", 600.0): "the same",
    ("faults/test_keeper_kills.py", 60.0): "the length of an outage",
    ("peers/test_published_crashes.py", 3): "a time in which containers are started, not a bound",
    ("faults/test_rows.py", 6.5): "how slow a shim is",
    ("support/workspace.py", 3600): "a periodic comparison that does not come within the test",
    ("support/fake_harness.py", 3600): "the same",
    ("unit/test_executor_events.py", 3600): "the same",
    ("unit/test_executor_events.py", 30): "virtual time",
    ("real/test_client_comfort.py", 3.0): "nothing waits: only how it is written",
    **dict.fromkeys([("unit/test_timeouts.py", each) for each in (3.0, 4.0, 5.0)], "nothing waits"),
    ("real/test_api.py", 1): "a field of a policy",
}


def seconds(node: ast.AST | None) -> float:
    """The number that is written here; 0 where it is none, or one that is scaled."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.IfExp):
        return max(seconds(node.body), seconds(node.orelse))
    if isinstance(node, ast.BinOp):
        both = seconds(node.left), seconds(node.right)
        return max(both) if isinstance(node.op, ast.Add) else min(both)  # half of a scaled bound is scaled
    return 0


def of_call(node: ast.Call) -> Iterator[ast.AST]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    for known in (WAITS, SUPPORT):
        if name in known and len(node.args) > known[name]:
            yield node.args[known[name]]
    if name != "Timeouts":
        yield from (each.value for each in node.keywords if each.arg in KEYWORDS)
    if name == "timeout":  # the marker
        yield from node.args


def bounds(tree: ast.Module) -> Iterator[float]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from map(seconds, of_call(node))
        elif isinstance(node, ast.arguments):
            named = [*zip(reversed(node.posonlyargs + node.args), reversed(node.defaults), strict=False)]
            named += [(name, value) for name, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value]
            yield from (seconds(value) for name, value in named if name.arg in KEYWORDS)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if any(word in node.targets[0].id for word in NAMES):
                yield seconds(node.value)
        elif isinstance(node, ast.BinOp) and ast.unparse(node.left) == "time.monotonic()":
            yield seconds(node.right)
        elif isinstance(node, ast.Compare) and any(f"{word}()" in ast.unparse(node) for word in CLOCKS):
            yield from (seconds(each) for each in node.comparators)


def of_product(tree: ast.Module) -> Iterator[float]:
    """Time limits of Moorage that a test sets: as arguments, or as entries of what it passes to an engine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.endswith(("Timeouts", "replace")):
                yield from (seconds(each.value) for each in node.keywords if each.arg in OF_PRODUCT)
        elif isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
            named = [(ast.literal_eval(key), value) for key, value in zip(node.keys, node.values, strict=True) if key]
            if named and {name for name, _ in named} <= ALL_OF_PRODUCT:
                yield from (seconds(value) for name, value in named if name in OF_PRODUCT)


def found(source: str) -> set[float]:
    tree = ast.parse(source)
    return {each for each in bounds(tree) if each >= LEAST} | {
        each for each in of_product(tree) if each >= LEAST_OF_PRODUCT
    }


def test_every_bound_of_a_test_is_scaled() -> None:
    unscaled = {
        (str(path.relative_to(TESTS)), bound)
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
        for bound in found(path.read_text())
    }
    assert unscaled <= set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "with anyio.fail_after(10): pass",
        "child.wait(30)",
        "run(command, timeout=60)",
        "wait_until(condition, 'what', 20)",
        "house.until('p', 'ready', 10)",
        "def f(x, within: float = 30.0): pass",
        "def f(*, timeout=30): pass",
        "TIMEOUT_SECONDS = 20.0",
        "mark = pytest.mark.timeout(600 if FULL else 120)",
        "end = time.monotonic() + 20",
        "assert time.monotonic() - started < 20",
        "assert time.process_time() - used < 10",
        "Timeouts(registry_stall=10, registry_retry_first=5.0)",
        "replace(TIMEOUTS, rpc=10)",
        "made = engine(path, timeouts={'ready': 10})",
    ],
)
def test_a_bound_is_found_in_each_form(source: str) -> None:
    assert len(found(source)) == 1
    number = next(each for each in ("600 if FULL else 120", "30.0", "20.0", "10", "20", "30", "60") if each in source)
    assert found(source.replace(number, f"limit({number})")) == set()


def test_the_factor_is_that_of_the_environment() -> None:
    command = [sys.executable, "-c", "from support.limits import limit; print(limit(30))"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), VARIABLE: "2.5"}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "75.0\n"


@pytest.mark.parametrize("value", ["-1", "0", "inf", "nan", "much"])
def test_a_factor_that_is_no_positive_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"positive number|could not convert"):
        factor(value)

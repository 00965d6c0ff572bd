"""The parameters of a sampled test that are in the run of everything."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.samples import spread

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(13, 3, {0, 5, 9}), (5, 2, {0, 3}), (4, 1, {0}), (3, 3, {0, 1, 2}), (2, 5, {0, 1}), (1, 1, {0})],
)
def test_a_sample_is_spread_evenly(total: int, count: int, indices: set[int]) -> None:
    assert spread(total, count) == indices


@pytest.mark.parametrize(("options", "count"), [(("-m", "not extensive"), 3), ((), 13)])
def test_the_run_of_everything_has_the_sample_and_a_group_has_all(options: tuple[str, ...], count: int) -> None:
    test = "tests/faults/test_calls.py::test_create_is_whole_or_nothing"
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *options, test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count(f"{test}[") == count, done.stdout

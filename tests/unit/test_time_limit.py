"""Calls that may never return are given up, cost their owner only, and raise what they raise."""

import os
import threading

import pytest

from moorage import errors
from moorage._lib.time_limit import MOST_ABANDONED, call_bounded

pytestmark = pytest.mark.quick


def test_s06_a_result_and_a_failure_come_through() -> None:
    assert call_bounded(lambda: 3, 5, "count") == 3
    assert call_bounded(lambda: None, 5, "count") is None
    with pytest.raises(KeyError, match="NO_SUCH_X"):
        call_bounded(lambda: os.environ["NO_SUCH_X"], 5, "look up")


def test_s06_what_does_not_return_is_given_up_and_named() -> None:
    may_end = threading.Event()
    with pytest.raises(errors.Unavailable, match=r"cannot query /x: no answer within 0\.01 s"):
        call_bounded(may_end.wait, 0.01, "query /x", owner="one")
    may_end.set()


def test_s06_one_owner_cannot_take_the_threads_of_another() -> None:
    may_end = threading.Event()
    for _ in range(MOST_ABANDONED):
        with pytest.raises(errors.Unavailable, match="no answer"):
            call_bounded(may_end.wait, 0.001, "wait", owner="greedy")
    with pytest.raises(errors.Unavailable, match=f"{MOST_ABANDONED} earlier attempts have not returned"):
        call_bounded(lambda: 1, 5, "count", owner="greedy")
    assert call_bounded(lambda: 1, 5, "count", owner="other") == 1
    may_end.set()
    while any(each.name.startswith("moorage: wait") for each in threading.enumerate()):
        pass
    assert call_bounded(lambda: 1, 5, "count", owner="greedy") == 1

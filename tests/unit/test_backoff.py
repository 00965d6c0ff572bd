import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage._lib.backoff import Backoff, pauses

pytestmark = pytest.mark.quick


@given(st.floats(0.001, 10), st.floats(0.001, 10), st.integers())
def test_pauses_double_up_to_the_limit_and_jitter_cuts_at_most_half(first: float, limit: float, seed: int) -> None:
    whole = min(first, limit)
    for pause in islice(pauses(first, limit, random_source=random.Random(seed)), 20):
        assert whole / 2 <= pause <= whole
        whole = min(whole * 2, limit)
    assert whole == limit


def test_two_waiters_do_not_come_back_together() -> None:
    assert list(islice(pauses(1, 8), 8)) != list(islice(pauses(1, 8), 8))


class Clock:
    """Seconds that a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_d14_what_fails_as_soon_as_it_works_does_not_shorten_the_pauses() -> None:
    clock = Clock()
    backoff = Backoff(1, 8, 10, clock=clock)
    waited = []
    for _ in range(8):
        waited.append(backoff.next())
        clock.now += waited[-1]
        backoff.worked()
        clock.now += 9.9
    assert waited[0] == 0.0
    for pause, whole in zip(waited[1:], (1, 2, 4, 8, 8, 8, 8), strict=True):
        assert whole / 2 <= pause <= whole


def test_d14_what_lasted_begins_a_new_row_and_a_try_that_failed_does_not_count_as_lasting() -> None:
    clock = Clock()
    backoff = Backoff(1, 8, 10, clock=clock)
    assert backoff.next() == 0.0
    assert backoff.next() > 0
    backoff.worked()
    clock.now += 10
    assert backoff.next() == 0.0
    clock.now += 100  # nothing worked meanwhile
    assert 0.5 <= backoff.next() <= 1
    assert 1 <= backoff.next() <= 2

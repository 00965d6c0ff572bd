import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage._lib.backoff import pauses

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

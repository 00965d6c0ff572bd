"""Which of a test's parameters the run of everything has (``@pytest.mark.sampled``)."""

__all__ = ("spread",)


def spread(total: int, count: int) -> frozenset[int]:
    """So many indices below ``total``, or all where there are no more; evenly spread, the first one always in it."""
    return frozenset(-(-total * number // count) for number in range(min(total, count)))

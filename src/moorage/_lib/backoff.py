"""Pauses between tries: exponential, with jitter, bounded."""

import random
from collections.abc import Iterator

__all__ = ("pauses",)


def pauses(first: float, limit: float, *, random_source: random.Random | None = None) -> Iterator[float]:
    """Endless pauses in seconds: ``first``, then twice as long each time up to ``limit``, each cut by up to a half.

    The jitter keeps many waiters on one peer from coming back at the same instant.
    """
    draw = (random_source or random).uniform
    pause = min(first, limit)
    while True:
        yield pause * draw(0.5, 1.0)
        pause = min(pause * 2, limit)

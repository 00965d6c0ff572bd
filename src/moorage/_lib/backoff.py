"""Pauses between tries: exponential, with jitter, bounded."""

import random
import time
from collections.abc import Callable, Iterator

__all__ = ("Backoff", "pauses")


def pauses(first: float, limit: float, *, random_source: random.Random | None = None) -> Iterator[float]:
    """Endless pauses in seconds: ``first``, then twice as long each time up to ``limit``, each cut by up to a half.

    The jitter prevents many clients of one peer from retrying at the same instant.
    """
    draw = (random_source or random).uniform
    pause = min(first, limit)
    while True:
        yield pause * draw(0.5, 1.0)
        pause = min(pause * 2, limit)


class Backoff:
    """Pauses before tries at something that lasts for a while once it works: a connection, a process.

    The first try, and the first one after it lasted ``steady`` seconds, come at once. One that works and fails again
    sooner does not shorten the pauses: else it would be tried again as fast as it fails, without end.
    """

    def __init__(
        self, first: float, limit: float, steady: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first, self._limit, self._steady, self._clock = first, limit, steady, clock
        self._pauses: Iterator[float] | None = None
        self._worked_at: float | None = None

    def worked(self) -> None:
        """It works from now on, until ``next`` is called."""
        self._worked_at = self._clock()

    def next(self) -> float:
        """The seconds to wait before the next try."""
        worked_at, self._worked_at = self._worked_at, None
        if worked_at is not None and self._clock() - worked_at >= self._steady:
            self._pauses = None
        if self._pauses is None:
            self._pauses = pauses(self._first, self._limit)
            return 0.0
        return next(self._pauses)

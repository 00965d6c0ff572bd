"""Passes events of a run on to the command line, which may fail or stop reading."""

from collections.abc import Callable

import anyio

from moorage.foreground.events import ForegroundEvent, Report
from moorage.timeouts import DEFAULT

__all__ = ("Reporter",)

_LAST_REPORT = DEFAULT.last_report  # seconds; how long a report may take after a signal


class Reporter:
    """Reports events until one report fails, or takes too long after a signal; the rest are dropped."""

    def __init__(self, report: Report) -> None:
        self.failure: OSError | None = None
        """Of the report that failed."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called when a report fails."""
        self._report = report
        self._limit = float("inf")
        self._scopes: set[anyio.CancelScope] = set()
        self._is_closed = False

    async def __call__(self, event: ForegroundEvent) -> None:
        """Report an event, unless an earlier report failed."""
        if self._is_closed:
            return
        with anyio.move_on_after(self._limit) as scope:
            self._scopes.add(scope)
            try:
                await self._report(event)
            except OSError as error:
                self.failure, self._is_closed = error, True
                self.on_failure()
            finally:
                self._scopes.discard(scope)
        self._is_closed = self._is_closed or scope.cancelled_caught

    def limit_reports(self) -> None:
        """From now on wait only a moment for each report, the ones under way included."""
        self._limit = _LAST_REPORT
        for scope in self._scopes:
            scope.deadline = anyio.current_time() + _LAST_REPORT

"""How long the run of a plugin was ready, for the count of failures in a row.

When a run became ready is recorded without a sync, so that a start writes nothing more to the disk. A kill of the
engine just before that makes the run one that was never ready, and its exit one more failure in the row.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

from moorage.engine.run.run_times import find_time, record_time
from moorage.executor import Exit

__all__ = ("ReadyTime", "record_ready")


class ReadyTime:
    """How long a run was ready: what earlier engines have seen of it counts, too."""

    def __init__(self) -> None:
        self.at: datetime | None = None
        """When the present run became ready."""
        self._since: float | None = None
        self._earlier = "", 0.0

    def begin(self) -> None:
        """It is ready now."""
        self._since, self.at = time.monotonic(), datetime.now(UTC)

    def leave(self) -> None:
        """It is not ready any more, or not yet; ``take`` still knows how long it was."""
        self.at = None

    def take_over(self, container: str, ready_at: datetime | None, exit: Exit | None) -> None:
        """Count the time since a run became ready, None for never, until its take-over, or its exit."""
        until = datetime.now(UTC) if exit is None else exit.exited_at
        seconds = (until - ready_at).total_seconds() if ready_at is not None and until is not None else 0.0
        self._earlier = container, max(0.0, seconds)

    def take(self, container: str) -> float:
        """Seconds for this container, 0.0 where it never was ready; read once, at its exit."""
        since, self._since = self._since, None
        before = self._earlier[1] if self._earlier[0] == container else 0.0
        return time.monotonic() - since + before if since is not None else 0.0


def record_ready(path: Path, container: str) -> None:
    """Record in this file that the run of a container is ready, from now on or as recorded before (blocking).

    Source: ``run_times``.
    """
    if find_time(path, container) is None:
        record_time(path, container, datetime.now(UTC))

"""How long the run of a plugin was ready, for the count of failures in a row."""

import time
from datetime import UTC, datetime

from moorage.executor import Exit


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

    def take_over(self, container: str, began: datetime | None, exit: Exit | None) -> None:
        """Count the time from the start of a run, where it is known, to its take-over, or to its exit."""
        until = datetime.now(UTC) if exit is None else exit.exited_at
        seconds = (until - began).total_seconds() if began is not None and until is not None else 0.0
        self._earlier = container, max(0.0, seconds)

    def take(self, container: str) -> float:
        """Seconds for this container, 0.0 where it never was ready; read once, at its exit."""
        since, self._since = self._since, None
        before = self._earlier[1] if self._earlier[0] == container else 0.0
        return time.monotonic() - since + before if since is not None else 0.0

"""How long the run of a plugin was ready, for the count of failures in a row.

Whether a run became ready is recorded in the run-time directory of the plugin, without a sync: that directory is lost
exactly when the run is, at a reboot, and a start writes nothing more to the disk. A kill of the engine in the instant
between the two makes a run one that was never ready, and its exit one more failure in the row.
"""

import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from moorage.executor import Exit

__all__ = ("ReadyTime", "find_recorded_ready", "record_ready")

log = logging.getLogger(__name__)


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

    A failure is logged: it is no reason to refuse a plugin that works.
    """
    if find_recorded_ready(path, container) is not None:
        return
    try:
        path.write_text(f"{container} {datetime.now(UTC).isoformat()}\n")
    except OSError as error:
        log.warning("cannot record that %s is ready: %s", container, error)


def find_recorded_ready(path: Path, container: str) -> datetime | None:
    """When the run of a container became ready; None where that is not recorded (blocking)."""
    try:
        recorded, _, at = path.read_text().strip().partition(" ")
        return datetime.fromisoformat(at) if recorded == container else None
    except (OSError, ValueError):
        return None

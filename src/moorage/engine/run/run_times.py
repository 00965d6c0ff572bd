"""Times of a run that the next engine needs: a file of the plugin's run-time directory for each.

They are written without a sync: that directory is lost exactly when the run is, at a reboot.
"""

import logging
from datetime import datetime
from pathlib import Path

__all__ = ("find_time", "record_time")

log = logging.getLogger(__name__)


def record_time(path: Path, container: str, at: datetime) -> None:
    """Record in this file a time of the run of a container (blocking).

    A failure is logged: it is no reason to refuse a plugin that works.
    """
    try:
        path.write_text(f"{container} {at.isoformat()}\n")
    except OSError as error:
        log.warning("cannot record in %s a time of %s: %s", path, container, error)


def find_time(path: Path, container: str) -> datetime | None:
    """The time that is recorded in this file for the run of this container; None without one (blocking)."""
    try:
        recorded, _, at = path.read_text().strip().partition(" ")
        return datetime.fromisoformat(at) if recorded == container else None
    except (OSError, ValueError):
        return None

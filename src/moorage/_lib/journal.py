"""Log lines as the journal of systemd reads them: each with its priority.

Source: sd-daemon(3), and systemd.exec(5) for JOURNAL_STREAM.
"""

import logging
import os

from moorage._lib.escapes import escape

__all__ = ("JournalFormatter", "LineFormatter", "is_journal", "prefixed")

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def is_journal(descriptor: int, stream: str | None) -> bool:
    """Whether an open file is the one that JOURNAL_STREAM (``device:inode``) names: it may have been redirected."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def prefixed(level: int, text: str) -> str:
    """A text with the priority of a logging level before each of its lines, as the journal reads it."""
    priority = next((number for least, number in _PRIORITIES if level >= least), _DEBUG)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class LineFormatter(logging.Formatter):
    """Records that cannot act on a terminal, and whose further lines are indented, so that none passes for another."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, maybe of several lines."""
        return escape(super().format(record).replace("\n", "\n  "), keep="\n\t")


class JournalFormatter(LineFormatter):
    """Lines with their priority; time and unit are the journal's own."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, maybe of several lines."""
        return prefixed(record.levelno, super().format(record))

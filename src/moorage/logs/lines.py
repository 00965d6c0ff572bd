"""Records of a log as lines of output: pieces of a long line are joined again, up to a limit.

``writer`` describes records. A line longer than the limit becomes several ``Line``s, of which all but the last are
``partial``: joined with the next ones of the same stream, they are the original line.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from moorage.logs.writer import STREAMS

__all__ = ("JOINED_BYTES", "Line", "LineJoiner", "LogRecord", "parse_head", "parse_records")

JOINED_BYTES = 1024 * 1024
"""Longest text of one ``Line``."""

_NAMES = {name: (name.removesuffix("+"), name.endswith("+")) for each in STREAMS for name in (each, f"{each}+")}
_HEAD_BYTES = 64


class Line(Struct, frozen=True):
    """One line of output, without the newline."""

    at: datetime
    """When its first known byte was written."""
    stream: str
    """stdout or stderr."""
    text: str
    """Invalid UTF-8 is shown as ``\\xNN``."""
    partial: bool = False
    """Whether it continues in the next line of this stream."""


class LogRecord(NamedTuple):
    """One record of a log file."""

    at: datetime
    stream: str
    is_piece: bool
    """Whether the line continues in the next record of this stream."""
    text: bytes


def parse_head(record: bytes) -> tuple[str, bool] | None:
    """The stream of a record, and whether it is a piece; None for an invalid record (a killed writer)."""
    parsed = _parse(record[:_HEAD_BYTES])
    return (parsed.stream, parsed.is_piece) if parsed is not None else None


def parse_records(data: bytes) -> Iterator[LogRecord]:
    """The records of whole lines of a log file; invalid ones are skipped."""
    for raw in data.split(b"\n"):
        if (record := _parse(raw)) is not None:
            yield record


def _parse(raw: bytes) -> LogRecord | None:
    """One record. All readers agree on what is one, or lines that one of them counts would be missing in another."""
    stamp, _, rest = raw.partition(b" ")
    stream, blank, text = rest.partition(b" ")
    found = _NAMES.get(stream.decode(errors="replace"))
    if not blank or found is None:
        return None
    try:
        at = datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return None
    return LogRecord(at, *found, text) if at.tzinfo is not None else None


class LineJoiner:
    """Joins records, in the order of the file, to lines."""

    def __init__(self, skip: int = 0) -> None:
        """The first ``skip`` lines are omitted."""
        self._skip = skip
        self._at: dict[str, datetime] = {}
        self._text: dict[str, bytearray] = {}

    def feed(self, record: LogRecord) -> Iterator[Line]:
        """The lines that are complete with this record."""
        waiting = self._text.setdefault(record.stream, bytearray())
        at = self._at.setdefault(record.stream, record.at)
        if waiting and len(waiting) + len(record.text) > JOINED_BYTES:
            yield from self._line(Line(at, record.stream, _shown(waiting), partial=True))
            waiting.clear()
            at = self._at[record.stream] = record.at
        waiting += record.text
        if not record.is_piece:
            yield from self._line(Line(at, record.stream, _shown(waiting.removesuffix(b"\r"))))
            self._skip = max(0, self._skip - 1)
            waiting.clear()
            del self._at[record.stream]

    def flush(self) -> Iterator[Line]:
        """The incomplete lines."""
        for stream, at in self._at.items():
            yield from self._line(Line(at, stream, _shown(self._text[stream]), partial=True))
        self._at, self._text = {}, {}

    def _line(self, line: Line) -> Iterator[Line]:
        if not self._skip:
            yield line


def _shown(text: bytes | bytearray) -> str:
    return text.decode(errors="backslashreplace")

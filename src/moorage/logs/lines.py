"""Records of a log as lines of output: pieces of a long line are joined again, up to a limit.

``writer`` says what records are. A line that is longer than the limit comes in several ``Line``s, of which all but the
last are ``partial``: with the next one of the same stream, until one that is not, they are what was written.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from moorage.logs.writer import STREAMS

__all__ = ("JOINED_BYTES", "Line", "LineJoiner", "Record", "parse_head", "parse_records")

JOINED_BYTES = 1024 * 1024
"""Longest text of one ``Line``."""

_NAMES = {name: (name.removesuffix("+"), name.endswith("+")) for each in STREAMS for name in (each, f"{each}+")}
_HEAD_BYTES = 64


class Line(Struct, frozen=True):
    """One line of output, without its end."""

    at: datetime
    """When its first byte that is known was written down."""
    stream: str
    """stdout or stderr."""
    text: str
    """Bytes that are no UTF-8 are shown as ``\\xNN``."""
    partial: bool = False
    """Whether it goes on in the next line of this stream."""


class Record(NamedTuple):
    """One record of a log file."""

    at: datetime
    stream: str
    is_piece: bool
    """Whether the line goes on in the next record of this stream."""
    text: bytes


def parse_head(record: bytes) -> tuple[str, bool] | None:
    """Stream of a record, and whether it is a piece; None for what is no record, as a killed writer may leave it."""
    head = record[:_HEAD_BYTES].split(b" ", 2)
    return _NAMES.get(head[1].decode(errors="replace")) if len(head) == 3 else None


def parse_records(data: bytes) -> Iterator[Record]:
    """The records of whole lines of a log file; what is none is left out."""
    for raw in data.split(b"\n"):
        stamp, _, rest = raw.partition(b" ")
        stream, blank, text = rest.partition(b" ")
        found = _NAMES.get(stream.decode(errors="replace"))
        if not blank or found is None:
            continue
        try:
            at = datetime.fromisoformat(stamp.decode("ascii"))
        except ValueError:
            continue
        if at.tzinfo is not None:
            yield Record(at, *found, text)


class LineJoiner:
    """Makes lines of records, which come in the order of the file."""

    def __init__(self, skip: int = 0) -> None:
        """The first ``skip`` lines are left out."""
        self._skip = skip
        self._at: dict[str, datetime] = {}
        self._text: dict[str, bytearray] = {}

    def feed(self, record: Record) -> Iterator[Line]:
        """The lines that are known with this record."""
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
        """The beginnings of lines whose end is not there."""
        for stream, at in self._at.items():
            yield from self._line(Line(at, stream, _shown(self._text[stream]), partial=True))
        self._at, self._text = {}, {}

    def _line(self, line: Line) -> Iterator[Line]:
        if not self._skip:
            yield line


def _shown(text: bytes | bytearray) -> str:
    return text.decode(errors="backslashreplace")

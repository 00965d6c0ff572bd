"""Finds the beginning of the last lines of a log, from the end of its files. Blocking.

A line may be several records, and records of both streams alternate. So the result is the offset of the first record of
the first requested line, and the number of other lines that end after it and must be skipped.
"""

import itertools
import os
from collections.abc import Iterator

from moorage.logs.lines import parse_head

__all__ = ("TailFinder",)

_BLOCK = 256 * 1024
_MOST_BACK = 4 * 1024 * 1024
"""How many bytes before the other requested lines the beginning of a line is searched."""


class TailFinder:
    """Reads files backwards, the newest first, until the last ``count`` lines are found completely."""

    def __init__(self, count: int) -> None:
        self._remaining = count
        self._incomplete: set[str] = set()
        """Streams for whose first requested line the beginning is not found yet."""
        self._searched = 0
        self.skip = 0
        """Lines that end after the offset and were not requested."""
        self._passed = 0
        self.has_found = False
        """Whether the last file had needed records."""

    @property
    def is_done(self) -> bool:
        """Whether no older records are needed."""
        return self._remaining <= 0 and (not self._incomplete or self._searched > _MOST_BACK)

    def find(self, descriptor: int) -> int:
        """The offset of the first needed record in this file; the end of its last whole record if there is none.

        That is never inside a record: what is half written belongs to a reader that continues from there.
        """
        size = os.fstat(descriptor).st_size
        found: int | None = None
        self.has_found = False
        for offset, record in _backwards(descriptor, size):
            if found is None:
                found = offset + len(record) + 1
            if self.is_done:
                break
            if self._is_useful(record):
                found, self.skip, self.has_found = offset, self._passed, True
            if self._remaining <= 0:
                self._searched += len(record)
        return found or 0

    def _is_useful(self, record: bytes) -> bool:
        head = parse_head(record)
        if head is None:
            return False
        stream, is_piece = head
        if is_piece and stream in self._incomplete:
            return True
        if self._remaining > 0:
            self._remaining -= 1
            self._incomplete.add(stream)
            return True
        if not is_piece:
            self._passed += 1
        self._incomplete.discard(stream)
        return False


def _backwards(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Whole records with their offsets, the last one first. An incomplete record is omitted."""
    position, rest, is_last = size, b"", True
    while position > 0:
        begin = max(0, position - _BLOCK)
        pieces = (os.pread(descriptor, position - begin, begin) + rest).split(b"\n")
        if is_last:
            pieces.pop()  # empty, or half a record
        is_last = is_last and not pieces
        offsets = list(itertools.accumulate((len(each) + 1 for each in pieces), initial=begin))
        for index in range(len(pieces) - 1, 0 if begin else -1, -1):
            yield offsets[index], pieces[index]
        rest = pieces[0] if pieces else b""
        position = begin

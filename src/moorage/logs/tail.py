"""Where the last lines of a log begin, found from the end of its files. Blocking.

A line may be several records, and records of both streams alternate. So the place is the first record of the first
line that is asked for, and lines that end after it and were not asked for have to be skipped.
"""

import itertools
import os
from collections.abc import Iterator

from moorage.logs.lines import parse_head

__all__ = ("TailFinder",)

_BLOCK = 256 * 1024
_MOST_BACK = 4 * 1024 * 1024
"""How far, in bytes, the beginning of a line is searched before the last other line that is asked for."""


class TailFinder:
    """Goes back over files, the newest first, until the last ``count`` lines are found whole."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._begun: set[str] = set()
        """Streams of whose first line that counts the beginning is not found yet."""
        self._searched = 0
        self.skip = 0
        """Lines that end after the place and do not count."""
        self._passed = 0

    @property
    def is_done(self) -> bool:
        """Whether older records are of no use."""
        return self._left <= 0 and (not self._begun or self._searched > _MOST_BACK)

    def find(self, descriptor: int) -> int:
        """Where in this file the first record is that is of use; its size where none is."""
        size = os.fstat(descriptor).st_size
        found = size
        for place, record in _backwards(descriptor, size):
            if self.is_done:
                break
            if self._is_useful(record):
                found, self.skip = place, self._passed
            if self._left <= 0:
                self._searched += len(record)
        return found

    def _is_useful(self, record: bytes) -> bool:
        head = parse_head(record)
        if head is None:
            return False
        stream, is_piece = head
        if is_piece and stream in self._begun:
            return True
        if self._left > 0:
            self._left -= 1
            self._begun.add(stream)
            return True
        if not is_piece:
            self._passed += 1
        self._begun.discard(stream)
        return False


def _backwards(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Whole records with their places, the last one first. What has no end yet is none."""
    position, rest, is_last = size, b"", True
    while position > 0:
        begin = max(0, position - _BLOCK)
        pieces = (os.pread(descriptor, position - begin, begin) + rest).split(b"\n")
        if is_last:
            pieces.pop()  # empty, or half a record
        is_last = is_last and not pieces
        places = list(itertools.accumulate((len(each) + 1 for each in pieces), initial=begin))
        for index in range(len(pieces) - 1, 0 if begin else -1, -1):
            yield places[index], pieces[index]
        rest = pieces[0] if pieces else b""
        position = begin

"""The reading side of one plugin's log: from the end, since an instant, and on with what another process writes.

``writer`` says what the files are. Nothing is locked: a rotation, and half a record, are seen for what they are.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from moorage._lib.inotify import DirectoryWatch, watching
from moorage._lib.threads import run_blocking
from moorage.logs.writer import STREAMS, file_names, read_counts

__all__ = ("Line", "LogTotals", "PluginLog")

_BLOCK = 256 * 1024
_LOOK_AGAIN = 5.0  # seconds; should a change ever not be told


class Line(Struct, frozen=True):
    """One line of output, without its end."""

    at: datetime
    stream: str
    """stdout or stderr."""
    text: str
    """Bytes that are no UTF-8 are shown as ``\\xNN``."""


class LogTotals(Struct, frozen=True):
    """What a log took since it was begun, whoever wrote it."""

    bytes: dict[str, int]
    """Output by stream (stdout, stderr), as it came."""
    dropped_lines: int
    """Lines of it that are lost, because they could not be written."""


class PluginLog:
    """The log of one plugin, in a directory of its own. The log keeper writes it."""

    def __init__(self, directory: Path, *, most_bytes: int = 10 * 1024 * 1024, files: int = 3) -> None:
        """Nothing is touched. All files together have about ``most_bytes``: each may end with one write too much."""
        self.directory = directory
        self.most_bytes = most_bytes
        self.files = files

    def totals(self) -> LogTotals:
        """What was taken since the log was begun (blocking, but it reads a few bytes)."""
        *taken, dropped = read_counts(str(self.directory))
        return LogTotals(dict(zip(STREAMS, taken, strict=True)), dropped)

    def last_lines(self, count: int) -> list[Line]:
        """The last lines, oldest first (blocking, but it reads only the end)."""
        found = [line for descriptor, offset in self._tail(count) for line in _lines_of(descriptor, offset)]
        return found[-count:] if count else []

    @asynccontextmanager
    async def read(
        self, *, tail: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[Line]]:
        """Lines, oldest first: the last ``tail`` (None: all) of those that are there, those written after ``since``.

        With ``follow`` it goes on with what is written from then on, over rotations, and does not end.
        """
        # watched before the first look, so that nothing is missed after it
        with watching(self.directory) if follow else nullcontext() as changes:
            opened = await run_blocking(lambda: self._tail(tail))
            files = [_Reader(descriptor, offset) for descriptor, offset in opened]
            try:
                yield self._lines(files, since, changes)
            finally:
                for file in files:
                    file.close()

    async def _lines(
        self, files: list["_Reader"], since: datetime | None, changes: DirectoryWatch | None
    ) -> AsyncIterator[Line]:
        while True:
            for file in list(files):
                while lines := await run_blocking(file.read):
                    for line in lines:
                        if since is None or line.at > since:
                            yield line
            if changes is None:
                return
            if not await run_blocking(lambda: self._find_next(files)):
                await changes.wait(_LOOK_AGAIN)

    def _find_next(self, files: list["_Reader"]) -> bool:
        """Open the files after the last one that is being read, and close those that were read to their end."""
        known = files[-1].inode if files else None
        newer: list[_Reader] = []
        for name in file_names(self.files):
            try:
                file = _Reader(os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC), 0)
            except FileNotFoundError:
                continue
            if file.inode == known:
                file.close()
                break
            if any(file.inode == each.inode for each in newer):
                file.close()
                continue
            newer.insert(0, file)
        if newer:
            for file in files[:-1]:
                file.close()
            files[:-1] = []
            files.extend(newer)
        return bool(newer)

    def _tail(self, count: int | None) -> list[tuple[int, int]]:
        """Descriptors of the files that have the last ``count`` records, oldest first, each with where they begin."""
        found: list[tuple[int, int]] = []
        seen: set[int] = set()
        left = count
        for name in file_names(self.files):
            if left is not None and left <= 0 and found:
                break
            try:
                descriptor = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            inode = os.fstat(descriptor).st_ino
            if inode in seen:  # it was given its next name between two looks
                os.close(descriptor)
                continue
            seen.add(inode)
            offset = 0
            if left is not None:
                offset, records = _find_last(descriptor, left)
                left -= records
            found.insert(0, (descriptor, offset))
        return found


class _Reader:
    """One file, read record by record."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self.inode = os.fstat(descriptor).st_ino
        self._descriptor = descriptor
        self._offset = offset

    def read(self) -> list[Line]:
        """The next whole records; none where there are no more now (blocking)."""
        while self._descriptor >= 0:
            data = os.pread(self._descriptor, _BLOCK, self._offset)
            if not data and os.fstat(self._descriptor).st_size < self._offset:
                self._offset = os.fstat(self._descriptor).st_size  # the writer took back what the disk did not take
            whole, newline, _ = data.rpartition(b"\n")
            if not newline and len(data) < _BLOCK:
                return []
            if not newline:  # no record is so long: something else was written here
                self._offset += len(data)
                continue
            self._offset += len(whole) + 1
            if lines := list(_parsed(whole)):
                return lines
        return []

    def close(self) -> None:
        """May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _parsed(records: bytes) -> Iterator[Line]:
    for record in records.split(b"\n"):
        stamp, _, rest = record.partition(b" ")
        stream, blank, text = rest.partition(b" ")
        if not blank:
            continue  # the half of a record that a killed writer left
        try:
            at = datetime.fromisoformat(stamp.decode("ascii"))
        except ValueError:
            continue
        if at.tzinfo is None:
            continue
        yield Line(at, stream.decode(errors="replace").removesuffix("+"), _shown(text))


def _shown(text: bytes) -> str:
    return text.removesuffix(b"\r").decode(errors="backslashreplace")


def _find_last(descriptor: int, count: int) -> tuple[int, int]:
    """Where the last ``count`` records begin, and how many there are from there."""
    end = os.fstat(descriptor).st_size
    if count <= 0:
        return end, 0
    position, seen = end, 0
    while position > 0:
        begin = max(0, position - _BLOCK)
        block = os.pread(descriptor, position - begin, begin)
        # the newline at the very end ends the last record and begins none
        place = len(block) - 1 if position == end else len(block)
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            seen += 1
            if seen == count:
                return begin + place + 1, count
        position = begin
    return 0, seen + (1 if end else 0)


def _lines_of(descriptor: int, offset: int) -> list[Line]:
    reader = _Reader(descriptor, offset)
    try:
        found: list[Line] = []
        while lines := reader.read():
            found += lines
        return found
    finally:
        reader.close()

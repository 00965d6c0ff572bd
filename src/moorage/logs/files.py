"""The reading side of one plugin's log: from the end, since an instant, and on with what another process writes.

``writer`` says what the files are. Nothing is locked: a rotation, and half a record, are seen for what they are.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import anyio
from msgspec import Struct

from moorage._lib.inotify import DirectoryWatch, watching
from moorage._lib.threads import run_blocking
from moorage.logs.lines import Line, LineJoiner, Record, parse_records
from moorage.logs.tail import TailFinder
from moorage.logs.writer import STREAMS, file_names, read_counts

__all__ = ("Line", "LogTotals", "PluginLog")

_BLOCK = 256 * 1024
_LOOK_AGAIN = 5.0  # seconds; should a change ever not be told


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
        opened, skip = self._tail(count)
        joiner = LineJoiner(skip)
        found = [line for each in opened for record in _records_of(each) for line in joiner.feed(record)]
        return [*found, *joiner.flush()][-count:] if count else []

    @asynccontextmanager
    async def read(
        self,
        *,
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
        ended: anyio.Event | None = None,
    ) -> AsyncIterator[AsyncIterator[Line]]:
        """Lines, oldest first: the last ``tail`` (None: all) of those that are there, those written after ``since``.

        With ``follow`` it continues with what is written from then on, over rotations, until ``ended`` is set and all
        that was written is read; without that it does not end.
        """
        # watched before the first look, so that nothing is missed after it
        with watching(self.directory) if follow else nullcontext() as changes:
            opened, skip = await run_blocking(lambda: self._tail(tail))
            files = [_Reader(descriptor, offset) for descriptor, offset in opened]
            try:
                lines = self._lines(files, LineJoiner(skip), changes, ended or anyio.Event())
                yield (line async for line in lines if since is None or line.at > since)
            finally:
                for file in files:
                    file.close()

    async def _lines(
        self, files: list["_Reader"], joiner: LineJoiner, changes: DirectoryWatch | None, ended: anyio.Event
    ) -> AsyncIterator[Line]:
        while True:
            is_last = changes is None or ended.is_set()  # noted first: what was written before it is read now
            for file in list(files):
                while records := await run_blocking(file.read):
                    for record in records:
                        for line in joiner.feed(record):
                            yield line
            if changes is not None and await run_blocking(lambda: self._find_next(files)):
                continue
            if changes is None or is_last:
                break
            await _wait_for(changes, ended)
        for line in joiner.flush():
            yield line

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

    def _tail(self, count: int | None) -> tuple[list[tuple[int, int]], int]:
        """Descriptors of the files that have the last ``count`` lines, oldest first, each with where they begin.

        Also how many lines are to be left out from there.
        """
        found: list[tuple[int, int]] = []
        seen: set[int] = set()
        finder = TailFinder(count) if count is not None else None
        for name in file_names(self.files):
            if finder is not None and finder.is_done and found:
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
            offset = finder.find(descriptor) if finder is not None else 0
            if offset < os.fstat(descriptor).st_size:  # what is between the first record of use and the end is read
                found = [(each, 0) for each, _ in found]
            found.insert(0, (descriptor, offset))
        return found, finder.skip if finder is not None else 0


class _Reader:
    """One file, read record by record."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self.inode = os.fstat(descriptor).st_ino
        self._descriptor = descriptor
        self._offset = offset

    def read(self) -> list[Record]:
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
            if records := list(parse_records(whole)):
                return records
        return []

    def close(self) -> None:
        """May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def _wait_for(changes: DirectoryWatch, ended: anyio.Event) -> None:
    """Return when something may have been written, or the log has ended."""

    async def wait() -> None:
        await ended.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await changes.wait(_LOOK_AGAIN)
        tasks.cancel_scope.cancel()


def _records_of(opened: tuple[int, int]) -> Iterator[Record]:
    reader = _Reader(*opened)
    try:
        while records := reader.read():
            yield from records
    finally:
        reader.close()

"""Reads one plugin's log: its last lines, lines since an instant, and new lines while another process writes them.

``writer`` describes the files. Nothing is locked: rotations and incomplete records are recognized.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import anyio
from msgspec import Struct

from moorage._lib.threads import run_blocking
from moorage.host.inotify import DirectoryWatch, watch_directory
from moorage.logs.lines import Line, LineJoiner, LogRecord, parse_records
from moorage.logs.tail import TailFinder
from moorage.logs.writer import STREAMS, file_names, read_counts

__all__ = ("Line", "LogTotals", "PluginLog")

_BLOCK = 256 * 1024
_POLL_INTERVAL = 5.0  # seconds; in case inotify misses a change


class LogTotals(Struct, frozen=True):
    """The totals of a log since it was created, over all writers."""

    bytes: dict[str, int]
    """Output by stream (stdout, stderr), unmodified."""
    dropped_lines: int
    """Lines that are lost because they could not be written."""


class PluginLog:
    """The log of one plugin, in a directory of its own. The log keeper writes it."""

    def __init__(self, directory: Path, *, most_bytes: int = 10 * 1024 * 1024, files: int = 3) -> None:
        """Creates nothing. All files together have about ``most_bytes``: each may exceed its part by one write."""
        self.directory = directory
        self.most_bytes = most_bytes
        self.files = files

    def totals(self) -> LogTotals:
        """The totals since the log was created (blocking, but it reads only a few bytes)."""
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
        finished: anyio.Event | None = None,
    ) -> AsyncIterator[AsyncIterator[Line]]:
        """Lines, oldest first: the last ``tail`` existing ones (None: all) that were written after ``since``.

        With ``follow``, new lines follow, over rotations, until ``finished`` is set and everything is read; without
        ``finished`` it does not end.
        """
        # watched before the first read, so that no change is missed
        with watch_directory(self.directory) if follow else nullcontext() as changes:
            opened, skip = await run_blocking(lambda: self._tail(tail))
            files = [_FileReader(descriptor, offset) for descriptor, offset in opened]
            try:
                lines = self._lines(files, LineJoiner(skip), changes, finished or anyio.Event())
                yield (line async for line in lines if since is None or line.at > since)
            finally:
                for file in files:
                    file.close()

    async def _lines(
        self, files: list["_FileReader"], joiner: LineJoiner, changes: DirectoryWatch | None, finished: anyio.Event
    ) -> AsyncIterator[Line]:
        while True:
            is_last = changes is None or finished.is_set()  # checked first, so that everything written before is read
            for file in list(files):
                while records := await run_blocking(file.read):
                    for record in records:
                        for line in joiner.feed(record):
                            yield line
            if changes is not None and await run_blocking(lambda: self._find_next(files)):
                continue
            if changes is None or is_last:
                break
            await _wait_for(changes, finished)
        for line in joiner.flush():
            yield line

    def _find_next(self, files: list["_FileReader"]) -> bool:
        """Open the files after the newest open one, and close those that are read completely."""
        known = files[-1].inode if files else None
        newer: list[_FileReader] = []
        for name in file_names(self.files):
            try:
                file = _FileReader(os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC), 0)
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
        """Descriptors of the files with the last ``count`` lines, oldest first, each with the offset to start from.

        Also the number of lines to skip from there.
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
            if inode in seen:  # it was renamed between two reads
                os.close(descriptor)
                continue
            seen.add(inode)
            offset = finder.find(descriptor) if finder is not None else 0
            if finder is None or finder.has_found:  # everything from the first useful record on is read
                found = [(each, 0) for each, _ in found]
            found.insert(0, (descriptor, offset))
        return found, finder.skip if finder is not None else 0


class _FileReader:
    """One file, read record by record."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self.inode = os.fstat(descriptor).st_ino
        self._descriptor = descriptor
        self._offset = offset

    def read(self) -> list[LogRecord]:
        """The next whole records; empty if there are no more now (blocking)."""
        while self._descriptor >= 0:
            data = os.pread(self._descriptor, _BLOCK, self._offset)
            if not data and os.fstat(self._descriptor).st_size < self._offset:
                self._offset = os.fstat(self._descriptor).st_size  # the writer truncated an incomplete write
            whole, newline, _ = data.rpartition(b"\n")
            if not newline and len(data) < _BLOCK:
                return []
            if not newline:  # no record is so long: not written by the keeper
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


async def _wait_for(changes: DirectoryWatch, finished: anyio.Event) -> None:
    """Return when something may have been written, or the log has ended."""

    async def wait() -> None:
        await finished.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await changes.wait(_POLL_INTERVAL)
        tasks.cancel_scope.cancel()


def _records_of(opened: tuple[int, int]) -> Iterator[LogRecord]:
    reader = _FileReader(*opened)
    try:
        while records := reader.read():
            yield from records
    finally:
        reader.close()

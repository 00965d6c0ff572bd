"""One plugin's output in files: lines with time and stream, bounded in size, read from the end and followed.

In the directory: ``current``, and older ones ``1``, ``2``, ... Each record is one line, ``TIME STREAM TEXT``; a ``+``
after the stream's name marks a piece of a longer line, which goes on in the next record of that stream.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio

from moorage._lib.threads import run_blocking

__all__ = ("LINE_LIMIT", "Line", "LogTotals", "PluginLog", "Sink")

LINE_LIMIT = 64 * 1024
"""Longest line in bytes; a longer one is kept in pieces."""

_BLOCK = 256 * 1024
_LOOK_AGAIN = 0.2  # seconds; for a follower whose writer is in another process
_CURRENT = "current"
_STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output, without its end."""

    at: datetime
    stream: str
    """stdout or stderr."""
    text: str
    """Bytes that are no UTF-8 are shown as ``\\xNN``."""


@dataclass(frozen=True, slots=True)
class LogTotals:
    """What a log took since it was made."""

    bytes: dict[str, int]
    """Output by stream (stdout, stderr), as it came."""
    dropped_lines: int
    """Lines of it that are lost, because they could not be written."""


class PluginLog:
    """The log of one plugin, in a directory of its own. Used from one event loop.

    Writing never fails and never waits for anything but the page cache: with the disk full, lines are dropped, and how
    many were is a line of its own as soon as there is room again.
    """

    def __init__(self, directory: Path, *, most_bytes: int = 10 * 1024 * 1024, files: int = 3) -> None:
        """Nothing is touched yet. All files together have at most ``most_bytes``, give or take one write."""
        self.directory = directory
        self._file_bytes = max(most_bytes // files, 1)
        self._files = files
        self._descriptor = -1
        self._size = 0
        self._rest = dict.fromkeys(_STREAMS, b"")
        self._dropped = 0
        self._why_dropped = ""
        self._taken = dict.fromkeys(_STREAMS, 0)
        self._lost = 0
        self._more = anyio.Event()

    def totals(self) -> LogTotals:
        """What was taken since this was made. The one place that knows, wherever the writer is."""
        return LogTotals(dict(self._taken), self._lost)

    # writing

    def sink(self, stream: str) -> "Sink":
        """Where the bytes of one stream (stdout, stderr) of a run go."""
        return Sink(self, stream)

    def append(self, stream: str, data: bytes) -> None:
        """Take output. What is no whole line yet waits for its end."""
        self._taken[stream] += len(data)
        whole, newline, rest = (self._rest[stream] + data).rpartition(b"\n")
        made = _stamped(stream, whole) if newline else b""
        while len(rest) > LINE_LIMIT:
            piece, rest = rest[:LINE_LIMIT], rest[LINE_LIMIT:]
            made += _stamped(f"{stream}+", piece)
        self._rest[stream] = rest
        if made:
            self._write(made)

    def end(self, stream: str) -> None:
        """The stream has ended, perhaps within a line."""
        rest, self._rest[stream] = self._rest[stream], b""
        if rest:
            self._write(_stamped(stream, rest))

    def close(self) -> None:
        """Write what waits and close the file; the next write opens it again."""
        for stream in _STREAMS:
            self.end(stream)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, records: bytes) -> None:
        # Straight from the loop: a write of some 64 KiB into the page cache takes less than a hop to a thread.
        try:
            if self._descriptor < 0:
                self._open()
            if self._size + len(records) > self._file_bytes and self._size:
                self._rotate()
            if self._dropped:
                note = f"moorage: {self._dropped} lines were dropped: {self._why_dropped}"
                self._put(_stamped("stderr", note.encode()))
                self._dropped = 0
            self._put(records)
        except OSError as error:
            self._dropped += (lines := records.count(b"\n"))
            self._lost += lines
            self._why_dropped = error.strerror or str(error)
        more, self._more = self._more, anyio.Event()
        more.set()

    def _put(self, records: bytes) -> None:
        written = 0
        try:
            while written < len(records):
                written += os.write(self._descriptor, memoryview(records)[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)  # no half a line for the readers
            raise
        self._size += written

    def _open(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.directory / _CURRENT, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            try:
                self._put(b"\n")  # a writer was killed within a record
            except OSError:
                os.close(self._descriptor)
                self._descriptor = -1
                raise

    def _rotate(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        names = self._names()
        for older, newer in zip(reversed(names), list(reversed(names))[1:], strict=False):
            with suppress(FileNotFoundError):
                os.rename(self.directory / newer, self.directory / older)
        self._open()

    def _names(self) -> list[str]:
        """The files, newest first, whether they are there or not."""
        return [_CURRENT, *(str(number) for number in range(1, self._files))]

    # reading

    def last_lines(self, count: int) -> list[Line]:
        """The last lines, oldest first, and what is no whole line yet (blocking, but it reads only the end)."""
        found = [line for descriptor, offset in self._tail(count) for line in _lines_of(descriptor, offset)]
        now = datetime.now(UTC)
        found += [Line(now, stream, _shown(rest)) for stream, rest in self._rest.items() if rest]
        return found[-count:] if count else []

    @asynccontextmanager
    async def read(
        self, *, tail: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[Line]]:
        """Lines, oldest first: the last ``tail`` (None: all) of those that are there, those written after ``since``.

        With ``follow`` it goes on with what is written from then on, over rotations, and does not end.
        """
        opened = await run_blocking(lambda: self._tail(tail))
        files = [_Reader(descriptor, offset) for descriptor, offset in opened]
        try:
            yield self._lines(files, since, follow)
        finally:
            for file in files:
                file.close()

    async def _lines(self, files: list["_Reader"], since: datetime | None, follow: bool) -> AsyncIterator[Line]:
        while True:
            more = self._more  # taken before the look, so that nothing is missed between look and wait
            for file in list(files):
                while lines := await run_blocking(file.read):
                    for line in lines:
                        if since is None or line.at > since:
                            yield line
            if not follow:
                return
            if not await run_blocking(lambda: self._find_next(files)):
                with anyio.move_on_after(_LOOK_AGAIN):
                    await more.wait()

    def _find_next(self, files: list["_Reader"]) -> bool:
        """Open the files after the last one that is being read, and close those that were read to their end."""
        known = files[-1].inode if files else None
        newer: list[_Reader] = []
        for name in self._names():
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
        for name in self._names():
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


class Sink:
    """A byte sink of the executor: the output of one stream of one run."""

    def __init__(self, log: PluginLog, stream: str) -> None:
        self._log = log
        self._stream = stream

    async def write(self, data: bytes) -> None:
        """Take these bytes."""
        self._log.append(self._stream, data)

    async def close(self) -> None:
        """The stream has ended."""
        self._log.end(self._stream)


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


def _stamped(stream: str, lines: bytes) -> bytes:
    """Records of these lines, all with this instant."""
    head = f"{datetime.now(UTC).isoformat(timespec='microseconds')} {stream} ".encode()
    return head + lines.replace(b"\n", b"\n" + head) + b"\n"


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

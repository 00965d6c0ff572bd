"""The writing side of one plugin's log: records with time and stream, into files that are rotated by size.

In the directory: ``current``, and older ones ``1``, ``2``, ... Each record is one line, ``TIME STREAM TEXT``; a ``+``
after the stream's name marks a piece of a line, which continues in the next record of that stream. ``counts``
has three unsigned 64-bit integers, little-endian: the bytes of each stream, and dropped lines. They count since the log
was created, over all writers.

This runs in the log keeper, so it imports little. It blocks only for the page cache.
"""

import itertools
import os
import struct
import time
from collections.abc import Sequence

from moorage.logs.targets import LineTarget

__all__ = ("LINE_LIMIT", "STREAMS", "LineStream", "LogWriter", "Piece", "file_names", "read_counts")

LINE_LIMIT = 64 * 1024
"""Longest line in bytes; a longer one is stored in pieces."""

STREAMS = ("stdout", "stderr")

Piece = bytes | memoryview

_COUNTS = struct.Struct("<3Q")

_OPEN = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def file_names(files: int) -> list[str]:
    """The names of a log's files, newest first, whether they exist or not."""
    return ["current", *(str(number) for number in range(1, files))]


def read_counts(directory: str) -> tuple[int, int, int]:
    """Bytes of stdout, bytes of stderr, lines dropped; zeros if nothing was counted yet."""
    try:
        descriptor = os.open(_counts_path(directory), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0, 0, 0
    try:
        return _counts_in(descriptor)
    finally:
        os.close(descriptor)


def _counts_path(directory: str) -> str:
    return os.path.join(directory, "counts")


def _counts_in(descriptor: int) -> tuple[int, int, int]:
    data = os.pread(descriptor, _COUNTS.size, 0)
    return _COUNTS.unpack(data) if len(data) == _COUNTS.size else (0, 0, 0)


class LogWriter:
    """Writes records to the files of one directory, which may have only one writer at a time.

    Writing never fails: on a full disk, lines are dropped; their number is logged as a line as soon as there is space.
    """

    def __init__(self, directory: str, *, most_bytes: int, files: int) -> None:
        """Creates nothing yet. All files together have about ``most_bytes``: each may exceed its part by one write."""
        self.directory = directory
        self._file_bytes = max(most_bytes // files, 1)
        self._paths = [os.path.join(directory, name) for name in file_names(files)]
        self._descriptor = -1
        self._size = 0
        self._dropped = 0
        self._drop_reason = ""
        self._counts = [0, 0, 0]
        self._counting = -1
        self._second, self._second_text = 0, b""
        self._target = LineTarget(directory)

    def head(self, stream: str) -> bytes:
        """The beginning of a record of this instant: RFC 3339 with microseconds, and the stream."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second, self._second_text = second, text.encode()
        return b"%b.%06d+00:00 %b " % (self._second_text, nanoseconds // 1000, stream.encode())

    def write(self, records: Sequence[Piece]) -> None:
        """Append these pieces, which together make whole records."""
        self._target.send(records)
        try:
            if self._descriptor < 0:
                self._open()
            if self._size and self._size + sum(map(len, records)) > self._file_bytes:
                self._rotate()
            if self._dropped:
                note = f"moorage: {self._dropped} lines were dropped: {self._drop_reason}\n"
                self._put([self.head("stderr"), note.encode(), *records])
                self._dropped = 0
            else:
                self._put(records)
        except OSError as error:
            lines = b"".join(records).count(b"\n")
            self._dropped += lines
            self._drop_reason = error.strerror or str(error)
            self._count(2, lines)

    def count_bytes(self, stream: str, length: int) -> None:
        """Add to the number of bytes of this stream."""
        self._count(STREAMS.index(stream), length)

    def close(self) -> None:
        """Close the files; the next write opens them again. May be repeated."""
        self._close_current()
        self._target.close()
        if self._counting >= 0:
            os.close(self._counting)
            self._counting = -1
            self._counts = [0, 0, 0]  # the file has them, and the next writer continues from there

    def _close_current(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _count(self, which: int, number: int) -> None:
        """Never fails either: if the file cannot be created, the numbers are written as soon as it can."""
        self._counts[which] += number
        try:
            if self._counting < 0:
                self._open_counts()
            os.pwrite(self._counting, _COUNTS.pack(*self._counts), 0)
        except OSError:
            pass

    def _open_counts(self) -> None:
        descriptor = os.open(_counts_path(self.directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            before = _counts_in(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._counting = descriptor
        self._counts = [old + new for old, new in zip(before, self._counts, strict=True)]

    def _put(self, records: Sequence[Piece]) -> None:
        length = sum(map(len, records))
        try:
            written = os.writev(self._descriptor, records)
            if written < length:
                rest = memoryview(b"".join(records))
                while written < length:  # the disk is probably full: then the next write reports it
                    written += os.write(self._descriptor, rest[written:])
        except OSError:
            try:
                os.ftruncate(self._descriptor, self._size)  # readers must not see half a line
            except OSError:
                pass  # readers recognize half a line
            raise
        self._size += length

    def _open(self) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        descriptor = os.open(self._paths[0], _OPEN, 0o600)
        try:
            self._size = os.fstat(descriptor).st_size
            if self._size and os.pread(descriptor, 1, self._size - 1) != b"\n":
                self._size += os.write(descriptor, b"\n")  # a writer was killed inside a record
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        self._close_current()
        if len(self._paths) == 1:
            _remove(self._paths[0])
        for old, new in itertools.pairwise(self._paths[::-1]):
            if os.path.lexists(new):
                # Not left to the rename: ext4 flushes a file that replaces another one, and the rename waits for it.
                _remove(old)
                try:
                    os.rename(new, old)
                except FileNotFoundError:
                    pass
        self._open()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class LineStream:
    """One stream of one run: makes records of its bytes. Buffers incomplete lines."""

    def __init__(self, writer: LogWriter, name: str) -> None:
        self._writer = writer
        self._name = name
        self._piece_name = f"{name}+"
        self._rest = bytearray()
        self._has_piece = False
        """Whether the last record was a piece of an incomplete line."""

    def take(self, data: bytes) -> None:
        """Write output of any length."""
        records: list[Piece] = []
        for begin in range(0, len(data), LINE_LIMIT):
            self._take(data[begin : begin + LINE_LIMIT], records)
        if records:
            self._writer.write(records)
        self._writer.count_bytes(self._name, len(data))

    def _take(self, data: bytes, records: list[Piece]) -> None:
        """Make records of one block, which is too short to contain a line beyond the limit."""
        first = data.find(b"\n") if b"\n" in data else len(data)
        if len(self._rest) + first > LINE_LIMIT:
            self._rest += data[:first]
            data = data[first:]
            while len(self._rest) > LINE_LIMIT:
                records += self._piece()
        cut = data.rfind(b"\n")
        if cut >= 0:
            mark = self._writer.head(self._name)
            # The mark after the last newline is cut off afterwards; cutting before would copy everything.
            stamped = memoryview(data.replace(b"\n", b"\n" + mark))
            records += (mark, bytes(self._rest), stamped[: len(stamped) - len(mark) - (len(data) - cut - 1)])
            self._rest.clear()
            self._has_piece = False
        self._rest += data[cut + 1 :]

    def _piece(self) -> list[bytes]:
        """A record of the buffered bytes up to the limit, without splitting a UTF-8 character."""
        end = min(len(self._rest), LINE_LIMIT)
        for back in range(4):
            if end < len(self._rest) and end - back > 0 and self._rest[end - back] & 0xC0 != 0x80:
                end -= back
                break
        piece = bytes(self._rest[:end])
        del self._rest[:end]
        self._has_piece = True
        return [self._writer.head(self._piece_name), piece, b"\n"]

    def flush(self) -> None:
        """Write the buffered bytes as a piece of a line."""
        if self._rest:
            self._writer.write(self._piece())

    def end(self) -> None:
        """Finish the stream, which may have ended inside a line. May be repeated."""
        if self._rest or self._has_piece:
            self._writer.write([self._writer.head(self._name), bytes(self._rest), b"\n"])
            self._rest.clear()
            self._has_piece = False

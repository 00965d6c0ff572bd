"""Output of a plugin as events, line by line."""

from collections.abc import Iterator
from datetime import UTC, datetime

from moorage.foreground.events import Report, RunOutput

__all__ = ("LINE_LIMIT", "LineSink")

LINE_LIMIT = 64 * 1024
"""Longest line in bytes; a longer one is reported in pieces."""


class LineSink:
    """A byte sink that reports lines with their time."""

    def __init__(self, stream: str, report: Report) -> None:
        """``stream`` is the name that is reported: stdout or stderr."""
        self._stream = stream
        self._report = report
        self._rest = b""

    async def write(self, data: bytes) -> None:
        """Report every line that is complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        pieces = [piece for line in lines for piece in _pieces(line)]
        if len(self._rest) > LINE_LIMIT:
            *more, self._rest = _pieces(self._rest)
            pieces += more
        await self._report_lines(pieces)

    async def close(self) -> None:
        """Report a last line without a line end."""
        rest, self._rest = self._rest, b""
        await self._report_lines([rest] if rest else [])

    async def _report_lines(self, lines: list[bytes]) -> None:
        if lines:
            texts = tuple(line.removesuffix(b"\r").decode(errors="backslashreplace") for line in lines)
            await self._report(RunOutput(self._stream, datetime.now(UTC), texts))


def _pieces(line: bytes) -> Iterator[bytes]:
    """A line in pieces of at most LINE_LIMIT bytes, none of which ends within a character; an empty line as it is."""
    begin = 0
    while len(line) - begin > LINE_LIMIT:
        end = begin + LINE_LIMIT
        while line[end] & 0xC0 == 0x80 and end > begin + LINE_LIMIT - 4:
            end -= 1
        yield line[begin:end]
        begin = end
    yield line[begin:]

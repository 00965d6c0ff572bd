"""One plugin's output in files: lines with time and stream, bounded in size, read from the end and followed."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

__all__ = ("Line", "PluginLog")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output, without its end."""

    at: datetime
    stream: str
    """stdout or stderr."""
    text: str


class PluginLog:
    """The log of one plugin, in a directory of its own. Used from one event loop."""

    def __init__(self, directory: Path, *, most_bytes: int = 10 * 1024 * 1024, files: int = 3) -> None:
        raise NotImplementedError

    def sink(self, stream: str) -> "Sink":
        raise NotImplementedError

    def last_lines(self, count: int) -> list[Line]:
        raise NotImplementedError

    def read(
        self, *, tail: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[Line]]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Sink:
    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

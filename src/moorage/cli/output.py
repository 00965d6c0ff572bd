"""Writing to a terminal or pipe without stopping the loop."""

import os
import select
from typing import TextIO

import anyio

__all__ = ("Output",)


class Output:
    """A standard stream for a program that waits for other things, too.

    A pipe whose reader sleeps would stop the whole program in write(2), and with it the handling of Ctrl-C.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """``stream`` is None where it was closed when the program began; then nothing is written."""
        self.is_terminal = stream is not None and stream.isatty()
        self._lock = anyio.Lock()
        self._poll = select.poll()
        self._descriptor = -1
        if stream is not None:
            stream.flush()
            self._descriptor = stream.fileno()
            self._poll.register(self._descriptor, select.POLLOUT)

    async def write(self, text: str) -> None:
        """All of the text, before any that is written later. Cancelled, it may have written a part.

        Raises: OSError, BrokenPipeError where the reader closed it.
        """
        rest = memoryview(text.encode(errors="backslashreplace"))
        async with self._lock:
            while rest and self._descriptor >= 0:
                if not self._poll.poll(0):
                    await anyio.wait_writable(self._descriptor)
                # a pipe that is writable at all takes this much at once
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]

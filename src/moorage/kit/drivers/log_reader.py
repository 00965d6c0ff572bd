"""Reads the FIFO of one container's output, from StartLogging to StopLogging, also across restarts of both sides.

The FIFO is opened without waiting for a writer; poll(2) then waits, until one has opened it. Where the writer closes it
without StopLogging (a dockerd that was killed), it is opened again and waits for the next.
"""

import os
import select
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from moorage.kit.driver import log
from moorage.kit.drivers.log_entry import EntryJoiner, FrameDecoder, LogEntry

__all__ = ("LogReader",)

_READ_BYTES = 1 << 16


class LogReader:
    """Calls a function for each line, in a thread."""

    def __init__(self, path: Path, write: Callable[[LogEntry], None]) -> None:
        """``path`` of the FIFO; ``write`` is called for each whole line, and what it raises is logged."""
        self.path = path
        self._write = write
        self._decoder = FrameDecoder()
        self._joiner = EntryJoiner()
        self._stop_out, self._stop_in = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to read.

        Raises:
            OSError: there is no FIFO at the path
        """
        descriptor = self._open()
        self._descriptor = descriptor
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Read what has been written until now, and end; returns after the last line, or after this time."""
        os.write(self._stop_in, b"x")
        self._thread.join(seconds)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _run(self) -> None:
        try:
            while self._read_until_closed():
                os.close(self._descriptor)
                self._descriptor = self._open()
        except FileNotFoundError:
            pass  # dockerd has removed the FIFO
        except OSError as error:
            log(f"cannot read {self.path}: {error}")
        for entry in self._joiner.flush():
            self._pass_on(entry)
        if self._decoder.skipped_bytes:
            log(f"{self.path}: {self._decoder.skipped_bytes} bytes were no log entries")
        for descriptor in (self._descriptor, self._stop_out, self._stop_in):
            try:
                os.close(descriptor)
            except OSError:
                pass  # it could not be opened again

    def _read_until_closed(self) -> bool:
        """Read until no writer is left: True; or until ``stop``: False. Raises: OSError."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._stop_out, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._descriptor in ready and not self._read():
                return self._stop_out not in ready
            if self._stop_out in ready:
                while self._read():
                    pass
                return False

    def _read(self) -> bool:
        """Pass on what one read returns; whether there was anything. Raises: OSError."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        for entry in self._decoder.feed(data):
            whole = self._joiner.join(entry)
            if whole is not None:
                self._pass_on(whole)
        return bool(data)

    def _pass_on(self, entry: LogEntry) -> None:
        try:
            self._write(entry)
        except Exception:  # noqa: BLE001 - the container must not wait because a line cannot be stored
            log(traceback.format_exc().rstrip())

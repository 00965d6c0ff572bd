"""The standard streams of a task: two FIFOs in a directory, and their read ends.

The order is: ``make_fifos`` (files), ``open_stdio`` (read ends, before the task is created), create the task, read
until ``b""``, then ``close``, and remove the directory last. Before the shim has opened its write end a FIFO reads as
ended, so reading begins only after the creation has returned.

Source: measured against containerd 1.6: with one read end missing, creation blocks for 30 s and fails; the shim keeps a
write end of its own, so end of file comes only after the process has ended, whoever reads or does not.
"""

import fcntl
import os
import select
import time
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel

from moorage.host.inheritance import make_directory

__all__ = ("FifoReader", "Stdio", "fifo_paths", "make_bundle", "make_fifos", "open_stdio")

READ_BYTES = 64 * 1024
"""Larger reads cost more and bring no more."""

_FIFO_BYTES = 512 * 1024
"""Room for what is written while the loop does something else; the kernel takes memory only for what is in it."""

_LITTLE = 16 * 1024
_TRICKLES = 16
_GATHER = 0.001
"""After so many reads in a row that brought little and came at once, wait so many seconds before each next one."""


class FifoReader:
    """The read end of a FIFO. One reader at a time; ``close`` wakes it."""

    def __init__(self, path: Path) -> None:
        """Open without waiting for a writer. Raises: FileNotFoundError."""
        self.path = path
        self._is_waited_for = False
        self._last_at = 0.0
        self._trickles = 0
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # more than this user may have: it works with less, only slower
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _FIFO_BYTES)

    def fileno(self) -> int:
        """The descriptor, for whoever hands it on. Raises: ClosedResourceError after ``close``."""
        if self._descriptor is None:
            raise anyio.ClosedResourceError
        return self._descriptor

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """The next bytes, at least one; ``b""`` when every writer is gone and all was read.

        Raises: ClosedResourceError when ``close`` was called.
        """
        if self._trickles > _TRICKLES:
            await anyio.sleep(_GATHER)
        else:
            await anyio.lowlevel.checkpoint()  # a writer that never pauses must not keep the loop to itself
        while True:
            try:
                return self._counted(os.read(self.fileno(), max_bytes))
            except BlockingIOError:
                self._is_waited_for = True
                try:
                    await anyio.wait_readable(self.fileno())
                finally:
                    self._is_waited_for = False

    def has_writer(self) -> bool:
        """Whether a process may have it open for writing; False where one had since we opened it, and none has."""
        if self._descriptor is None:
            return False
        polled = select.poll()
        polled.register(self._descriptor, 0)  # POLLHUP comes unasked
        return not polled.poll(0)

    def _counted(self, data: bytes) -> bytes:
        """The data, after a look whether little of it comes all the time: then waking for each bit costs most."""
        now = time.monotonic()
        is_trickle = len(data) < _LITTLE and now - self._last_at < 2 * _GATHER
        self._trickles = self._trickles + 1 if is_trickle else 0
        self._last_at = now
        return data

    def close(self) -> None:
        """Close the read end; a reader that waits gets ClosedResourceError. May be repeated."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                if self._is_waited_for:  # else there may be no loop to tell it: opening happens in worker threads
                    anyio.notify_closing(descriptor)
            finally:
                os.close(descriptor)


class Stdio:
    """Both output streams of a task, and a standard input where there should be one (there never is with us)."""

    def __init__(self, stdout: FifoReader, stderr: FifoReader) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.stdin: None = None

    def note(self, line: str) -> None:
        """Add a line to each stream that a process still has open, as if that had written it. It may get lost."""
        for reader in (self.stdout, self.stderr):
            if reader.has_writer():
                _write_now(reader.path, f"\n{line}\n".encode())  # what came before may be no whole line

    def close(self) -> None:
        """Close both read ends; readers that wait are woken. May be repeated."""
        self.stdout.close()
        self.stderr.close()


def _write_now(path: Path, data: bytes) -> None:
    """Write to a FIFO; nothing where nobody reads it any more, or it is full of what nobody takes."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def fifo_paths(directory: Path) -> tuple[Path, Path]:
    """Where a task's stdout and stderr are, given its directory."""
    return directory / "stdout", directory / "stderr"


def make_bundle(directory: Path) -> None:
    """Make the directory of a container, for root only. Raises: FileExistsError where one is there already."""
    make_directory(directory.parent, 0o700)
    directory.mkdir(mode=0o700)


def make_fifos(directory: Path, *, uid: int = 0, gid: int = 0) -> None:
    """Make both FIFOs, owned by whom the process runs as, so that it may open its ``/dev/stdout`` again.

    Raises: FileExistsError where one is there already: somebody may read from it.
    """
    for path in fifo_paths(directory):
        os.mkfifo(path, 0o600)
        if uid or gid:
            os.chown(path, uid, gid, follow_symlinks=False)


def open_stdio(directory: Path) -> Stdio:
    """Both read ends, opened without waiting. Raises: FileNotFoundError."""
    stdout_path, stderr_path = fifo_paths(directory)
    stdout = FifoReader(stdout_path)
    try:
        return Stdio(stdout, FifoReader(stderr_path))
    except BaseException:
        stdout.close()
        raise

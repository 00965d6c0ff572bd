"""The standard streams of a task: two FIFOs in a directory, and their read ends.

The order is: ``make_fifos`` (files), ``open_stdio`` (read ends, before the task is created), create the task, read
until ``b""``, then ``close``, and remove the directory last. Before the shim has opened its write end a FIFO is at EOF,
so reading starts only after the creation has returned.

Source: measured against containerd 1.6: with one read end missing, creation blocks for 30 s and fails; the shim keeps a
write end of its own, so EOF follows only after the process has exited, whether it is read or not.
"""

import fcntl
import os
import select
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio
import anyio.lowlevel

from moorage.host.files import make_directory

__all__ = (
    "Attach",
    "Consumer",
    "FifoReader",
    "TaskFifos",
    "fifo_paths",
    "make_bundle",
    "make_fifos",
    "open_stdio",
    "renew_stdio",
)

READ_BYTES = 64 * 1024
"""Larger reads cost more and return no more."""

_FIFO_BYTES = 512 * 1024
"""Room for what is written while the loop does something else; the kernel takes memory only for what is in it."""

_SMALL_READ_BYTES = 16 * 1024
_SMALL_READS_LIMIT = 16
_GATHER_INTERVAL = 0.001
"""After so many consecutive reads that returned little without delay, wait so many seconds before each next one."""


class FifoReader:
    """The read end of the FIFO at ``path``. One reader at a time; ``close`` wakes it.

    ``path`` is the FIFO's, which must exist.
    """

    def __init__(self, path: Path) -> None:
        """Open without waiting for a writer.

        Raises:
            FileNotFoundError: no such FIFO
        """
        self.path = path
        self._is_waited_for = False
        self._last_at = 0.0
        self._small_reads = 0
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # more than this user may have: it works with less, only slower
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _FIFO_BYTES)

    def fileno(self) -> int:
        """The descriptor, to be passed to another process. The reader continues to own it.

        Raises:
            anyio.ClosedResourceError: ``close`` was called
        """
        if self._descriptor is None:
            raise anyio.ClosedResourceError
        return self._descriptor

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """The next bytes, at least one; ``b""`` when every writer has closed it and all was read.

        Raises:
            anyio.ClosedResourceError: ``close`` was called
        """
        if self._small_reads > _SMALL_READS_LIMIT:
            await anyio.sleep(_GATHER_INTERVAL)
        else:
            await anyio.lowlevel.checkpoint()  # a writer that never pauses must not block the loop
        while True:
            try:
                return self._count_small_reads(os.read(self.fileno(), max_bytes))
            except BlockingIOError:
                self._is_waited_for = True
                try:
                    await anyio.wait_readable(self.fileno())
                finally:
                    self._is_waited_for = False

    def has_writer(self) -> bool:
        """Whether a process may have it open for writing; False if one had since this end was opened, and none has."""
        if self._descriptor is None:
            return False
        polled = select.poll()
        polled.register(self._descriptor, 0)  # POLLHUP is always reported
        return not polled.poll(0)

    def _count_small_reads(self, data: bytes) -> bytes:
        """The data, after counting consecutive small reads: waking for each of them costs most."""
        now = time.monotonic()
        is_small = len(data) < _SMALL_READ_BYTES and now - self._last_at < 2 * _GATHER_INTERVAL
        self._small_reads = self._small_reads + 1 if is_small else 0
        self._last_at = now
        return data

    def close(self) -> None:
        """Close the read end; a reader that waits gets ClosedResourceError. May be repeated."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                if self._is_waited_for:  # else there may be no loop to notify: opening happens in worker threads
                    anyio.notify_closing(descriptor)
            finally:
                os.close(descriptor)


class TaskFifos:
    """Both output streams of a task, ``stdout`` and ``stderr``, which it owns. ``stdin`` is always None.

    ``stdout`` and ``stderr`` are closed by ``close``.
    """

    def __init__(self, stdout: FifoReader, stderr: FifoReader) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.stdin: None = None

    def note(self, line: str) -> None:
        """Add a line to each stream that a process has open, as if that process had written it. It may be lost."""
        for reader in (self.stdout, self.stderr):
            if reader.has_writer():
                _write_now(reader.path, f"\n{line}\n".encode())  # the output before may not be a whole line

    def close(self) -> None:
        """Close both read ends; readers that wait are woken. May be repeated."""
        self.stdout.close()
        self.stderr.close()


class Consumer(Protocol):
    """The owner of the streams."""

    async def wait(self) -> None:
        """Return when both streams have been read up to EOF."""


Attach = Callable[[TaskFifos], Awaitable[Consumer]]
"""Takes ownership of both readers (it closes them) and returns their consumer."""


def _write_now(path: Path, data: bytes) -> None:
    """Write to a FIFO; ignored if it has no reader any more, or is full."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def fifo_paths(directory: Path) -> tuple[Path, Path]:
    """The paths of a task's stdout and stderr in its directory."""
    return directory / "stdout", directory / "stderr"


def make_bundle(directory: Path) -> None:
    """Make the directory of a container, for root only.

    Raises:
        FileExistsError: it exists
        OSError: it cannot be made
    """
    make_directory(directory.parent, 0o700)
    directory.mkdir(mode=0o700)


def make_fifos(directory: Path, *, uid: int = 0, gid: int = 0) -> None:
    """Make both FIFOs, owned by the user of the process, so that it may open its ``/dev/stdout`` again.

    Raises:
        FileExistsError: one exists, and may have a reader
        OSError: they cannot be made
    """
    for path in fifo_paths(directory):
        os.mkfifo(path, 0o600)
        if uid or gid:
            os.chown(path, uid, gid, follow_symlinks=False)


def open_stdio(directory: Path) -> TaskFifos:
    """Both read ends, opened without waiting. The caller closes them.

    Raises:
        FileNotFoundError: a FIFO is missing
        OSError: a FIFO cannot be opened
    """
    stdout_path, stderr_path = fifo_paths(directory)
    stdout = FifoReader(stdout_path)
    try:
        return TaskFifos(stdout, FifoReader(stderr_path))
    except BaseException:
        stdout.close()
        raise


def renew_stdio(directory: Path, *, uid: int = 0, gid: int = 0) -> TaskFifos:
    """Both FIFOs, new, with their read ends open. Those of a failed start are removed: they have no writer.

    Raises:
        OSError: they cannot be made or opened
    """
    for path in fifo_paths(directory):
        path.unlink(missing_ok=True)
    make_fifos(directory, uid=uid, gid=gid)
    return open_stdio(directory)

"""The standard streams of a task: two FIFOs in a directory, and their read ends.

The order is: ``make_fifos`` (files), ``open_stdio`` (read ends, before the task is created), create the task, read
until ``b""``, then ``close``, and remove the directory last. Before the shim has opened its write end a FIFO reads as
ended, so reading begins only after the creation has returned.

Source: measured against containerd 1.6: with one read end missing, creation blocks for 30 s and fails; the shim keeps a
write end of its own, so end of file comes only after the process has ended, whoever reads or does not.
"""

import os
from pathlib import Path

import anyio
import anyio.lowlevel

__all__ = ("FifoReader", "Stdio", "fifo_paths", "make_fifos", "open_stdio")

READ_BYTES = 64 * 1024
"""As much as a FIFO holds; larger reads cost more and bring no more."""


class FifoReader:
    """The read end of a FIFO. One reader at a time; ``close`` wakes it."""

    def __init__(self, path: Path) -> None:
        """Open without waiting for a writer. Raises: FileNotFoundError."""
        self.path = path
        self._is_waited_for = False
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor, for whoever hands it on. Raises: ClosedResourceError after ``close``."""
        if self._descriptor is None:
            raise anyio.ClosedResourceError
        return self._descriptor

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """The next bytes, at least one; ``b""`` when every writer is gone and all was read.

        Raises: ClosedResourceError when ``close`` was called.
        """
        await anyio.lowlevel.checkpoint()  # a writer that never pauses must not keep the loop to itself
        while True:
            try:
                return os.read(self.fileno(), max_bytes)
            except BlockingIOError:
                self._is_waited_for = True
                try:
                    await anyio.wait_readable(self.fileno())
                finally:
                    self._is_waited_for = False

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

    def close(self) -> None:
        """Close both read ends; readers that wait are woken. May be repeated."""
        self.stdout.close()
        self.stderr.close()


def fifo_paths(directory: Path) -> tuple[Path, Path]:
    """Where a task's stdout and stderr are, given its directory."""
    return directory / "stdout", directory / "stderr"


def make_fifos(directory: Path, *, uid: int = 0, gid: int = 0) -> None:
    """Make both FIFOs, owned by whom the process runs as, so that it may open its ``/dev/stdout`` again.

    Raises: FileExistsError where one is there already: somebody may read from it.
    """
    for path in fifo_paths(directory):
        os.mkfifo(path, 0o600)
        if uid or gid:
            os.chown(path, uid, gid)


def open_stdio(directory: Path) -> Stdio:
    """Both read ends, opened without waiting. Raises: FileNotFoundError."""
    stdout_path, stderr_path = fifo_paths(directory)
    stdout = FifoReader(stdout_path)
    try:
        return Stdio(stdout, FifoReader(stderr_path))
    except BaseException:
        stdout.close()
        raise

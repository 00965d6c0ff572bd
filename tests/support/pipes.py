"""Runs without a container: two FIFOs with a writer, for the log keeper."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from moorage.containerd.stdio import TaskFifos, make_fifos, open_stdio
from support.limits import limit

SOURCE = Path(__file__).resolve().parents[2] / "src"


class Run:
    """A process's side of its two streams."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        make_fifos(directory)
        self._open_ends = [os.open(directory / name, os.O_RDWR) for name in ("stdout", "stderr")]
        self._out = os.open(directory / "stdout", os.O_WRONLY | os.O_NONBLOCK)
        self._err = os.open(directory / "stderr", os.O_WRONLY | os.O_NONBLOCK)

    def stdio(self) -> TaskFifos:
        """The read ends, as an engine opens them; the same FIFOs each time."""
        return open_stdio(self.directory)

    def say(self, data: bytes, *, error: bool = False) -> None:
        """Write. Raises: BlockingIOError where the FIFO is full."""
        assert os.write(self._err if error else self._out, data) == len(data)

    def writer(self) -> int:
        """The write end of stdout, for a caller that may wait."""
        os.set_blocking(self._out, True)
        return self._out

    def end(self) -> None:
        """Close both. May be repeated."""
        for descriptor in (*self._open_ends, self._out, self._err):
            if descriptor >= 0:
                os.close(descriptor)
        self._open_ends, self._out, self._err = [], -1, -1


def keeper_pid(state: Path) -> int:
    """The process that notes itself there, 0 where none does."""
    try:
        return int((state / "pid").read_text() or 0)
    except OSError:
        return 0


def start_keeper(state: Path, change: str = "") -> int:
    """Start a keeper whose module was changed by this code; its pid."""
    state.mkdir(exist_ok=True)
    program = f"import sys\nfrom moorage.logs import keeper\n{change}\nsys.exit(keeper.main({str(state)!r}))"
    subprocess.run([sys.executable, "-S", "-P", "-c", program], env={"PYTHONPATH": str(SOURCE)}, check=True)
    return keeper_pid(state)


def call_keeper(state: Path) -> socket.socket:
    """A connection of one's own."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(limit(10))
    client.connect(str(state / "k.sock"))
    return client

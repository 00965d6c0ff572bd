"""A command on a terminal of some size: what it shows there."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from support.limits import limit

_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Screen(NamedTuple):
    """What a command wrote to its terminal, and its exit status."""

    raw: str
    status: int

    @property
    def lines(self) -> list[str]:
        """Its lines without colours and movements of the cursor."""
        return [_CODES.sub("", line) for line in self.raw.splitlines()]


@contextmanager
def pseudo_terminal(columns: int, rows: int = 24) -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of this size: controller and terminal; the caller closes the latter."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        yield controller, terminal
    finally:
        os.close(controller)


def read_all(controller: int) -> str:
    """What is written to a terminal until nothing has it open."""
    seen = b""
    try:
        while data := os.read(controller, 65536):
            seen += data
    except OSError:
        pass  # Linux's way to say that the other end is closed
    return seen.decode(errors="replace").replace("\r\n", "\n")


def show(columns: int, *words: str, program: Sequence[str] = ("-m", "moorage"), **environment: str) -> Screen:
    """``moorage`` with these words on a terminal of so many columns."""
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, *program, *words]
    with pseudo_terminal(columns) as (controller, terminal):
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            env={**variables, "TERM": "xterm", **environment},
            start_new_session=True,
        )
        os.close(terminal)
        raw = read_all(controller)
        return Screen(raw, child.wait(limit(30)))


class Typist:
    """A person at a terminal, who waits for something to be shown before a key is typed."""

    def __init__(self, columns: int, *words: str, **environment: str) -> None:
        """``moorage`` with these words; the terminal controls it, so that Ctrl-C is a signal."""
        variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._terminal = pseudo_terminal(columns)
        self._controller, terminal = self._terminal.__enter__()
        command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "moorage", *words]
        environment = {**variables, "TERM": "xterm", **environment}
        self.child = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read until this text was shown."""
        deadline = time.monotonic() + limit(60)
        while text not in _CODES.sub("", self.seen):
            assert time.monotonic() < deadline, f"{text!r} was not shown: {self.seen!r}"
            if select.select([self._controller], [], [], 0.1)[0]:
                data = os.read(self._controller, 65536)
                self.seen += data.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        """Type these keys."""
        os.write(self._controller, keys)

    def end(self) -> Screen:
        """All that was shown, and the exit status."""
        try:
            self.seen += read_all(self._controller)
            return Screen(self.seen, self.child.wait(limit(30)))
        finally:
            self._terminal.__exit__(None, None, None)

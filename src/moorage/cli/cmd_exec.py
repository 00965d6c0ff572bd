"""``moorage exec``: a command in a plugin, with a terminal or without."""

import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.context import engine_client, plugin_names

if TYPE_CHECKING:
    from moorage.client import Execution


@click.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Execute a command in a running plugin. The exit status is the command's.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("words", metavar="COMMAND [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Allocate a pseudo-TTY.")
@click.option("-e", "--env", "environment", metavar="NAME=VALUE", multiple=True, help="Set an environment variable.")
def command(
    plugin: str, words: tuple[str, ...], interactive: bool, terminal: bool, environment: tuple[str, ...]
) -> int:
    """Execute; the exit status is the command's."""
    if terminal and not sys.stdin.isatty() and interactive:
        raise errors.Invalid("cannot allocate a terminal: standard input is not one; leave -t out")
    from moorage.api.schema.output import ExecRequest

    request = ExecRequest(list(words), list(environment), terminal)
    if terminal:
        rows, columns = _size()
        request = ExecRequest(list(words), list(environment), terminal, rows, columns)
    with engine_client().execute(plugin, request) as execution, _raw_terminal(is_raw=terminal and interactive):
        threading.Thread(target=_send, args=(execution, interactive), daemon=True).start()
        return _show(plugin, execution, terminal=terminal)


def _show(plugin: str, execution: "Execution", *, terminal: bool) -> int:
    """Write the output of the command until it exits; its exit status.

    Raises:
        errors.MoorageError: the plugin exited, and the command with it
        errors.Unavailable: the engine did not report an exit status
    """
    from moorage.api.schema.output import ExecStarted
    from moorage.client import ExecOutput

    for frame in execution.frames():
        if isinstance(frame, ExecOutput):
            _write(1 if frame.stream == "stdout" else 2, frame.data)
        elif isinstance(frame, ExecStarted):
            if terminal:
                _follow_size(plugin, frame.id)
        elif frame.code is not None:
            return frame.code
    raise errors.Unavailable("the exit status of the command is unknown")


def _send(execution: "Execution", has_input: bool) -> None:
    with suppress(OSError):  # it is over
        while has_input and (data := os.read(0, 65536)):
            execution.send(data)
        execution.send(b"")


def _follow_size(plugin: str, exec_id: str) -> None:
    client = engine_client()

    def resize(*_: object) -> None:
        with suppress(errors.MoorageError):
            client.resize(plugin, exec_id, *_size())

    signal.signal(signal.SIGWINCH, resize)


def _size() -> tuple[int, int]:
    """Rows and columns of the terminal that we are on, 24 and 80 where we are on none."""
    for descriptor in range(3):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return size.lines, size.columns
    return 24, 80


@contextmanager
def _raw_terminal(*, is_raw: bool) -> Iterator[None]:
    """Pass every key on; the mode of the terminal is restored afterwards."""
    if not is_raw:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # retains what was typed ahead
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]

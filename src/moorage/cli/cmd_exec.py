"""moorage exec: a command inside a plugin, with a terminal or without."""

import json
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from moorage import errors
from moorage.cli.common import plugin_names, reach
from moorage.client import Execution

__all__ = ("command",)

_STARTED, _OUT, _ERR, _EXIT = range(4)


@click.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Run COMMAND inside PLUGIN, beside its own process; its end does not touch the plugin.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("words", metavar="COMMAND [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", "environment", metavar="NAME=VALUE", multiple=True, help="Set a variable for it.")
def command(
    plugin: str, words: tuple[str, ...], interactive: bool, terminal: bool, environment: tuple[str, ...]
) -> int:
    """The command's exit status is ours."""
    if terminal and not sys.stdin.isatty() and interactive:
        raise errors.Invalid("cannot pass on a terminal: standard input is none; leave -t out")
    start: dict[str, object] = {"command": words, "env": environment, "tty": terminal}
    if terminal:
        rows, columns = _size()
        start |= {"rows": rows, "columns": columns}
    with reach().execute(plugin, start) as execution, _raw_terminal(is_wanted=terminal and interactive):
        threading.Thread(target=_send, args=(execution, interactive), daemon=True).start()
        return _show(plugin, execution, terminal=terminal)


def _show(plugin: str, execution: Execution, *, terminal: bool) -> int:
    """Write what comes until the end; the exit status. Raises: MoorageError where the plugin ended."""
    for kind, data in execution.frames():
        if kind in (_OUT, _ERR):
            _write(1 if kind == _OUT else 2, data)
        elif kind == _STARTED and terminal:
            _follow_size(plugin, json.loads(data)["Id"])
        elif kind == _EXIT:
            return int(json.loads(data)["Code"])
        elif kind > _EXIT:
            raise errors.MoorageError(str(json.loads(data)["message"]))
    raise errors.Unavailable("the engine said nothing of the end")


def _send(execution: Execution, is_wanted: bool) -> None:
    with suppress(OSError):  # it is over
        while is_wanted and (data := os.read(0, 65536)):
            execution.send(data)
        execution.send(b"")


def _follow_size(plugin: str, exec_id: str) -> None:
    engine = reach()

    def tell(*_: object) -> None:
        with suppress(errors.MoorageError):
            engine.resize(plugin, exec_id, *_size())

    signal.signal(signal.SIGWINCH, tell)


def _size() -> tuple[int, int]:
    """Rows and columns of the terminal that we are on, 24 and 80 where we are on none."""
    for descriptor in range(3):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return size.lines, size.columns
    return 24, 80


@contextmanager
def _raw_terminal(*, is_wanted: bool) -> Iterator[None]:
    """Every key goes to the other side; the terminal is as before afterwards."""
    if not is_wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]

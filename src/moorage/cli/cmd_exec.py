"""``moorage exec``: a command in a plugin, with a terminal or without."""

import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.context import engine_client, plugin_names
from moorage.cli.terminal import complain

if TYPE_CHECKING:
    from moorage.api.schema.output import ExecRequest
    from moorage.client import Execution


@click.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Execute a command in a running plugin. The exit status is the command's; 125 if it cannot be "
    "run, 126 if it is not executable, 127 if it is not found.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("words", metavar="COMMAND [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Allocate a pseudo-TTY.")
@click.option("-e", "--env", "environment", metavar="NAME[=VALUE]", multiple=True, help="Set an environment variable.")
@click.option(
    "--env-file",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Read environment variables from a file.",
)
@click.option("-u", "--user", default="", metavar="NAME|UID[:GROUP|GID]", help="User of the command.")
@click.option("-w", "--workdir", metavar="DIR", default="", help="Working directory of the command.")
@click.option("-d", "--detach", is_flag=True, help="Detached mode: run the command in the background.")
def command(
    plugin: str, words: tuple[str, ...], terminal: bool, interactive: bool, detach: bool, **options: Any
) -> int:
    """Execute; the exit status is the command's, or one of docker's own for a failure."""
    try:
        request = _request(words, terminal=terminal, **options)
        if terminal and not sys.stdin.isatty() and interactive and not detach:
            raise errors.Invalid("cannot allocate a terminal: standard input is not one; leave -t out")
        with engine_client().execute(plugin, request) as execution:
            if detach:
                return _detach(execution)
            with _raw_terminal(is_raw=terminal and interactive):
                threading.Thread(target=_send, args=(execution, interactive), daemon=True).start()
                return _show(plugin, execution, terminal=terminal)
    except errors.MoorageError as error:
        complain(f"{error}")
        return exit_status_of(str(error))


def exit_status_of(failure: str) -> int:
    """The status for a command that could not be run, as docker has it: by the text of the runtime.

    Source: moby daemon/start.go (setExitCodeFromError).
    """
    text = failure.lower()
    if text.startswith("the plugin exited"):  # and the kernel killed the command with it
        return 128 + signal.SIGKILL
    if not text.startswith("cannot run "):
        return 125
    if "permission denied" in text or "is a directory" in text or "not a directory" in text:
        return 126
    return 127 if "not found" in text or "no such file" in text else 125


def _request(
    words: tuple[str, ...],
    *,
    terminal: bool,
    environment: tuple[str, ...],
    files: tuple[Path, ...],
    user: str,
    workdir: str,
) -> "ExecRequest":
    from moorage.api.schema.output import ExecRequest

    variables = [line for path in files for line in path.read_text().splitlines()]
    found = [each for line in (*variables, *environment) if (each := _variable(line))]
    if not terminal:
        return ExecRequest(list(words), found, user=user, workdir=workdir)
    rows, columns = _size()
    return ExecRequest(list(words), found, terminal, rows, columns, user, workdir)


def _variable(text: str) -> str:
    """NAME=VALUE; NAME alone has the value of our own environment, and where it has none, and in a comment, none."""
    name, equals, _ = text.lstrip().partition("=")
    if not name or name.startswith("#"):
        return ""
    return text.lstrip() if equals else f"{name}={os.environ[name]}" if name in os.environ else ""


def _detach(execution: "Execution") -> int:
    """Return when the command runs; a child process remains until it exits: the engine kills it with its caller."""
    from moorage.api.schema.output import ExecStarted

    frames = execution.frames()
    if not isinstance(next(frames, None), ExecStarted):
        raise errors.Unavailable("the command was not started")
    execution.send(b"")
    if os.fork():
        return 0
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        for _ in frames:
            pass
    finally:
        os._exit(0)


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

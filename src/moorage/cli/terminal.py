"""The one printer: whatever a command shows goes through here, and nothing in it can act on the terminal.

Texts come from plugins, packages, registries and other users of the machine. They are escaped here, all of them, so
that no command has to know which is which; only what this module colours is passed on as it is.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence

from moorage import errors
from moorage._lib.escapes import escape
from moorage.cli.format.column_fit import cell_width, cut, fit_columns

__all__ = (
    "clear",
    "complain",
    "confirm",
    "indented",
    "json_text",
    "print_json",
    "print_object",
    "prompt",
    "say",
    "say_lines",
    "say_shown",
    "styled",
    "table",
    "terminal_width",
    "warn",
)

_GAP = 3
_CLEAR = "\x1b[H\x1b[J"
_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}
_RESET = "\x1b[0m"
_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Styled(str):
    """A text that was escaped and then coloured."""

    __slots__ = ("colour", "plain")
    plain: str
    colour: str | None


def styled(text: str, colour: str | None) -> Styled:
    """A text in a colour, which only a terminal shows, and none where NO_COLOR is set."""
    return _styled(escape(text), colour)


def _styled(plain: str, colour: str | None) -> Styled:
    is_coloured = bool(colour) and not os.environ.get("NO_COLOR")
    made = Styled(f"\x1b[{_COLOURS[colour]}m{plain}{_RESET}" if colour and is_coloured else plain)
    made.plain, made.colour = plain, colour
    return made


def _write(text: str, *, err: bool = False, colours: bool = False) -> None:
    """Write a text at once; colours only to a terminal, unless ``colours``. Nothing where the stream is closed."""
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    if not colours and "\x1b" in text and not stream.isatty():
        text = _SEQUENCE.sub("", text)
    try:
        stream.write(text)
    except UnicodeEncodeError:  # the locale's encoding lacks a character; terminals and files of today have UTF-8
        stream.buffer.write(text.encode(errors="replace"))
    stream.flush()


def say(*parts: str, err: bool = False, colours: bool = False) -> None:
    """Print a line of these parts, on standard error if ``err``. Tabs stay, and colours (SGR) if ``colours``."""
    shown = "".join(each if isinstance(each, Styled) else escape(each, keep="\t", colours=colours) for each in parts)
    _write(shown + "\n", err=err, colours=colours)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines."""
    _write(escape(text, keep="\n\t") + "\n", err=err)


def say_shown(text: str) -> None:
    """Print what a template made, in which the parts that are not the user's were escaped. A line feed follows."""
    _write(f"{text}\n")


def indented(text: str) -> str:
    """A message with all lines but the first indented, so that none of them can pass for another message."""
    return text.replace("\n", "\n  ")


def complain(text: str) -> None:
    """Print a message of Moorage on standard error."""
    say_lines(indented(f"moorage: {text}"), err=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    complain(f"warning: {text}")


def confirm(question: str, option: str) -> bool:
    """Whether a person confirms; no by default.

    Raises:
        errors.Denied: there is no terminal to ask on; names the option that confirms
    """
    import click

    try:
        return click.confirm(escape(question), err=True)
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise errors.Denied(f"cannot ask for confirmation: standard input is not a terminal; give {option}") from error


def prompt(question: str, *, is_hidden: bool = False) -> str:
    """What a person types; ``is_hidden`` does not show it.

    Raises:
        errors.Denied: there is no terminal to ask on
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise errors.Denied(f"cannot ask for {question.lower()}: standard input is not a terminal")
    import click

    return str(click.prompt(escape(question), hide_input=is_hidden, err=True))


def print_object(value: object, *, indent: int | None = None) -> None:
    """Print an object of the API, or a list of them, as ``print_json``."""
    from moorage.api.schema.base import to_document

    print_json(to_document(value), indent=indent)


def print_json(document: object, *, indent: int | None = None) -> None:
    """Print one document, on one line unless ``indent`` says otherwise. All of it is printable ASCII."""
    _write(json_text(document, indent=indent) + "\n")


def json_text(document: object, *, indent: int | None = None) -> str:
    """A document as printable ASCII."""
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, is_cut: bool = True) -> None:
    """Print columns as wide as they need; on a terminal, unless ``is_cut`` is off, as wide as it is, and no wider."""
    lines = [[each if isinstance(each, Styled) else styled(each, None) for each in line] for line in (head, *rows)]
    widths = [max(cell_width(line[column].plain) for line in lines) for column in range(len(head))]
    gap, width = _GAP, terminal_width() if is_cut else None
    if width is not None and sum(widths) + gap * (len(widths) - 1) > width:
        filled = [column for column in range(len(head)) if any(line[column].plain for line in lines[1:])]
        filled = filled or list(range(len(head)))
        lines, widths, gap = [[line[column] for column in filled] for line in lines], [widths[i] for i in filled], 2
        widths = fit_columns([cell_width(each.plain) for each in lines[0]], widths, width, gap)
    for line in lines:
        cells = [_styled(cut(each.plain, size), each.colour) for each, size in zip(line, widths, strict=True) if size]
        padded = (
            each + " " * (size - cell_width(each.plain)) for each, size in zip(cells, filter(None, widths), strict=True)
        )
        _write((" " * gap).join(padded).rstrip() + "\n")


def terminal_width() -> int | None:
    """Columns of the terminal that is standard output; None where it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    if (given := os.environ.get("COLUMNS", "")).isdigit() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def clear() -> None:
    """Clear the screen."""
    _write(_CLEAR)

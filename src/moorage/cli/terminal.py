"""The one printer: whatever a command shows goes through here, and nothing in it can act on the terminal.

Texts come from plugins, packages, registries and other users of the machine. They are escaped here, all of them, so
that no command has to know which is which; only what this module colours is passed on as it is.
"""

import json
from collections.abc import Iterable, Sequence

import click

from moorage import errors
from moorage._lib.escapes import escape

__all__ = (
    "clear",
    "complain",
    "confirm",
    "indented",
    "json_text",
    "print_json",
    "print_object",
    "say",
    "say_lines",
    "styled",
    "table",
    "warn",
)

_CLEAR = "\x1b[H\x1b[J"


class Styled(str):
    """A text that was escaped and then coloured."""

    __slots__ = ("width",)
    width: int


def styled(text: str, colour: str | None) -> Styled:
    """A text in a colour, which only a terminal shows."""
    plain = escape(text)
    made = Styled(click.style(plain, fg=colour) if colour else plain)
    made.width = len(plain)
    return made


def say(*parts: str, err: bool = False, colours: bool = False) -> None:
    """Print a line of these parts, on standard error if ``err``. Tabs stay, and colours (SGR) if ``colours``."""
    shown = "".join(each if isinstance(each, Styled) else escape(each, keep="\t", colours=colours) for each in parts)
    click.echo(shown, err=err, color=True if colours else None)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines."""
    click.echo(escape(text, keep="\n\t"), err=err)


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
    try:
        return click.confirm(escape(question), err=True)
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise errors.Denied(f"cannot ask for confirmation: standard input is not a terminal; give {option}") from error


def print_object(value: object, *, indent: int | None = None) -> None:
    """Print an object of the API, or a list of them, as ``print_json``."""
    from moorage.api.schema.base import to_document

    print_json(to_document(value), indent=indent)


def print_json(document: object, *, indent: int | None = None) -> None:
    """Print one document, on one line unless ``indent`` says otherwise. All of it is printable ASCII."""
    click.echo(json_text(document, indent=indent))


def json_text(document: object, *, indent: int | None = None) -> str:
    """A document as printable ASCII."""
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as wide as they need."""
    lines = [[each if isinstance(each, Styled) else styled(each, None) for each in line] for line in (head, *rows)]
    widths = [max(line[column].width for line in lines) for column in range(len(head))]
    for line in lines:
        padded = (text + " " * (width - text.width) for text, width in zip(line, widths, strict=True))
        click.echo("   ".join(padded).rstrip())


def clear() -> None:
    """Clear the screen."""
    click.echo(_CLEAR, nl=False)

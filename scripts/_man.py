"""What ``scripts/man`` runs: a page for the program and one for each command, as roff for groff and mandoc."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from _command_reference import command_contexts

from moorage import __version__
from moorage.cli.main import _moorage

STATUS = (
    ("0", "It is done."),
    ("1", "It could not be done; standard error says why, in one sentence."),
    ("2", "The call is wrong: there is no such command, option or value."),
    ("130", "Ctrl-C ended it."),
)
FILES = (
    ("/run/moorage/moorage.sock", "The socket of the engine's API."),
    ("/var/lib/moorage", "The data directory: plugins, their settings, their output."),
    ("/run/moorage", "Run-time files."),
    ("/etc/default/moorage", "Environment of the service, one NAME=VALUE a line; optional."),
)
NEVER_A_MACRO = r"\&"
CHARACTERS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def escaped(text: str) -> str:
    """A text that roff shows as it stands, wherever in a line it is."""
    one_line = " ".join(text.split())
    shown = "".join(CHARACTERS.get(each) or (each if ord(each) < 127 else f"\\[u{ord(each):04X}]") for each in one_line)
    return NEVER_A_MACRO + shown if shown.startswith(".") else shown


def quoted(text: str) -> str:
    """The same as one argument of a macro."""
    return '"' + escaped(text).replace('"', r"\(dq") + '"'


def entries(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A list of things in bold, each with a sentence."""
    for name, text in pairs:
        yield from (".TP", rf"\fB{escaped(name)}\fR", escaped(text))


def option_lines(option: click.Option, context: click.Context) -> Iterator[str]:
    """An option with what it takes, what it does, its default and its variable."""
    names = ", ".join(rf"\fB{escaped(name)}\fR" for name in (*option.opts, *option.secondary_opts))
    takes = "" if option.is_flag else rf" \fI{escaped(option.make_metavar(context))}\fR"
    more = ""
    if isinstance(option.default, str) and option.default:
        more += f" Default: {option.default}."
    if option.envvar:
        more += f" Environment: {option.envvar}."
    yield from (".TP", names + takes, escaped((option.help or "") + more))


def synopsis(context: click.Context) -> str:
    """How a command is called."""
    words = context.command.collect_usage_pieces(context)
    return rf"\fB{escaped(context.command_path)}\fR " + " ".join(rf"\fI{escaped(word)}\fR" for word in words)


def page(context: click.Context, see_also: list[str]) -> str:
    """One page."""
    command, name = context.command, page_name(context)
    day = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or datetime.now().timestamp()), UTC)
    first, _, _ = (command.help or "").partition(". ")
    lines = [
        r".\" Made by scripts/man from the texts of the command line.",
        f".TH {quoted(name.upper())} 1 {day:%Y-%m-%d} {quoted(f'moorage {__version__}')} Moorage",
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{escaped(name)} \- {escaped(first.rstrip('.'))}",
        ".SH SYNOPSIS",
        synopsis(context),
        ".SH DESCRIPTION",
        escaped(command.help or ""),
    ]
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    lines += [".SH OPTIONS", *(line for option in options for line in option_lines(option, context))]
    if isinstance(command, click.Group):
        found = [(each, command.get_command(context, each)) for each in command.list_commands(context)]
        lines += [".SH COMMANDS", *entries((each, sub.help or "") for each, sub in found if sub)]
    if context.parent is None:
        lines += [".SH EXIT STATUS", *entries(iter(STATUS))]
        lines += [".SH FILES", *entries(iter(FILES))]
    references = [rf".BR {escaped(each)} (1)" for each in see_also if each != name]
    lines += [".SH SEE ALSO", *(f"{each} ," for each in references[:-1]), *references[-1:]]
    return "\n".join(re.sub(r" \(1\) ,$", " (1),", line) for line in lines) + "\n"


def main() -> None:
    """Write them all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    root = click.Context(_moorage, info_name="moorage", **_moorage.context_settings)
    assert isinstance(_moorage, click.Group)
    contexts = list(command_contexts())
    (folder / "moorage.1").write_text(page(root, [page_name(each) for each in contexts]))
    for context in contexts:
        parent = context.parent
        assert parent is not None
        own = [page_name(each) for each in contexts if each.parent and each.parent.command is context.command]
        (folder / f"{page_name(context)}.1").write_text(page(context, [page_name(parent), *own]))


def page_name(context: click.Context) -> str:
    """The name of the page of a command."""
    return context.command_path.replace(" ", "-")


if __name__ == "__main__":
    main()

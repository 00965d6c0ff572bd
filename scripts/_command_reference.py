"""The text and the options of each command in docs/reference/commands.md, from the command line itself.

Below the heading of a command, between two marks, is what ``moorage COMMAND --help`` prints; what follows the second
mark is written by hand: details and examples.
"""

import re
from collections.abc import Iterator

import click

from moorage.cli.main import _moorage

BEGIN, END = "<!-- made by scripts/diagrams -->", "<!-- end -->"


def fill(page: str) -> str:
    """The page with a current block below the heading of each command."""
    for context in command_contexts():
        path = context.command_path
        words = " COMMAND" if isinstance(context.command, click.Group) else r"(?: [^a-z][^\n]*)?"
        heading = rf"^## {re.escape(path)}{words}\n"
        found = re.findall(heading, page, re.M)
        if len(found) != 1:
            raise SystemExit(f"diagrams: docs/reference/commands.md needs one section '## {path}'")
        before, after = page.split(found[0])
        after = re.sub(rf"\A\n{BEGIN}\n.*?{END}\n", "", after, flags=re.S)
        block = "\n\n".join((BEGIN, *_block(context), END))
        page = f"{before}{found[0]}\n{block}\n{after}"
    return page


def command_contexts(parent: click.Context | None = None) -> Iterator[click.Context]:
    """Every command of the program, each group before its own commands; the program itself is not among them."""
    parent = parent or click.Context(_moorage, info_name="moorage", **_moorage.context_settings)
    group = parent.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent)
        yield context
        if isinstance(command, click.Group):
            yield from command_contexts(context)


def _block(context: click.Context) -> Iterator[str]:
    """Paragraphs and the table of options."""
    for paragraph in (context.command.help or "").split("\n\n"):
        yield _wrapped(_markdown(paragraph))
    options = [each for each in context.command.params if isinstance(each, click.Option) and not each.hidden]
    if options:
        yield "\n".join(("| option | what it does |", "|---|---|", *(_row(option, context) for option in options)))


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    takes = "" if option.is_flag or option.count else f" {_markdown(option.make_metavar(context))}"
    text = _markdown(option.help or "")
    if option.show_default:
        default = option.show_default if isinstance(option.show_default, str) else option.default
        text += f" (default: {_markdown(', '.join(default) if isinstance(default, tuple | list) else str(default))})"
    if isinstance(option.envvar, str):
        text += f" (`{option.envvar}`)"
    return f"| {names}{takes} | {text} |"


def _markdown(text: str) -> str:
    """Text of the command line as one line of Markdown."""
    return re.sub(r"([*<>|_]|\[|\])", r"\\\1", " ".join(text.replace("\b", "").split()))


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > 120:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])

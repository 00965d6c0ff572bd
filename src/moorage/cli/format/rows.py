"""The options --format and --filter, and printing by them. Every command that shows objects uses these.

A row is a dictionary: field, as a template names it, to value. Docker's names where docker has the field.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click

from moorage.cli.context import is_json
from moorage.cli.terminal import json_text, say_shown, table

__all__ = ("RowPrinter", "filter_option", "format_option", "print_rows", "short_format_option")

Command = TypeVar("Command", bound=Callable[..., Any])
Row = Mapping[str, Any]

_WORDS = r"[A-Z]+(?![a-z])|[A-Z][a-z]+|\d+"


def format_option(command: Command) -> Command:
    """The option --format, as the parameter ``template``; None for none."""
    return _format("--format")(command)


def short_format_option(command: Command) -> Command:
    """As ``format_option``, with docker's short name -f where --filter does not have it."""
    return _format("-f", "--format")(command)


def _format(*names: str) -> Callable[[Command], Command]:
    text = "Format the output: table, table TEMPLATE, json, or a Go template such as '{{.Name}}'."
    return click.option(*names, "template", metavar="FORMAT", callback=_check_alone, help=text)


def filter_option(*keys: str) -> Callable[[Command], Command]:
    """The option --filter, as the parameter ``filters``; ``keys`` are for its help."""
    text = f"Filter output: {', '.join(keys)}. May be repeated."
    return click.option("-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True, help=text)


def _check_alone(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and is_json():
        raise click.UsageError("give --json or --format, not both")
    return None if value is not None and value.strip() == "table" else value


class RowPrinter:
    """Prints rows by a value of --format that is not ``table`` alone."""

    def __init__(self, template: str) -> None:
        """Raises: Invalid for what is no template."""
        from moorage.cli.format.template import Template

        self._head, _, rest = template.partition(" ")
        is_table = self._head == "table"
        self._text = rest.strip() if is_table else template
        self._is_json = template.strip() == "json"
        self._is_table = is_table
        self._template = Template("" if self._is_json else self._text)

    def line(self, row: Row) -> None:
        """Print one row now, as it would be without the others."""
        say_shown(json_text(row) if self._is_json else self._template.execute(row))

    def rows(self, rows: Iterable[Row]) -> None:
        """Print all rows; ``table TEMPLATE`` aligns them below heads, its cells divided by tabs."""
        if not self._is_table:
            for row in rows:
                self.line(row)
            return
        fields = re.findall(r"\{\{[^}]*?\.(\w+)[^}]*\}\}", self._text)
        cells = re.split(r"\t|\\t", self._text)
        heads = [_head_of(cell, fields) for cell in cells]
        lines = [self._template.execute(row).replace("\n", " ").split("\t") for row in rows]
        width = max(map(len, [heads, *lines]))
        table(_padded(heads, width), [_padded(line, width) for line in lines])


def print_rows(template: str, rows: Iterable[Row]) -> None:
    """Print rows by a value of --format.

    Raises:
        errors.Invalid: it is no template, or a row has no such field
    """
    RowPrinter(template).rows(rows)


def _head_of(cell: str, fields: list[str]) -> str:
    """The head of a column: the words of its fields, as docker has it; NAME for {{.Name}}."""
    names = re.findall(r"\.(\w+)", cell)
    return " ".join(" ".join(re.findall(_WORDS, name)).upper() or name.upper() for name in names if name in fields)


def _padded(cells: list[str], width: int) -> list[str]:
    return [*cells, *[""] * (width - len(cells))]

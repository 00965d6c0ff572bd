"""Docstrings as reStructuredText, for the Python reference of the documentation site.

A docstring here is plain text with ``literals``: paragraphs, lists with a hyphen, lines that begin with ``Raises:`` or
another label, and indented blocks, which are code or a list of names with their meaning. Nothing else in it is markup,
so whatever a docstring contains, it is valid.
"""

import re
from collections.abc import Iterator
from itertools import groupby

_LITERAL = re.compile(r"(``.+?``)")
_LABEL = re.compile(r"^(Raises|Returns|Yields|Args|Attributes|Example|Examples|Note|Sources?): ?(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}\w[\w.]*): (\S.*)$")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, without its common indent, as reStructuredText."""
    made: list[str] = []
    for is_indented, group in groupby(_blocks(lines), lambda block: block[0].startswith(" ")):
        for block in group:
            made += ["", *(_indented(block) if is_indented else _paragraph(block))]
    return [*made[1:], ""]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines without a blank one: an indented run, or lines that a label or a hyphen starts."""
    block: list[str] = []
    for line in lines:
        if not line.strip():
            starts = True
        elif not block or block[0].startswith(" "):
            starts = not block or not line.startswith(" ")
        else:  # an indented line continues what a label or a hyphen has started
            starts = bool(_LABEL.match(line)) or line.startswith("- ")
            starts |= line.startswith(" ") and not _is_continued(block)
        if starts and block:
            yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def _is_continued(block: list[str]) -> bool:
    label = _LABEL.match(block[0])
    return bool(label and label[2]) or block[0].startswith("- ")


def _paragraph(block: list[str]) -> list[str]:
    text = " ".join(line.strip() for line in block)
    if label := _LABEL.match(text):
        entry = _ENTRY.match(label[2])
        if entry and label[1] in ("Raises", "Args", "Attributes"):
            return [f"**{label[1]}:** ``{entry[1]}``: {_escaped(entry[2])}"]
        return [f"**{label[1]}:** {_escaped(label[2])}".rstrip()]
    if text.startswith("- "):
        return [f"- {_escaped(text[2:])}"]
    return [_escaped(text)]


def _indented(block: list[str]) -> list[str]:
    indent = min(len(line) - len(line.lstrip()) for line in block)
    rows = [line[indent:] for line in block]
    if not _ENTRY.match(rows[0]):
        return ["::", "", *(f"   {row}" for row in rows)]
    entries: list[str] = []
    for row in rows:
        if (entry := _ENTRY.match(row)) is not None:
            entries.append(f"- ``{entry[1]}``: {_escaped(entry[2])}")
        else:  # a line that belongs to the one before it
            entries[-1] += f" {_escaped(row.strip())}"
    return entries


def _escaped(text: str) -> str:
    parts = _LITERAL.split(text)
    return "".join(part if part.startswith("``") else re.sub(r"([\\*`|_<>])", r"\\\1", part) for part in parts)

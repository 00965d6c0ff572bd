"""Output by a template, in the part of Go's syntax that users of docker and podman write. Pure.

``{{.Name}}``, ``{{.Status.size}}``, ``{{json .}}``, ``{{json .Status}}``, text between them, ``\\t`` and ``\\n``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moorage import errors

__all__ = ("Template", "parse_template")

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
_FIELD = re.compile(r"(?:(json)\s+)?(\.(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)?)")
_ESCAPES = {r"\t": "\t", r"\n": "\n"}

Part = str | tuple[bool, Sequence[str]]
"""A text; or whether a value is printed as JSON, and the path of its field."""


class Template:
    """A parsed template."""

    def __init__(self, parts: Sequence[Part], *, is_table: bool) -> None:
        """``is_table``: it begins with ``table``, so columns are aligned below their names."""
        self._parts = parts
        self.is_table = is_table

    @property
    def heads(self) -> Sequence[str]:
        """Names of the columns of a table."""
        names = ["".join(self._head(part) for part in cell) for cell in self._cells()]
        return [name.strip() for name in names]

    def row(self, value: Mapping[str, Any]) -> Sequence[str]:
        """The cells of a table for one value. Raises: Invalid for a field that it does not have."""
        return self.render(value).split("\t")

    def render(self, value: Mapping[str, Any]) -> str:
        """The text for one value. Raises: Invalid for a field that it does not have."""
        return "".join(part if isinstance(part, str) else _show(value, *part) for part in self._parts)

    def _cells(self) -> Iterator[list[Part]]:
        cell: list[Part] = []
        for part in self._parts:
            if not isinstance(part, str):
                cell.append(part)
                continue
            first, *others = part.split("\t")
            cell.append(first)
            for other in others:
                yield cell
                cell = [other]
        yield cell

    @staticmethod
    def _head(part: Part) -> str:
        if isinstance(part, str):
            return part
        name = part[1][-1] if part[1] else ""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()


def parse_template(text: str) -> Template:
    """A template; ``json`` alone is ``{{json .}}``.

    Raises:
        errors.Invalid: an action is none of those above
    """
    if text == "json":
        text = "{{json .}}"
    is_table = text.startswith("table ")
    text = text.removeprefix("table ").strip() if is_table else text
    parts: list[Part] = []
    position = 0
    for action in _ACTION.finditer(text):
        parts.append(_unescaped(text[position : action.start()]))
        found = _FIELD.fullmatch(action[1])
        if found is None:
            raise errors.Invalid(
                f"cannot use the template {text!r}: {action[0]} is not supported; write {{{{.Name}}}} or {{{{json .}}}}"
            )
        parts.append((found[1] is not None, tuple(found[2].split(".")[1:]) if found[2] != "." else ()))
        position = action.end()
    rest = text[position:]
    if "{{" in rest:
        raise errors.Invalid(f"cannot use the template {text!r}: an action is not closed by }}}}")
    parts.append(_unescaped(rest))
    return Template([part for part in parts if part != ""], is_table=is_table)


def _unescaped(text: str) -> str:
    for written, character in _ESCAPES.items():
        text = text.replace(written, character)
    return text


def _show(value: Any, is_json: bool, path: Sequence[str]) -> str:
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            known = ", ".join(value) if isinstance(value, Mapping) else "none"
            raise errors.Invalid(f"cannot show .{'.'.join(path)}: there is no field {key}; known: {known}")
        value = value[key]
    if is_json or isinstance(value, Mapping | list):
        return json.dumps(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)

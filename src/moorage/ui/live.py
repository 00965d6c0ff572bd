"""What changed on a page since it was last sent.

Two kinds of elements change while a page is open, each with an ``id``: one with ``data-live`` is replaced as a whole,
and one with ``data-list`` gains, loses and moves children. Everything else stays as it was first sent, forms that a
person fills in for instance.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from secrets import token_urlsafe
from typing import Any

from msgspec import Struct

from moorage.ui.markup import Element

__all__ = ("PageStates", "Parts", "changes", "parts_of")

_MOST_STATES = 16


class Parts(Struct, frozen=True):
    """What of a page may change: elements as JSON by id, and the order of the children of lists."""

    elements: dict[str, str]
    """Elements that are replaced, and the children of lists as they were built."""
    lists: dict[str, tuple[str, ...]]
    rows: dict[str, str]
    """The children of lists, whole."""


def parts_of(page: Element) -> Parts:
    """The parts of a page that may change."""
    parts = Parts({}, {}, {})
    _collect(page, parts)
    return parts


def _collect(element: Element, parts: Parts) -> None:
    if "data-live" in element.attributes:
        parts.elements[element.attributes["id"]] = _json(element)
        return
    if "data-list" in element.attributes:
        rows = list(element.elements())
        parts.lists[element.attributes["id"]] = tuple(row.attributes["id"] for row in rows)
        parts.rows.update((row.attributes["id"], _json(row)) for row in rows)
    for child in element.elements():
        _collect(child, parts)


def _json(element: Element) -> str:
    return json.dumps(element.tree(), separators=(",", ":"), ensure_ascii=False)


def changes(before: Parts | None, after: Parts) -> str:
    """The message that makes one page of another, JSON on one line; empty where nothing changed.

    Without ``before``, everything is sent.
    """
    had_rows = before.rows.keys() if before else set()
    elements = {id: text for id, text in after.elements.items() if before is None or before.elements.get(id) != text}
    lists = {id: order for id, order in after.lists.items() if before is None or before.lists.get(id) != order}
    listed = {row for order in lists.values() for row in order}
    rows = {id: text for id, text in after.rows.items() if id in listed and id not in had_rows}
    if not elements and not lists:
        return ""
    return "".join(_message(elements, lists, rows))


def _message(elements: dict[str, str], lists: dict[str, tuple[str, ...]], rows: dict[str, str]) -> Iterator[str]:
    """The message, of parts that are JSON already."""
    yield '{"lists":'
    yield json.dumps(lists, separators=(",", ":"))
    for key, parts in (("rows", rows), ("elements", elements)):
        yield f',"{key}":{{'
        yield ",".join(f"{json.dumps(id)}:{text}" for id, text in parts.items())
        yield "}"
    yield "}"


class PageStates:
    """What was last sent to pages that have not connected for changes yet: bounded, the oldest are dropped."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, Parts] = OrderedDict()

    def add(self, parts: Parts) -> str:
        """Remember what was sent; the key that the page connects with."""
        key = token_urlsafe(9)
        self._parts[key] = parts
        while len(self._parts) > _MOST_STATES:
            self._parts.popitem(last=False)
        return key

    def take(self, key: str) -> Parts | None:
        """What was sent with this key, once; None where that is not known any more."""
        found: Any = self._parts.pop(key, None)
        return found if isinstance(found, Parts) else None

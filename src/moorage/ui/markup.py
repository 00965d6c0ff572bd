"""Elements of a page. Text is escaped by construction: there is no way to write markup but by an element.

An element becomes HTML for the first answer, and JSON for changes of a page that is open; ``static/page.js`` makes
nodes of the latter. So both are made by the same functions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape as escape_html

from moorage._lib.escapes import escape

__all__ = ("Attributes", "Child", "Element", "el", "shown")

_VOID = frozenset({"input", "link", "meta"})
_TAGS = _VOID | {
    *("html", "head", "title", "body", "header", "nav", "main", "section", "div", "p", "span", "a", "h1", "h2", "h3"),
    *("ul", "ol", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "time", "strong", "code", "pre"),
    *("form", "label", "select", "option", "button", "script", "svg", "path", "rect"),
}
_ATTRIBUTE = re.compile(r"(?!on)[a-z][a-zA-Z-]*")
_LINKS = frozenset({"href", "src", "action"})
_OWN_LINK = re.compile(r"[/?#](?![/\\])")
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")

Value = str | int | float | bool | None
Attributes = dict[str, Value]


def shown(text: str) -> str:
    """Text of others for a page: without colours of terminals, and nothing in it hides or reorders its surroundings."""
    return escape(_COLOURS.sub("", text), keep="\n\t")


class Element:
    """A tag with attributes and children. Immutable after its creation."""

    __slots__ = ("attributes", "children", "tag")

    def __init__(self, tag: str, attributes: Mapping[str, str], children: "tuple[Element | str, ...]") -> None:
        self.tag = tag
        self.attributes = attributes
        self.children = children

    def html(self) -> str:
        """The element as HTML."""
        parts: list[str] = []
        self._write(parts)
        return "".join(parts)

    def _write(self, parts: list[str]) -> None:
        attributes = "".join(f' {name}="{escape_html(value)}"' for name, value in self.attributes.items())
        parts.append(f"<{self.tag}{attributes}>")
        if self.tag in _VOID:
            return
        for child in self.children:
            if isinstance(child, str):
                parts.append(escape_html(child, quote=False))
            else:
                child._write(parts)
        parts.append(f"</{self.tag}>")

    def tree(self) -> list[object]:
        """The element for JSON: the tag, the attributes, then each child, a list or a text."""
        children = (child if isinstance(child, str) else child.tree() for child in self.children)
        return [self.tag, dict(self.attributes), *children]

    def elements(self) -> "Iterator[Element]":
        """The children that are elements."""
        return (child for child in self.children if not isinstance(child, str))


Child = Element | str | None


def el(tag: str, attributes: Mapping[str, Value] | None = None, *children: Child | Iterable[Child]) -> Element:
    """An element. Attributes that are None or False are left out, and those that are True have no value.

    Raises:
        ValueError: a tag, an attribute or a link that no page has; texts of others are values and children only
    """
    if tag not in _TAGS or (tag == "script" and children):
        raise ValueError(f"no page has a tag {tag!r} like this")
    return Element(tag, dict(_attributes(attributes or {})), tuple(_flat(children)))


def _attributes(attributes: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        if not _ATTRIBUTE.fullmatch(name) or name == "style":
            raise ValueError(f"no page has an attribute {name!r}")
        text = "" if value is True else shown(str(value))
        if name in _LINKS and not _OWN_LINK.match(text):
            raise ValueError(f"a page links to nothing but itself, not to {text!r}")
        yield name, text


def _flat(children: Iterable[Child | Iterable[Child]]) -> "Iterator[Element | str]":
    for child in children:
        if isinstance(child, str):
            if child:
                yield shown(child)
        elif isinstance(child, Element):
            yield child
        elif child is not None:
            yield from _flat(child)

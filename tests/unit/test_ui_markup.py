"""Elements of the page: whatever texts they are given, what comes out has the markup that was written and no other."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from moorage.ui.live import PageStates, changes, parts_of
from moorage.ui.markup import Element, el


class Reader(HTMLParser):
    """What a browser sees: tags with attributes, and texts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(element: Element) -> Reader:
    reader = Reader()
    reader.feed(element.html())
    reader.close()
    return reader


@given(some.text(), some.text())
def test_u22_any_text_is_one_text_and_one_value(text: str, value: str) -> None:
    found = read(el("p", {"title": value}, text))
    assert [tag for tag, _ in found.tags] == ["p"]
    assert list(found.tags[0][1]) == ["title"]
    assert "\x1b" not in found.text
    plain = el("p", {"title": value}, text).tree()
    assert found.text == "".join(str(child) for child in plain[2:])
    assert found.tags[0][1]["title"] == plain[1]["title"]  # type: ignore[index]


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "</p><img src=x onerror=alert(1)>", "&lt;b&gt;", "a\u202egnp.exe", "\x1b[2J\x07"],
)
def test_u22_markup_and_control_characters_of_others_are_shown_as_they_are(text: str) -> None:
    html = el("p", {}, text).html()
    assert html.count("<") == 2
    assert html.isprintable()


@pytest.mark.parametrize(
    ("tag", "attributes", "children"),
    [
        ("iframe", {}, ()),
        ("script", {}, ("alert(1)",)),
        ("p", {"onclick": "x"}, ()),
        ("p", {"style": "x"}, ()),
        ("p", {'a b="': "x"}, ()),
        ("a", {"href": "javascript:alert(1)"}, ()),
        ("a", {"href": "//evil.example"}, ()),
        ("a", {"href": "/\\evil.example"}, ()),
        ("form", {"action": "https://evil.example"}, ()),
    ],
)
def test_u22_what_no_page_has_cannot_be_built(tag: str, attributes: dict[str, Any], children: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="page"):
        el(tag, attributes, *children)


def page(**rows: str) -> Element:
    listed = [
        el("li", {"id": id}, el("b" if False else "span", {"id": f"{id}-text", "data-live": True}, text))
        for id, text in rows.items()
    ]
    return el(
        "div",
        {},
        el("p", {"id": "count", "data-live": True}, str(len(rows))),
        el("ul", {"id": "list", "data-list": True}, listed),
    )


def test_u22_only_what_changed_is_sent() -> None:
    before = parts_of(page(a="1", b="2"))
    assert changes(before, parts_of(page(a="1", b="2"))) == ""
    one = json.loads(changes(before, parts_of(page(a="1", b="3"))))
    assert one == {"lists": {}, "rows": {}, "elements": {"b-text": ["span", {"id": "b-text", "data-live": ""}, "3"]}}
    moved = json.loads(changes(before, parts_of(page(b="2", a="1"))))
    assert (moved["lists"], moved["rows"], moved["elements"]) == ({"list": ["b", "a"]}, {}, {})
    more = json.loads(changes(before, parts_of(page(a="1", b="2", c="</script>"))))
    assert more["lists"] == {"list": ["a", "b", "c"]}
    assert list(more["rows"]) == ["c"]
    assert json.loads(changes(None, before))["rows"].keys() == {"a", "b"}


def test_u22_a_state_is_taken_once_and_the_oldest_is_dropped() -> None:
    states, parts = PageStates(), parts_of(page(a="1"))
    keys = [states.add(parts) for _ in range(20)]
    assert states.take(keys[-1]) is parts
    assert states.take(keys[-1]) is None
    assert states.take(keys[0]) is None
    assert states.take("") is None

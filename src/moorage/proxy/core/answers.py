"""Answers of plugins as consumers must get them: a failure is never status 200, a path is the host's (P07, P08).

Consumers get no byte of such an answer unchanged, but what was read in it, encoded again. Go programs find a key in
any letter case, and take the last one of several: whatever of it the proxy had not read, dockerd would use.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from moorage.proxy.core import calls
from moorage.proxy.core.paths import to_host
from moorage.proxy.protocol import PathRule

__all__ = (
    "Answer",
    "Document",
    "Volume",
    "failure",
    "host_paths",
    "mountpoint",
    "normalize",
    "scope",
    "shorten",
    "success",
    "text",
    "volumes",
)

_SHOWN = 200  # bytes of an answer that cannot be read
_LONGEST_TEXT, _LAST = 2000, 500
"""Characters of an error, and those that a longer one retains of its last ones."""
_MOST_VALUES = 100_000
"""Of an answer; reading millions of them takes seconds, in which every other call waits."""
_KEYS = {
    each.casefold(): each
    for each in ("Err", "Error", "Mountpoint", "Volume", "Volumes", "Name", "Capabilities", "Scope")
}
"""The keys that are read, as Go programs find them: in any letter case, some letters beyond ASCII included."""

Document = dict[str, Any]


class Answer(Struct, frozen=True):
    """An HTTP answer, complete."""

    status: int
    body: bytes
    content_type: str = calls.CONTENT_TYPE

    @property
    def is_failure(self) -> bool:
        """Whether the call failed."""
        return self.status != 200


class Volume(Struct, frozen=True):
    """A volume in an answer to Get or List."""

    name: str
    mountpoint: str


def failure(text: str, status: int = 500) -> Answer:
    """The answer of a failed call, as every consumer reads it."""
    return Answer(status, msgspec.json.encode({"Err": shorten(text)}))


def shorten(text: str) -> str:
    """A text that may be the plugin's, no longer than what is recorded, reported and shown."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[: _LONGEST_TEXT - _LAST]} [...] {text[-_LAST:]}"


def success(document: Document | None = None) -> Answer:
    """The answer of a call that succeeded."""
    return Answer(200, msgspec.json.encode({"Err": ""} if document is None else document))


def normalize(path: str, plugin: str, status: int, body: bytes) -> tuple[Answer, Document]:
    """The answer to a call that was read whole, and what it says; an empty document for a failure."""
    document = _read(body, may_be_empty=calls.has_empty_answer(path))
    reason = _error_text(document) if document is not None else ""
    if status != 200:
        answered = f"plugin {plugin} answered {status} to {calls.method(path)}: {_shown(body)}"
        return failure(reason or answered.rstrip(": "), status if 400 <= status <= 599 else 500), {}
    if document is None and _has_too_many_values(body):
        return failure(f"plugin {plugin} answered {calls.method(path)} with more than {_MOST_VALUES} values"), {}
    if document is None:
        what = _shown(body)
        return failure(
            f"plugin {plugin} answered {calls.method(path)} with what is no JSON object: {what or 'nothing'}"
        ), {}
    if reason:
        return failure(reason), {}
    return Answer(200, msgspec.json.encode(document)), document


def host_paths(path: str, rules: Sequence[PathRule], answer: Answer, document: Document) -> tuple[Answer, Document]:
    """The answer of a volume driver with its paths as the host's; empty where a path has none on the host."""
    changed = False
    for each in _with_mountpoint(path, document):
        inside = each.get("Mountpoint")
        if isinstance(inside, str) and inside:
            found = to_host(rules, inside)
            each["Mountpoint"] = found.path if found is not None else ""
            changed = True
    return (Answer(answer.status, msgspec.json.encode(document), answer.content_type) if changed else answer), document


def text(answer: Answer) -> str:
    """The text of a failure."""
    return str(msgspec.json.decode(answer.body).get("Err", ""))


def mountpoint(document: Document) -> str:
    """The field Mountpoint of an answer to Mount or Path; empty if it has none."""
    value = document.get("Mountpoint")
    return value if isinstance(value, str) else ""


def volumes(path: str, document: Document) -> tuple[Volume, ...]:
    """The volumes in an answer to Get or List."""
    found = []
    for each in _with_mountpoint(path, document):
        name, where = each.get("Name"), each.get("Mountpoint")
        if isinstance(name, str) and name:
            found.append(Volume(name, where if isinstance(where, str) else ""))
    return tuple(found)


def scope(document: Document) -> str:
    """The scope in an answer to VolumeDriver.Capabilities; empty if it has none."""
    inner = document.get("Capabilities")
    value = inner.get("Scope") if isinstance(inner, dict) else None
    return value if isinstance(value, str) and value in ("local", "global") else ""


def _with_mountpoint(path: str, document: Document) -> list[Document]:
    """The objects in an answer that may have a Mountpoint."""
    if path == calls.GET:
        one = document.get("Volume")
        return [one] if isinstance(one, dict) else []
    if path == calls.LIST:
        several = document.get("Volumes")
        return [each for each in several if isinstance(each, dict)] if isinstance(several, list) else []
    return [document] if path in (calls.MOUNT, calls.PATH) else []


def _read(body: bytes, *, may_be_empty: bool) -> Document | None:
    """The object in a body; None if it has none. ``null`` is an empty one, as for Go programs."""
    if not body.strip():
        return {} if may_be_empty else None
    if _has_too_many_values(body):
        return None
    try:
        value = msgspec.json.decode(body)
        msgspec.json.encode([[value]])  # with room for what is encoded later, a little deeper in the stack
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if value is None:
        return {}
    return _with_plain_keys(value) if isinstance(value, dict) else None


def _has_too_many_values(body: bytes) -> bool:
    """Counted without reading it; commas in texts count, too."""
    return body.count(b",") + body.count(b"{") + body.count(b"[") > _MOST_VALUES


def _with_plain_keys(document: Document) -> Document:
    """An object with one spelling of each key that is read, also in the objects with volumes and capabilities."""
    made: Document = {}
    for key, value in document.items():
        name = _KEYS.get(key.casefold(), key)
        if value or name not in made:
            made[name] = value
    for name in ("Volume", "Capabilities"):
        if isinstance(inner := made.get(name), dict):
            made[name] = _with_plain_keys(inner)
    if isinstance(several := made.get("Volumes"), list):
        made["Volumes"] = [_with_plain_keys(each) if isinstance(each, dict) else each for each in several]
    return made


def _error_text(document: Document) -> str:
    for name in ("Err", "Error"):  # ipam drivers have the second
        value = document.get(name)
        if value:
            return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return ""


def _shown(body: bytes) -> str:
    text = body[:_SHOWN].decode(errors="replace").strip()
    return "".join(each if each.isprintable() else " " for each in text)

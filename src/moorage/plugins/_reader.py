"""Reads untrusted JSON: lenient in the ways that real plugins need, exact about the location of an error.

Keys match in any letter case and ``null`` is the same as nothing, as in the Go programs that these documents were made
for. Everything else is strict, and each complaint carries the path of its value. Complaints are collected, so that one
reading shows them all.

The standard library's parser is used here because it shows every pair of an object: msgspec's keeps one of two equal
keys without a word and meets deep nesting with RecursionError.
"""

import difflib
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NoReturn

import msgspec

from moorage import errors
from moorage._lib.escapes import find_control, quote

__all__ = (
    "MAX_DEPTH",
    "MAX_DOCUMENT_BYTES",
    "Fields",
    "JsonObject",
    "Notes",
    "decode",
    "encode",
    "is_text",
    "read_object",
)

MAX_DOCUMENT_BYTES = 1 << 20
"""Real configs have a few kilobytes."""

MAX_DEPTH = 64
"""A config needs five levels. Programs that read it after us recurse."""

_SHOWN = 20
_NEAR_LENGTH = 40
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_NUMBER = msgspec.json.Encoder(decimal_format="number")


class JsonObject(dict[str, object]):
    """A decoded object; of equal keys the last with a value counts, and ``repeated`` names them."""

    repeated: tuple[str, ...] = ()


class Notes:
    """The errors and warnings of one document. Both are bounded, whatever the input."""

    def __init__(self, document: str, *, refuses_unknown: bool = False, refuses_controls: bool = False) -> None:
        """``refuses_unknown``: an unknown key is an error. ``refuses_controls``: so is a text with characters that do
        not show themselves, apart from line feeds and tabs where a text may have several lines.
        """
        self.document = document
        self.refuses_unknown = refuses_unknown
        self.refuses_controls = refuses_controls
        self._wrong: list[str] = []
        self._odd: list[str] = []
        self._more = 0

    def wrong(self, path: str, text: str) -> None:
        """Record an error and continue with the default. Raises: Invalid at the maximum number of errors."""
        self._wrong.append(f"{path}: {text}" if path else text)
        if len(self._wrong) == _SHOWN:
            self.finish()

    def odd(self, path: str, text: str) -> None:
        """Record a warning."""
        if len(self._odd) < _SHOWN:
            self._odd.append(f"{path}: {text}" if path else text)
        else:
            self._more += 1

    @property
    def full(self) -> bool:
        """Whether another warning would only be counted."""
        return len(self._odd) >= _SHOWN

    def finish(self) -> tuple[str, ...]:
        """All warnings. Raises: Invalid with every error and the warnings, which often explain them."""
        odd = tuple(self._odd) + ((f"{self._more} more of the kind",) if self._more else ())
        if self._wrong:
            also = f" (also odd: {'; '.join(odd)})" if odd else ""
            raise errors.Invalid(f"cannot read {self.document}: {'; '.join(self._wrong)}{also}")
        return odd


class Fields:
    """The known keys of one object of the document; unknown ones are noted when it is made."""

    def __init__(self, value: object, path: str, known: Sequence[str], notes: Notes) -> None:
        self.path = path
        self.notes = notes
        self._values: dict[str, object] = {}
        if value is None:
            return
        if not isinstance(value, dict):
            notes.wrong(path, f"must be an object, not {_kind(value)}")
            return
        self._sort(value, {key.casefold(): key for key in known})

    def _sort(self, value: dict[str, object], known: dict[str, str]) -> None:
        for key in getattr(value, "repeated", ()):
            self.notes.odd(self.at(known.get(key.casefold(), quote(key))), "given more than once, the last one counts")
        for key, item in value.items():
            name = known.get(key.casefold())
            if name is None:
                self._unknown(key, known)
            elif item is not None:
                if name in self._values:
                    self.notes.odd(self.at(name), "given more than once, the last one counts")
                self._values[name] = item

    def _unknown(self, key: str, known: dict[str, str]) -> None:
        near: list[str] = []
        if not self.notes.full and len(key) <= _NEAR_LENGTH:
            near = difflib.get_close_matches(re.sub("[-_ ]", "", key.casefold()), list(known), n=1, cutoff=0.7)
        hint = f"; did you mean {known[near[0]]}?" if near else ""
        if self.notes.refuses_unknown:
            self.notes.wrong(self.at(quote(key)), f"unknown key{hint}")
        else:
            self.notes.odd(self.at(quote(key)), f"unknown key, ignored{hint}")

    def at(self, key: str) -> str:
        """The path of a value below this object."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return key in self._values

    def wrong(self, key: str, text: str) -> None:
        """Note an error about one value."""
        self.notes.wrong(self.at(key), text)

    def odd(self, key: str, text: str) -> None:
        """Note a warning about one value."""
        self.notes.odd(self.at(key), text)

    def optional_text(self, key: str, *, lines: bool = False) -> str | None:
        """The text, or None if there is none; ``lines``: it may have several."""
        value = self._values.get(key)
        return None if value is None else _text(value, self.at(key), self.notes, lines=lines)

    def text(self, key: str, *, lines: bool = False) -> str:
        """The text, or nothing."""
        return self.optional_text(key, lines=lines) or ""

    def flag(self, key: str) -> bool:
        """True or false; false if there is none."""
        value = self._values.get(key, False)
        if isinstance(value, bool):
            return value
        self.wrong(key, f"must be true or false, not {_kind(value)}")
        return False

    def integer(self, key: str, *, most: int) -> int:
        """A whole number from 0 to ``most``; 0 if there is none."""
        value = self._values.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self.wrong(key, f"must be a number, not {_kind(value)}")
        elif not isinstance(value, int) or not 0 <= value <= most:
            self.wrong(key, f"must be a whole number from 0 to {most}")
        else:
            return value
        return 0

    def items(self, key: str) -> list[tuple[str, object]]:
        """The elements of a list that are not null, each with its path."""
        value = self._values.get(key, ())
        if value == ():
            return []
        if not isinstance(value, list):
            self.wrong(key, f"must be a list, not {_kind(value)}")
            return []
        return [(f"{self.at(key)}[{index}]", item) for index, item in enumerate(value) if item is not None]

    def texts(self, key: str, *, lines: bool = False) -> tuple[str, ...]:
        """A list of texts; ``lines``: each may have several."""
        return tuple(_text(item, path, self.notes, lines=lines) for path, item in self.items(key))

    def section(self, key: str, known: Sequence[str]) -> "Fields":
        """An object below this one; without values if there is none."""
        return Fields(self._values.get(key), self.at(key), known, self.notes)

    def entries(self, key: str, known: Sequence[str]) -> list["Fields"]:
        """A list of objects."""
        return [Fields(item, path, known, self.notes) for path, item in self.items(key)]


def read_object(
    raw: bytes, known: Sequence[str], document: str, *, refuses_unknown: bool = False, refuses_controls: bool = False
) -> Fields:
    """The top of a document that has to be one JSON object; for the flags see ``Notes``. Raises: Invalid."""
    notes = Notes(document, refuses_unknown=refuses_unknown, refuses_controls=refuses_controls)
    value = decode(raw, document)
    if value is None:
        raise errors.Invalid(f"cannot read {document}: must be an object, not null")
    return Fields(value, "", known, notes)


def decode(raw: bytes, document: str) -> object:
    """One JSON document as plain values: objects are JsonObject, numbers that Python cannot keep exactly are Decimal.

    Raises: Invalid for anything that is not exactly one JSON document in UTF-8 of bearable size and depth.
    """

    def refuse(reason: str) -> NoReturn:
        raise errors.Invalid(f"cannot read {document}: {reason}")

    if len(raw) > MAX_DOCUMENT_BYTES:
        refuse(f"it has {len(raw)} bytes, and the limit is {MAX_DOCUMENT_BYTES}")
    try:
        text = raw.decode("utf-8")
        if text.startswith("\ufeff"):
            refuse("it starts with a byte order mark")
        if _is_deep(text):
            refuse(f"it is nested deeper than {MAX_DEPTH} levels")
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=Decimal,
            parse_constant=lambda name: refuse(f"{name} is not JSON"),
        )
        if "\\u" in text:
            encode(value)
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read {document}: it is not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise errors.Invalid(f"cannot read {document}: it has half a surrogate pair in a text") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise errors.Invalid(f"cannot read {document}: it is not JSON: {error.msg} at {where}") from error
    except ArithmeticError as error:
        raise errors.Invalid(f"cannot read {document}: it has a number out of any range") from error
    return value


def encode(value: object) -> bytes:
    """Compact JSON in UTF-8; what ``decode`` gave comes out with the same values."""
    return _NUMBER.encode(value)


def is_text(text: str) -> bool:
    """Whether a text can be an argument or a variable of a process: UTF-8 without NUL."""
    return "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)


def _is_deep(text: str) -> bool:
    depth = 0
    for match in _TOKEN.finditer(text):
        first = match.group()[0]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in "]}":
            depth -= 1
    return False


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    made = JsonObject()
    repeated: dict[str, None] = {}
    for key, value in pairs:
        if key in made:
            repeated[key] = None
            if value is None:
                continue
        made[key] = value
    made.repeated = tuple(repeated)
    return made


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < 19 else Decimal(digits)


def _text(value: object, path: str, notes: Notes, *, lines: bool) -> str:
    if not isinstance(value, str):
        notes.wrong(path, f"must be a text, not {_kind(value)}")
    elif "\0" in value:
        notes.wrong(path, "must not have a NUL character")
    elif notes.refuses_controls and (found := find_control(value, lines=lines)):
        notes.wrong(path, f"must not have the control character {found}")
    else:
        return value
    return ""


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | Decimal():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case None:
            return "null"
        case _:
            return "an object"

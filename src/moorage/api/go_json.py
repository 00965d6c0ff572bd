"""Errors of JSON in the words of Go's encoding/json, which clients of Docker's API and their tests expect. Pure.

Source: Go 1.23 encoding/json scanner.go and decode.go; the daemon reads bodies with a Decoder, which says
"unexpected EOF" where Unmarshal says "unexpected end of JSON input".
"""

import re
from typing import Any

__all__ = ("find_json_error", "json_type_error")

_DEEPEST = 10_000
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\\": "\\\\"}
_END = "unexpected EOF"


class _Stop(Exception):
    """Where a text is no JSON any more, and why."""


def find_json_error(text: str) -> str:
    """What Go's decoder says of the first value of a text, "" where that is valid."""
    try:
        _scan(text)
    except _Stop as stop:
        return str(stop)
    return ""


def json_type_error(value: Any, wanted: str) -> str:
    """What Go says where a value is not of the Go type that is wanted."""
    if isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int | float):
        kind = "number"
    else:
        kinds = (("string", str), ("array", list), ("object", dict))
        kind = next((name for name, of in kinds if isinstance(value, of)), "null")
    return f"json: cannot unmarshal {kind} into Go value of type {wanted}"


def _scan(text: str) -> None:
    """Read one value. Raises: _Stop."""
    place, open_ones = 0, ""
    while True:
        place = _skip(text, place)
        if text[place] in "{[":
            open_ones += text[place]
            if len(open_ones) > _DEEPEST:
                raise _Stop("exceeded max depth")
            place = _skip(text, place + 1)
            if text[place] not in "}]" or (text[place] == "}") is not (open_ones[-1] == "{"):
                if open_ones[-1] == "{":
                    place = _key(text, place)
                continue
        else:
            place = _scalar(text, place)
        while True:  # a value has ended, or a list or an object is about to
            if not open_ones:
                return
            place = _skip(text, place)
            is_object = open_ones[-1] == "{"
            if text[place] == ",":
                place = _key(text, _skip(text, place + 1)) if is_object else place + 1
                break
            if text[place] != ("}" if is_object else "]"):
                raise _wrong(text, place, "after object key:value pair" if is_object else "after array element")
            open_ones, place = open_ones[:-1], place + 1
            if not open_ones:
                return


def _skip(text: str, place: int) -> int:
    """The place of the next character that is no white space. Raises: _Stop at the end."""
    match = _SPACE.match(text, place)
    assert match is not None
    if match.end() == len(text):
        raise _Stop(_END)
    return match.end()


def _key(text: str, place: int) -> int:
    if text[place] != '"':
        raise _wrong(text, place, "looking for beginning of object key string")
    place = _skip(text, _string(text, place))
    if text[place] != ":":
        raise _wrong(text, place, "after object key")
    return place + 1


def _scalar(text: str, place: int) -> int:
    if text[place] == '"':
        return _string(text, place)
    if text[place] == "-" or text[place] in "0123456789":
        return _number(text, place)
    for word in ("true", "false", "null"):
        if text[place] == word[0]:
            for offset, letter in enumerate(word):
                if _at(text, place + offset) != letter:
                    raise _wrong(text, place + offset, f"in literal {word} (expecting {_quoted(letter)})")
            return place + len(word)
    raise _wrong(text, place, "looking for beginning of value")


def _string(text: str, place: int) -> int:
    place += 1
    while True:
        match = _PLAIN.match(text, place)
        assert match is not None
        place = match.end()
        character = _at(text, place)
        if character == '"':
            return place + 1
        if character != "\\":
            raise _wrong(text, place, "in string literal")
        escaped = _at(text, place + 1)
        if escaped not in 'bfnrt\\/"u':
            raise _wrong(text, place + 1, "in string escape code")
        if escaped == "u":
            for offset in range(2, 6):
                if _at(text, place + offset) not in "0123456789abcdefABCDEF":
                    raise _wrong(text, place + offset, "in \\u hexadecimal character escape")
            place += 4
        place += 2


def _number(text: str, place: int) -> int:
    if (match := _NUMBER.match(text, place)) is None:
        raise _wrong(text, place + 1, "in numeric literal")  # a minus alone
    end = match.end()
    following = text[end : end + 1]
    if following == "." and "." not in match[0] and "e" not in match[0].lower():
        raise _wrong(text, end + 1, "after decimal point in numeric literal")
    if following in ("e", "E") and "e" not in match[0].lower():
        sign = 1 if text[end + 1 : end + 2] in ("+", "-") else 0
        raise _wrong(text, end + 1 + sign, "in exponent of numeric literal")
    return end


def _at(text: str, place: int) -> str:
    if place >= len(text):
        raise _Stop(_END)
    return text[place]


def _wrong(text: str, place: int, context: str) -> _Stop:
    if place >= len(text):
        return _Stop(_END)
    return _Stop(f"invalid character {_quoted(text[place])} {context}")


def _quoted(character: str) -> str:
    """As Go's scanner shows the byte where it stopped."""
    if character == "'":
        return r"'\''"
    if character == '"':
        return "'\"'"
    character = chr(character.encode(errors="surrogateescape")[0])  # it reads bytes
    if character == "\\" or not character.isprintable():
        code = ord(character)
        character = _ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")
    return f"'{character}'"

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


def json_type_error(value: Any, expected: str) -> str:
    """What Go says where a value is not of the expected Go type."""
    if isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int | float):
        kind = "number"
    else:
        kinds = (("string", str), ("array", list), ("object", dict))
        kind = next((name for name, of in kinds if isinstance(value, of)), "null")
    return f"json: cannot unmarshal {kind} into Go value of type {expected}"


def _scan(text: str) -> None:
    """Read one value. Raises: _Stop."""
    position, open_ones = 0, ""
    while True:
        position = _skip(text, position)
        if text[position] in "{[":
            open_ones += text[position]
            if len(open_ones) > _DEEPEST:
                raise _Stop("exceeded max depth")
            position = _skip(text, position + 1)
            if text[position] not in "}]" or (text[position] == "}") is not (open_ones[-1] == "{"):
                if open_ones[-1] == "{":
                    position = _key(text, position)
                continue
        else:
            position = _scalar(text, position)
        while True:  # a value has ended, or a list or an object is about to
            if not open_ones:
                return
            position = _skip(text, position)
            is_object = open_ones[-1] == "{"
            if text[position] == ",":
                position = _key(text, _skip(text, position + 1)) if is_object else position + 1
                break
            if text[position] != ("}" if is_object else "]"):
                raise _wrong(text, position, "after object key:value pair" if is_object else "after array element")
            open_ones, position = open_ones[:-1], position + 1
            if not open_ones:
                return


def _skip(text: str, position: int) -> int:
    """The position of the next character that is no white space. Raises: _Stop at the end."""
    match = _SPACE.match(text, position)
    assert match is not None
    if match.end() == len(text):
        raise _Stop(_END)
    return match.end()


def _key(text: str, position: int) -> int:
    if text[position] != '"':
        raise _wrong(text, position, "looking for beginning of object key string")
    position = _skip(text, _string(text, position))
    if text[position] != ":":
        raise _wrong(text, position, "after object key")
    return position + 1


def _scalar(text: str, position: int) -> int:
    if text[position] == '"':
        return _string(text, position)
    if text[position] == "-" or text[position] in "0123456789":
        return _number(text, position)
    for word in ("true", "false", "null"):
        if text[position] == word[0]:
            for offset, letter in enumerate(word):
                if _at(text, position + offset) != letter:
                    raise _wrong(text, position + offset, f"in literal {word} (expecting {_quoted(letter)})")
            return position + len(word)
    raise _wrong(text, position, "looking for beginning of value")


def _string(text: str, position: int) -> int:
    position += 1
    while True:
        match = _PLAIN.match(text, position)
        assert match is not None
        position = match.end()
        character = _at(text, position)
        if character == '"':
            return position + 1
        if character != "\\":
            raise _wrong(text, position, "in string literal")
        escaped = _at(text, position + 1)
        if escaped not in 'bfnrt\\/"u':
            raise _wrong(text, position + 1, "in string escape code")
        if escaped == "u":
            for offset in range(2, 6):
                if _at(text, position + offset) not in "0123456789abcdefABCDEF":
                    raise _wrong(text, position + offset, "in \\u hexadecimal character escape")
            position += 4
        position += 2


def _number(text: str, position: int) -> int:
    if (match := _NUMBER.match(text, position)) is None:
        raise _wrong(text, position + 1, "in numeric literal")  # a minus alone
    end = match.end()
    following = text[end : end + 1]
    if following == "." and "." not in match[0] and "e" not in match[0].lower():
        raise _wrong(text, end + 1, "after decimal point in numeric literal")
    if following in ("e", "E") and "e" not in match[0].lower():
        sign = 1 if text[end + 1 : end + 2] in ("+", "-") else 0
        raise _wrong(text, end + 1 + sign, "in exponent of numeric literal")
    return end


def _at(text: str, position: int) -> str:
    if position >= len(text):
        raise _Stop(_END)
    return text[position]


def _wrong(text: str, position: int, context: str) -> _Stop:
    if position >= len(text):
        return _Stop(_END)
    return _Stop(f"invalid character {_quoted(text[position])} {context}")


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

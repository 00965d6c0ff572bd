"""Text from others, escaped for display: nothing in it moves a cursor, hides, reorders or forges its surroundings."""

import json
import re

__all__ = ("escape", "find_control", "is_printable", "quote", "single_line")

# What Python calls printable and a terminal shows as nothing or as a blank: fillers, joiners, variation selectors.
_INVISIBLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
)
_INVISIBLE_CHARACTER = re.compile(f"[{_INVISIBLE}]")
_CONTROL = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_RESET = "\x1b[0m"
_QUOTED_LENGTH = 40
_LINE_LENGTH = 500


def is_printable(text: str) -> bool:
    """Whether a text is one line of visible characters and blanks."""
    if text.isascii():
        return text.isprintable()
    return text.isprintable() and _INVISIBLE_CHARACTER.search(text) is None


def find_control(text: str, *, lines: bool = False) -> str | None:
    """The first control character of a text, as it is escaped; None if there is none.

    With ``lines`` the text is for people and may have several lines: line feeds, also after a carriage return, tabs and
    what scripts and emoji are composed with are fine, and only control characters and direction overrides are not.
    """
    if is_printable(text):
        return None
    if lines:
        found = _CONTROL.search(text)
        return _escaped(found.group()) if found else None
    return next((_escaped(each) for each in text if not is_printable(each) and _is_control(each)), None)


def _is_control(character: str) -> bool:
    import unicodedata

    is_other = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return is_other or _INVISIBLE_CHARACTER.search(character) is not None


def escape(text: str, *, keep: str = "", colours: bool = False) -> str:
    r"""The text with every character that is not printable as ``\uXXXX``, the way JSON writes it.

    That covers control characters (C0, DEL, C1), format characters (direction overrides, zero-width ones), line and
    paragraph separators, surrogates (bytes that are no UTF-8) and what is unassigned. ``keep`` names characters that
    stay, such as a line feed. With ``colours`` the sequences that only set colours (SGR) stay, and end with the text.
    """
    if is_printable(text):
        return text
    if not colours:
        return "".join(each if each in keep or is_printable(each) else _escaped(each) for each in text)
    parts = _COLOUR.split(text)
    shown = "".join(part if index % 2 else escape(part, keep=keep) for index, part in enumerate(parts))
    return shown + _RESET if len(parts) > 1 else shown


def _escaped(character: str) -> str:
    number = ord(character)
    if number <= 0xFFFF:
        return f"\\u{number:04x}"
    high, low = divmod(number - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def quote(text: str, *, always: bool = False) -> str:
    """A text from others for a message: bounded, without control characters, in quotes where they help."""
    short = text if len(text) <= _QUOTED_LENGTH else text[:_QUOTED_LENGTH] + "..."
    is_plain = is_printable(short)
    if is_plain and short and " " not in short and not always:
        return short
    return escape(json.dumps(short, ensure_ascii=False))


def single_line(text: str) -> str:
    """A text from outside on one line, of bounded length, without control characters."""
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= _LINE_LENGTH else line[:_LINE_LENGTH] + "..."

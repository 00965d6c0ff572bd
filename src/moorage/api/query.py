"""Query strings and bodies, read by the Docker daemon's rules. Pure.

Source: facts of moby api/server/httputils and api/types/filters at v28, texts included where clients see them.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from moorage import errors

__all__ = ("Filters", "boolean", "instant", "integer", "json_body", "parse_filters", "seconds")

Filters = Mapping[str, frozenset[str]]

_DIGITS = 40
_FALSE = frozenset({"", "0", "no", "false", "none"})
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


def boolean(text: str) -> bool:
    """A flag of a query: anything but "", 0, no, false and none is true."""
    return text.strip().lower() not in _FALSE


def integer(text: str) -> int:
    """A whole number. Raises: Invalid in Go's words."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise errors.Invalid(f"strconv.Atoi: parsing {json.dumps(text)}: invalid syntax")
    number = int(text) if len(text) <= _DIGITS else 2**63  # Python refuses to read thousands of digits
    if not -(2**63) <= number < 2**63:
        raise errors.Invalid(f"strconv.Atoi: parsing {json.dumps(text)}: value out of range")
    return number


def seconds(text: str, what: str) -> float:
    """A number of seconds, 0 or more. Raises: Invalid."""
    try:
        number = float(text or "0")
    except ValueError as error:
        raise errors.Invalid(f"cannot read {what}: {text!r} is no number of seconds") from error
    if not 0 <= number <= 86400:
        raise errors.Invalid(f"cannot use {what}: {text} s; 0 to 86400 are possible")
    return number


def instant(text: str, what: str) -> datetime | None:
    """An instant as seconds since 1970 with a fraction, or as RFC 3339; None for an empty text or 0.

    Raises: Invalid.
    """
    if text in ("", "0"):
        return None
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            return datetime.fromtimestamp(float(text), UTC)
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError) as error:
        raise errors.Invalid(f"cannot read {what}: {text!r} is neither seconds since 1970 nor RFC 3339") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def parse_filters(text: str, known: frozenset[str]) -> Filters:
    """Filters in the present form ({"key": {"value": true}}) or the old one ({"key": ["value"]}).

    Raises: Invalid for other JSON, or a key that is not known.
    """
    if not text:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid("invalid filter") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise errors.Invalid("invalid filter")
    found: dict[str, frozenset[str]] = {}
    for key, values in document.items():
        if isinstance(values, dict) and all(isinstance(is_on, bool) for is_on in values.values()):
            values = list(values)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise errors.Invalid("invalid filter")
        if key not in known:
            raise errors.Invalid(f"invalid filter '{key}'")
        found[key] = frozenset(values)
    return found


def truth(filters: Filters, key: str) -> bool | None:
    """What a filter with a flag asks for, None where it is not there. Raises: Invalid."""
    values = filters.get(key)
    if not values:
        return None
    asked = {_TRUTH.get(value) for value in values}
    if len(asked) != 1 or None in asked:
        raise errors.Invalid(f"invalid filter '{key}=[{' '.join(sorted(values))}]'")
    return asked.pop()


def json_body(raw: bytes, content_type: str | None, *, has_body: bool) -> Any:
    """A JSON body; None where there is none (``has_body``: a length over 0, or chunks, even if none came).

    Raises: Invalid in the daemon's words.
    """
    if not has_body and content_type is None:
        return None
    kind = (content_type or "").partition(";")[0].strip().lower()
    if "/" not in kind:
        raise errors.Invalid(f"malformed Content-Type header ({content_type or ''}): mime: no media type")
    if kind != "application/json":
        raise errors.Invalid(f"unsupported Content-Type header ({content_type}): must be 'application/json'")
    if not has_body:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"invalid JSON: {error}") from error
    if not text.strip():
        raise errors.Invalid("invalid JSON: got EOF while reading request body")
    try:
        document, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"invalid JSON: {error}") from error
    if text.lstrip()[end:].strip():
        raise errors.Invalid("unexpected content after JSON")
    if not _is_text(document):
        raise errors.Invalid("invalid JSON: it has half a character (a lone surrogate)")
    return document


def _is_text(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True

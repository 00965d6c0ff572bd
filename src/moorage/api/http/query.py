"""Query strings and bodies, read by the Docker daemon's rules. Pure.

Source: facts of moby api/server/httputils and api/types/filters at v28, texts included where clients see them.
"""

import json
import re
import signal
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from moorage import errors
from moorage.api.http.go_json import find_json_error, json_type_error

__all__ = (
    "Filters",
    "boolean",
    "instant",
    "integer",
    "json_body",
    "match_fields",
    "nanoseconds",
    "parse_filters",
    "read_object",
    "seconds",
    "signal_number",
    "texts",
)

Value = TypeVar("Value", bound=Struct)

Filters = Mapping[str, frozenset[str]]

_DIGITS = 40
_FALSE = frozenset({"", "0", "no", "false", "none"})
_TRUTH = {"1": True, "true": True, "0": False, "false": False}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def boolean(text: str) -> bool:
    """A flag of a query: anything but "", 0, no, false and none is true."""
    return text.strip().lower() not in _FALSE


def integer(text: str, default: int | None = None) -> int:
    """A whole number; the default, if there is one, for an empty text. Raises: Invalid in Go's words."""
    if not text and default is not None:
        return default
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


def signal_number(text: str) -> int:
    """A signal by its number, or its name with or without SIG. Raises: Invalid in the daemon's words."""
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 0 < int(name) <= signal.SIGRTMAX:
        return int(name)
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError as error:
        raise errors.Invalid(f"Invalid signal: {text}") from error


def nanoseconds(text: str, what: str) -> int | None:
    """An instant, in nanoseconds since 1970, of seconds since then with a fraction, or of RFC 3339; None for "".

    Digits of the fraction after the ninth do not count. Raises: Invalid.
    """
    if not text:
        return None
    if match := re.fullmatch(r"([0-9]{1,12})(?:\.([0-9]*))?", text):
        return int(match[1]) * 10**9 + int((match[2] or "")[:9].ljust(9, "0"))
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise errors.Invalid(f"cannot read {what}: {text!r} is neither seconds since 1970 nor RFC 3339") from error
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000


def instant(text: str, what: str) -> datetime | None:
    """As ``nanoseconds``, cut to microseconds; None also for 0. Raises: Invalid."""
    count = nanoseconds(text, what)
    try:
        return _EPOCH + timedelta(microseconds=count // 1000) if count else None
    except OverflowError as error:
        raise errors.Invalid(f"cannot read {what}: {text!r} is too far from now") from error


def parse_filters(text: str, known: frozenset[str], aliases: Mapping[str, str] | None = None) -> Filters:
    """Filters in the present form ({"key": {"value": true}}) or the old one ({"key": ["value"]}).

    ``aliases`` are further spellings of keys that are known. Raises: Invalid for other JSON, or a key that is unknown.
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
        name = (aliases or {}).get(key, key)
        if name not in known:
            raise errors.Invalid(f"invalid filter '{key}'")
        found[name] = found.get(name, frozenset()) | frozenset(values)
    return found


def truth(filters: Filters, key: str) -> bool | None:
    """The value of a flag among filters, None where it is absent.

    Raises:
        errors.Invalid: it is neither true nor false, or both
    """
    values = filters.get(key)
    if not values:
        return None
    found = {_TRUTH.get(value) for value in values}
    if len(found) != 1 or None in found:
        raise errors.Invalid(f"invalid filter '{key}=[{' '.join(sorted(values))}]'")
    return found.pop()


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
        text = raw.decode().lstrip(_JSON_SPACE)
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"invalid JSON: {error}") from error
    if not text:
        raise errors.Invalid("invalid JSON: got EOF while reading request body")
    try:
        document, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"invalid JSON: {find_json_error(text) or error}") from error
    if text[end:].strip(_JSON_SPACE):
        wrong = find_json_error(text)  # 1e is a number that goes wrong, not a 1 and something else
        raise errors.Invalid(f"invalid JSON: {wrong}" if wrong else "unexpected content after JSON")
    if not _is_text(document):
        raise errors.Invalid("invalid JSON: it has half a character (a lone surrogate)")
    return document


def texts(document: Any, what: str) -> list[str]:
    """A JSON list of texts, empty for null. Raises: Invalid in Go's words."""
    if document is None:
        return []
    if not isinstance(document, list):
        raise errors.Invalid(f"invalid JSON: {json_type_error(document, '[]string')}; {what}")
    for each in document:
        if each is not None and not isinstance(each, str):
            raise errors.Invalid(f"invalid JSON: {json_type_error(each, 'string')}; {what}")
    return [each or "" for each in document]


def read_object(document: Any, kind: type[Value]) -> Value:
    """A JSON object as an object of the API; None has no fields, and fields that are null count as absent.

    Keys match in any letter case, with or without underscores, so that the answer to a GET can be sent back.

    Raises:
        errors.Invalid: not an object, or a field is unknown, invalid or of a wrong type; the text names it
    """
    fields = match_fields(document, kind)
    for known in msgspec.structs.fields(kind):
        if known.encode_name in fields:
            try:
                msgspec.convert(fields[known.encode_name], known.type)
            except (msgspec.ValidationError, RecursionError) as error:
                problem = "of a wrong type" if str(error).startswith("Expected `") else "invalid"
                raise errors.Invalid(f"invalid JSON: the field {known.encode_name!r} is {problem}: {error}") from error
    return msgspec.convert(fields, kind)


def match_fields(document: Any, kind: type[Struct]) -> dict[str, Any]:
    """The fields of a JSON object by the names that they have in ``kind``, values as they came.

    Raises:
        errors.Invalid: it is no object, or has a field that is unknown
    """
    if not isinstance(document, dict | None):
        raise errors.Invalid("invalid JSON: the body must be an object")
    names = {_plain(name): name for name in kind.__struct_encode_fields__}
    found: dict[str, Any] = {}
    for key, value in (document or {}).items():
        name = names.get(_plain(key))
        if name is None:
            raise errors.Invalid(f"invalid JSON: there is no field {key!r} here; known: {', '.join(names.values())}")
        if value is not None:
            found[name] = value
    return found


def _plain(key: str) -> str:
    return key.replace("_", "").lower()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_JSON_SPACE = " \t\r\n"


def _is_text(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True

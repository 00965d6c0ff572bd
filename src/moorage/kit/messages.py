"""Typed requests and answers, and the exact JSON of each: dataclasses with Go's names on the wire.

``network_id`` is ``NetworkID`` on the wire; a field whose name does not follow the rule says so with ``named``. Bytes
are base64. Keys that a class does not have are ignored, null and a missing key give the default.
"""

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from moorage.kit.failures import InvalidCall

__all__ = ("decode", "encode", "named", "parse_object", "to_json")

Message = TypeVar("Message")

_WORDS = {"id": "ID", "ipv4": "IPv4", "ipv6": "IPv6", "authn": "AuthN"}
_KINDS: dict[type, str] = {str: "a text", int: "a number", bool: "true or false", bytes: "base64", dict: "an object"}


def named(name: str, **options: Any) -> Any:
    """A field whose JSON name does not follow from its own."""
    return dataclasses.field(metadata={"json": name}, **options)


def _json_name(field: "dataclasses.Field[Any]") -> str:
    given = field.metadata.get("json")
    if given is not None:
        return str(given)
    return "".join(_WORDS.get(word, word.capitalize()) for word in field.name.split("_"))


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; an empty body is an empty object, as many callers send one.

    Raises:
        failures.InvalidCall: it is not a JSON object
    """
    if not body.strip():
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidCall(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidCall("the body is not a JSON object")
    return document


def decode(kind: type[Message], document: Mapping[str, Any]) -> Message:
    """The message of this type.

    Raises:
        failures.InvalidCall: a field is missing that has no default, or is of another type
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass, which mypy has no bound for
        name = _json_name(field)
        value = document.get(name)
        if value is not None:
            values[field.name] = _value(field.type, value, name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidCall(f"the field {name} is missing")
    return kind(**values)


def _value(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise InvalidCall(f"the field {name} must be a list, not {value!r}")
        return tuple(_value(arguments[0], each, name) for each in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise InvalidCall(f"the field {name} must be an object, not {value!r}")
        return {key: _value(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
    if type(None) in arguments:
        return _value(arguments[0], value, name)
    if dataclasses.is_dataclass(kind):
        return decode(kind, _checked(dict, value, name))  # type: ignore[arg-type]  # a type, not an instance
    return _bytes(value, name) if kind is bytes else _checked(kind, value, name)


def _checked(kind: type, value: Any, name: str) -> Any:
    # JSON's true is a number for isinstance
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidCall(f"the field {name} must be {_KINDS.get(kind, kind.__name__)}, not {value!r}")
    return value


def _bytes(value: Any, name: str) -> bytes:
    try:
        return base64.b64decode(_checked(str, value, name), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidCall(f"the field {name} is not base64: {error}") from error


def to_json(value: Any) -> Any:
    """A value as JSON has it: dataclasses become objects, bytes base64; fields that are None are left out."""
    if dataclasses.is_dataclass(value):
        return {
            _json_name(field): to_json(part)
            for field in dataclasses.fields(value)
            if (part := getattr(value, field.name)) is not None
        }
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(part) for part in value]
    return value


def encode(value: Any) -> bytes:
    """The bytes of an answer: one JSON object in one line; None is an empty one."""
    return json.dumps({} if value is None else to_json(value)).encode() + b"\n"

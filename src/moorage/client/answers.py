"""Answers of the server at the engine's socket, which may be another server than Moorage."""

import json
from typing import Any, TypeVar

from moorage import errors
from moorage.api.schema.base import from_document

__all__ = ("decode_answer",)

Value = TypeVar("Value")


def decode_answer(raw: bytes, kind: type[Value]) -> Value:
    """An answer as an object of the API; fields that are unknown here are ignored.

    Raises:
        errors.Unavailable: it is no JSON, or lacks a field, or has one of another type
    """
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _foreign("it is no JSON") from error
    try:
        return from_document(document, kind)
    except ValueError as error:
        raise _foreign(str(error)) from error


def _foreign(cause: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"cannot understand the answer of the engine: {cause}; "
        "does --host or MOORAGE_HOST name the socket of another server?"
    )

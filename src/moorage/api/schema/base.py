"""What all objects of the API share: how they become JSON documents, and how documents become them."""

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

__all__ = ("API_VERSION", "MIN_API_VERSION", "ApiObject", "ErrorResponse", "from_document", "to_document")

Value = TypeVar("Value")

API_VERSION = (1, 55)
"""The newest published version of Docker's API. Its part about plugins has not changed since 1.47, except that
``Config.DockerVersion``, which was never sent here, was removed.
"""
MIN_API_VERSION = (1, 24)


class ApiObject(Struct, frozen=True, rename="pascal"):
    """An object of the API. Fields are sent in the order of their definition."""


class ErrorResponse(Struct, frozen=True):
    """The answer to a request that failed."""

    message: str
    """One sentence: what cannot be done, and why."""


def to_document(value: object) -> Any:
    """The value as dictionaries, lists and scalars, ready for ``json``; fields that are UNSET are left out."""
    return msgspec.to_builtins(value)


def from_document(document: object, kind: type[Value]) -> Value:
    """The typed value of a parsed JSON document; unknown fields are ignored.

    Raises:
        ValueError: the document does not fit; says where (``Expected `str`, got `int` - at `$[0].Name``).
    """
    try:
        return msgspec.convert(document, kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

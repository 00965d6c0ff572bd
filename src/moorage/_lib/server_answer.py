"""Answers of the server at the engine's socket, which may be another one than Moorage's."""

import json
from typing import Any

from moorage import errors

__all__ = ("decode_answer", "expect")


class _Document(dict[str, Any]):
    """An object of an answer. A key that it lacks says that the answer is not Moorage's."""

    def __missing__(self, key: str) -> Any:
        raise _not_ours(f"it lacks {key!r}")


def expect(kind: type, found: Any) -> Any:
    """The value. Raises: Unavailable where it is of another kind."""
    if not isinstance(found, kind):
        raise _not_ours("it is of another kind")
    return found


def decode_answer(raw: bytes) -> Any:
    """An answer. Raises: Unavailable for what is no JSON."""
    try:
        return json.loads(raw, object_hook=_Document)
    except (ValueError, RecursionError) as error:
        raise _not_ours("it is no JSON") from error


def _not_ours(why: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"cannot understand the answer of the engine: {why}; "
        "does --host or MOORAGE_HOST name the socket of another server?"
    )

"""Statuses of registries and token servers: which kind of failure each is, and how errors show it."""

from http import HTTPStatus

from moorage import errors

__all__ = ("clean", "error_kind", "status_text")

_TEXT_CHARACTERS = 500

_KINDS: dict[int, type[errors.MoorageError]] = {
    400: errors.Invalid,
    401: errors.Unauthorized,
    403: errors.Denied,
    404: errors.NotFound,
    405: errors.Unsupported,
    409: errors.Conflict,
    413: errors.Invalid,
    416: errors.Invalid,
    429: errors.Unavailable,
}


def error_kind(status: int) -> type[errors.MoorageError]:
    """The kind of failure that a status stands for."""
    return _KINDS.get(status, errors.Unavailable if status >= 500 else errors.MoorageError)


def status_text(status: int) -> str:
    """``404 (not found)``."""
    try:
        return f"{status} ({HTTPStatus(status).phrase.lower()})"
    except ValueError:
        return str(status)


def clean(text: str) -> str:
    """A stranger's text on one line, of bounded length, without control characters."""
    line = " ".join(text.split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= _TEXT_CHARACTERS else line[:_TEXT_CHARACTERS] + "..."

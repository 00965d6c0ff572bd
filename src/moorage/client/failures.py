"""Failures of a request to an engine, by kind, with the texts that users see. Imports nothing slow."""

import json
import os

from moorage import errors

__all__ = ("connection_failure", "error_of", "failure_of")

_KINDS: dict[int, type[errors.MoorageError]] = {
    400: errors.Invalid,
    401: errors.Unauthorized,
    403: errors.Denied,
    404: errors.NotFound,
    408: errors.Invalid,
    409: errors.Conflict,
    414: errors.Invalid,
    431: errors.Invalid,
    501: errors.Unsupported,
    502: errors.InvalidResponse,
    503: errors.Unavailable,
}


def error_of(status: int, message: str) -> errors.MoorageError:
    """The failure with this HTTP status."""
    return _KINDS.get(status, errors.MoorageError)(message)


def failure_of(status: int, reason: str, body: bytes) -> errors.MoorageError:
    """The failure that an answer of the engine reports."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = f"the engine answered {status} {reason}"
    return error_of(status, message)


def connection_failure(path: str, error: Exception) -> errors.MoorageError:
    """Why no answer came from the socket at this path."""
    if isinstance(error, PermissionError):
        return errors.Denied(f"cannot use {path}: permission denied; run this with sudo")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return errors.Unavailable(f"cannot reach moorage at {path}: is it running? start it with: moorage serve")
    number = error.errno if isinstance(error, OSError) else None
    cause = os.strerror(number) if number else str(error) or "it hung up"
    return errors.Unavailable(f"lost moorage at {path}: {cause}")

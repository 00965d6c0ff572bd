"""HTTP statuses of the kinds of failure, and failures as answers."""

import json
import logging

from aiohttp import web

from moorage import errors
from moorage._lib.escapes import escape

__all__ = ("RequestTooSlow", "answer_failure", "error_body", "log_failure", "log_refusal", "refusal", "status_of")

log = logging.getLogger(__name__)


class RequestTooSlow(errors.Invalid):
    """The body of a request did not come in time."""


_STATUS: tuple[tuple[type[errors.MoorageError], int], ...] = (
    (RequestTooSlow, 408),
    (errors.Invalid, 400),
    (errors.Unauthorized, 401),
    (errors.Denied, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unsupported, 501),
    (errors.InvalidResponse, 502),
    (errors.Unavailable, 503),
)


def status_of(error: Exception) -> int:
    """The status that says what kind of failure this is."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(message: str) -> bytes:
    """An error as Docker's clients read it."""
    return json.dumps({"message": message}).encode() + b"\n"


def refusal(status: int, message: str) -> web.Response:
    """An error as an answer. The content type has no parameters: the docker CLI compares it."""
    return web.Response(
        status=status,
        body=error_body(message),
        headers={"Content-Type": "application/json"},
    )


def answer_failure(error: Exception, what: str) -> web.Response:
    """The answer to a request that failed."""
    return refusal(status_of(error), log_failure(error, what))


def log_refusal(status: int, message: str) -> None:
    """Log that what came was no request that a handler could get."""
    log.info("refused a connection's request: %d %s", status, message)


def log_failure(error: Exception, what: str) -> str:
    """The message for the client, in one sentence; an unexpected failure is logged with its traceback."""
    if isinstance(error, errors.MoorageError):
        status = status_of(error)
        log.log(logging.INFO if status < 500 else logging.WARNING, "%s: %d %s", what, status, error)
        return escape(str(error), keep="\n\t")  # docker's command prints it as it comes
    log.error("%s failed", what, exc_info=error)
    return "internal error; see the log"

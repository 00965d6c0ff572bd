"""The only place that knows which HTTP status belongs to which kind of failure."""

import json
import logging

from aiohttp import web

from moorage import errors
from moorage._lib.escaping import escape

__all__ = ("answer_failure", "log_failure", "refusal", "status_of")

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[errors.MoorageError], int], ...] = (
    (errors.Invalid, 400),
    (errors.Unauthorized, 401),
    (errors.Denied, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unsupported, 501),
    (errors.Unavailable, 503),
)


def status_of(error: Exception) -> int:
    """The status that says what kind of failure this is."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def refusal(status: int, message: str) -> web.Response:
    """An error as Docker's clients read it. The content type has no parameters: the docker CLI compares it."""
    return web.Response(
        status=status,
        body=json.dumps({"message": message}).encode() + b"\n",
        headers={"Content-Type": "application/json"},
    )


def answer_failure(error: Exception, what: str) -> web.Response:
    """The answer to a request that failed."""
    return refusal(status_of(error), log_failure(error, what))


def log_failure(error: Exception, what: str) -> str:
    """What to tell the client of it, in one sentence. What was not foreseen is logged whole."""
    if isinstance(error, errors.MoorageError):
        status = status_of(error)
        log.log(logging.INFO if status < 500 else logging.WARNING, "%s: %d %s", what, status, error)
        return escape(str(error), keep="\n\t")  # docker's command prints it as it comes
    log.error("%s failed", what, exc_info=error)
    return "moorage failed in a way that it did not foresee; its log says more"

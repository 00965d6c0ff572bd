"""Statuses of registries: which kind of error each one is, and when a request is retried."""

import email.utils
import logging
import time
from collections.abc import Iterator
from http import HTTPStatus

import aiohttp
import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.timeouts import RegistryTimeouts

__all__ = (
    "OPTIONAL_TRIES",
    "TRANSIENT_STATUSES",
    "TRIES",
    "RetryBudget",
    "TransientError",
    "as_transient",
    "error_kind",
    "retry_after",
    "retry_after_of",
    "status_text",
)

log = logging.getLogger(__name__)

TRIES = 5
"""How often a request is sent, or a blob is started or resumed without progress, before it has failed."""

OPTIONAL_TRIES = 2
"""The same for a request whose failure only costs an upload."""

TRANSIENT_STATUSES = (429, 500, 502, 503, 504)


class TransientError(Exception):
    """A failure that a retry may cure: the error otherwise, and the pause in seconds that the server requested."""

    def __init__(self, failure: errors.MoorageError, pause: float = 0.0) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.pause = pause


class RetryBudget:
    """The remaining retries of one operation, and the pauses between them."""

    def __init__(self, timeouts: RegistryTimeouts, tries: int = TRIES) -> None:
        self._timeouts = timeouts
        self._tries = tries
        self.refill()

    def refill(self) -> None:
        """Allow all retries again, after progress."""
        self._left = self._tries - 1
        self._pauses: Iterator[float] = pauses(self._timeouts.registry_retry_first, self._timeouts.registry_retry_limit)

    async def after(self, transient: TransientError) -> None:
        """Return when the next retry is due.

        Raises: the failure if no retry remains, or if the server requests a longer pause than is allowed."""
        limit = self._timeouts.registry_retry_after
        if transient.pause > limit:
            kind = type(transient.failure)
            reason = f"(it asks to wait {transient.pause:.0f} s, over {limit:g} s)"
            raise kind(f"{transient.failure} {reason}") from transient.__cause__
        if not self._left:
            raise transient.failure from transient.__cause__
        self._left -= 1
        pause = max(next(self._pauses), transient.pause)
        log.info("%s; trying again in %.1f s", transient, pause)
        await anyio.sleep(pause)


def retry_after_of(response: aiohttp.ClientResponse) -> float:
    """The pause in seconds that a response requests, as a number or as a date; 0 if it requests none."""
    return retry_after(response.headers.get("Retry-After", ""), now=time.time())


def retry_after(value: str, *, now: float) -> float:
    """The seconds of a ``Retry-After`` header: a whole number, or a date, compared with ``now``; 0 for anything else.

    Source: RFC 9110, section 10.2.3.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


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
    """The kind of error for a status."""
    return _KINDS.get(status, errors.Unavailable if status >= 500 else errors.MoorageError)


def status_text(status: int) -> str:
    """``404 (not found)``."""
    try:
        return f"{status} ({HTTPStatus(status).phrase.lower()})"
    except ValueError:
        return str(status)


def as_transient(failure: Exception) -> TransientError:
    """A failure that a retry may cure. Raises: any other failure itself."""
    if isinstance(failure, TransientError):
        return failure
    raise failure

"""Trying again: what may help, how often, and after which pauses."""

import email.utils
import logging
import time
from collections.abc import Iterator

import aiohttp
import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.timeouts import Timeouts

__all__ = ("OPTIONAL_TRIES", "TRANSIENT_STATUSES", "TRIES", "RetryBudget", "TransientError", "pause_of", "retry_after")

log = logging.getLogger(__name__)

TRIES = 5
"""How often a request is sent, or a blob is begun or resumed without having come on, before it has failed."""

OPTIONAL_TRIES = 2
"""The same for a request whose failure only means more work."""

TRANSIENT_STATUSES = (429, 500, 502, 503, 504)


class TransientError(Exception):
    """A failure that may be over soon: what it is otherwise, and the pause in seconds that the server asked for."""

    def __init__(self, failure: errors.MoorageError, pause: float = 0.0) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.pause = pause


class RetryBudget:
    """How often one thing is tried again, and after which pauses."""

    def __init__(self, timeouts: Timeouts, tries: int = TRIES) -> None:
        self._timeouts = timeouts
        self._tries = tries
        self.refill()

    def refill(self) -> None:
        """Begin anew, because something was gained."""
        self._left = self._tries - 1
        self._pauses: Iterator[float] = pauses(self._timeouts.registry_retry_first, self._timeouts.registry_retry_limit)

    async def after(self, transient: TransientError) -> None:
        """Return when the next try is due. Raises: the failure, where there is to be none."""
        limit = self._timeouts.registry_retry_after
        if transient.pause > limit:
            kind = type(transient.failure)
            why = f"(it asks to wait {transient.pause:.0f} s, over {limit:g} s)"
            raise kind(f"{transient.failure} {why}") from transient.__cause__
        if not self._left:
            raise transient.failure from transient.__cause__
        self._left -= 1
        pause = max(next(self._pauses), transient.pause)
        log.info("%s; trying again in %.1f s", transient, pause)
        await anyio.sleep(pause)


def pause_of(response: aiohttp.ClientResponse) -> float:
    """The pause in seconds that an answer asks for, as a number or as a date; 0 where it asks for none."""
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

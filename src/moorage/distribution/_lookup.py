"""Requests for what a repository may do without: lists of referrers, signatures. Their absence is not a failure."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from moorage import errors
from moorage.distribution._body import Allowance, read_bounded
from moorage.distribution._check import MANIFEST_LIMIT
from moorage.distribution._conversation import Conversation, RegistryRequest
from moorage.distribution._errors import TransportError
from moorage.timeouts import Timeouts

__all__ = ("first_of", "read_document")

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def first_of(
    conversations: Sequence[Conversation], call: Callable[[Conversation], Awaitable[Result]]
) -> Result | None:
    """The first result; None where a server answers that it has none, and no other one has it.

    Raises: the first other failure, where no server has answered.
    """
    failure, is_missing = None, False
    for conversation in conversations:
        try:
            return await call(conversation)
        except (errors.NotFound, errors.Unsupported):
            is_missing = True
        except errors.MoorageError as error:
            log.info("%s", error)
            failure = failure or error
    if failure is not None and not is_missing:
        raise failure
    return None


async def read_document(conversation: Conversation, request: RegistryRequest, timeouts: Timeouts) -> bytes:
    """The whole answer. Raises: Invalid for more than ``MANIFEST_LIMIT`` bytes; what the conversation does."""
    response = await conversation.send(request)
    try:
        data = await read_bounded(response, MANIFEST_LIMIT, timeouts.registry_stall, Allowance(timeouts))
    except TransportError as error:
        raise errors.Unavailable(f"cannot {request.what}: {error}") from error
    finally:
        response.close()
    if data is None:
        raise errors.Invalid(f"cannot {request.what}: it has more than {MANIFEST_LIMIT} bytes")
    return data

"""A subscription that is known to have begun.

containerd does not say when a subscription takes effect, keeps no history and sends nothing until something happens.
So a mark of our own is published until it comes back: from then on no event is missed. What happened before is for the
caller to ask, after entering and before acting.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from moorage import errors
from moorage.containerd.client import Client
from moorage.containerd.types import Envelope
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("subscribe",)

_MARK_AGAIN = 0.05  # seconds until the mark is published once more: the first may have come before the subscription


@asynccontextmanager
async def subscribe(
    client: Client, topics: str = "^/tasks/", *, timeouts: Timeouts = DEFAULT
) -> AsyncIterator[AsyncIterator[Envelope]]:
    """Every event of the client's namespace whose topic matches the regular expression, from the moment of entering.

    Raises: Unavailable when containerd goes away, from entering and from the iterator. The iterator does not end
    otherwise.
    """
    mark = f"/moorage/subscribed/{secrets.token_hex(8)}"
    filters = [f"namespace=={client.namespace},topic~=|{pattern}|" for pattern in (topics, f"^{mark}$")]
    async with client.raw_events(*filters) as envelopes:
        early: list[Envelope] = []
        try:
            with anyio.fail_after(timeouts.rpc):
                await _see_mark(client, mark, envelopes, early)
        except TimeoutError as error:
            raise errors.Unavailable(
                f"containerd at {client.address} sent no events within {timeouts.rpc:g} s"
            ) from error
        yield _all(early, envelopes, mark)


async def _see_mark(client: Client, mark: str, envelopes: AsyncIterator[Envelope], early: list[Envelope]) -> None:
    async def publish() -> None:
        while True:
            await client.publish(mark)
            await anyio.sleep(_MARK_AGAIN)

    failure: errors.MoorageError | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            async for envelope in envelopes:
                if envelope.topic == mark:
                    break
                early.append(envelope)
            tasks.cancel_scope.cancel()
    except* errors.MoorageError as group:
        failure = _first(group)
    if failure is not None:
        raise failure


def _first(group: BaseExceptionGroup[errors.MoorageError]) -> errors.MoorageError:
    """The one failure that is told; the others of a lost connection say the same."""
    error = group.exceptions[0]
    return error if isinstance(error, errors.MoorageError) else _first(error)


async def _all(early: list[Envelope], envelopes: AsyncIterator[Envelope], mark: str) -> AsyncIterator[Envelope]:
    for envelope in early:
        yield envelope
    async for envelope in envelopes:
        if envelope.topic != mark:
            yield envelope

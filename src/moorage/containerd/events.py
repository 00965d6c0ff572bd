"""A subscription to events that is known to have started.

containerd does not say when a subscription takes effect, keeps no history and sends nothing until something happens.
So a mark is published until the subscription returns it: from then on no event is missed. The caller queries the state
after entering and before acting, to learn of earlier events.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from moorage import errors
from moorage.containerd.client import Client
from moorage.containerd.types import Envelope
from moorage.timeouts import DEFAULT, ClientTimeouts

__all__ = ("subscribe",)

_MARK_INTERVAL = 0.05  # seconds until the mark is published again: the first may precede the subscription


@asynccontextmanager
async def subscribe(
    client: Client, topics: str = "^/tasks/", *, timeouts: ClientTimeouts = DEFAULT
) -> AsyncIterator[AsyncIterator[Envelope]]:
    """Every event of the client's namespace whose topic matches the regular expression, from the moment of entering.

    The iterator has no other end than the failure below.

    Raises:
        errors.Unavailable: containerd stops or does not answer; from entering and from the iterator
    """
    mark = f"/moorage/subscribed/{secrets.token_hex(8)}"
    filters = [f"namespace=={client.namespace},topic~=|{pattern}|" for pattern in (topics, f"^{mark}$")]
    async with client.raw_events(*filters) as envelopes:
        early: list[Envelope] = []
        try:
            with anyio.fail_after(timeouts.rpc):
                await _wait_for_mark(client, mark, envelopes, early)
        except TimeoutError as error:
            raise errors.Unavailable(
                f"containerd at {client.address} sent no events within {timeouts.rpc:g} s"
            ) from error
        yield _all(early, envelopes, mark)


async def _wait_for_mark(client: Client, mark: str, envelopes: AsyncIterator[Envelope], early: list[Envelope]) -> None:
    async def publish() -> None:
        while True:
            await client.publish(mark)
            await anyio.sleep(_MARK_INTERVAL)

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
    """The failure that is raised; the others of a lost connection have the same cause."""
    error = group.exceptions[0]
    return error if isinstance(error, errors.MoorageError) else _first(error)


async def _all(early: list[Envelope], envelopes: AsyncIterator[Envelope], mark: str) -> AsyncIterator[Envelope]:
    for envelope in early:
        yield envelope
    async for envelope in envelopes:
        if envelope.topic != mark:
            yield envelope

"""The subscription to containerd's events, renewed after each loss: subscribe, check, then listen."""

import logging
from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus

from moorage import errors
from moorage._lib.backoff import Backoff
from moorage.containerd.types import Envelope
from moorage.executor.protocols import ContainerClient
from moorage.timeouts import ExecutorTimeouts

__all__ = ("watch",)

log = logging.getLogger(__name__)


async def watch(
    client: ContainerClient,
    on_event: Callable[[Envelope], None],
    on_gap: Callable[[], None],
    timeouts: ExecutorTimeouts,
    *,
    task_status: TaskStatus[None],
) -> None:
    """Forward every event, and call ``on_gap`` after each subscription, because earlier events are not delivered.

    Both callbacks only queue work. A lost subscription is retried without end, with back-off and jitter, reset only by
    a subscription that lasted ``timeouts.steady``; one log line when it is lost and one when it is restored.

    Raises: the failure of the first subscription, before ``task_status`` is set.
    """
    is_subscribed = is_lost = False
    backoff = Backoff(timeouts.reconnect_first, timeouts.reconnect_limit, timeouts.steady, clock=anyio.current_time)
    while True:
        await anyio.sleep(backoff.next())
        try:
            async with client.events() as envelopes:
                backoff.worked()
                if is_lost:
                    log.info("containerd is available again")
                    is_lost = False
                on_gap()
                if not is_subscribed:
                    is_subscribed = True
                    task_status.started()
                async for envelope in envelopes:
                    on_event(envelope)
        except errors.MoorageError as error:
            if not is_subscribed:
                raise
            if not is_lost:
                log.warning("containerd is unavailable, waiting for it: %s", error)
                is_lost = True

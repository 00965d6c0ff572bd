"""Events from containerd to whoever they concern, for ever: subscribe, compare, then listen; after a loss, again."""

import logging
from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.containerd.types import Envelope
from moorage.executor.protocols import ContainerClient
from moorage.timeouts import Timeouts

__all__ = ("watch",)

log = logging.getLogger(__name__)


async def watch(
    client: ContainerClient,
    on_event: Callable[[Envelope], None],
    compare: Callable[[], None],
    timeouts: Timeouts,
    *,
    task_status: TaskStatus[None],
) -> None:
    """Pass every event on, and ask for a comparison after each beginning, since what happened before is not told.

    Both callbacks only queue work. A lost containerd is tried again for ever, with back-off and jitter; one log line
    when it is lost and one when it is back.

    Raises: the failure of the first subscription, before ``task_status`` is told.
    """
    begun = False
    tries = pauses(timeouts.reconnect_first, timeouts.reconnect_limit)
    lost = False
    while True:
        try:
            async with client.events() as envelopes:
                if lost:
                    log.info("containerd is back")
                    lost = False
                    tries = pauses(timeouts.reconnect_first, timeouts.reconnect_limit)
                compare()
                if not begun:
                    begun = True
                    task_status.started()
                async for envelope in envelopes:
                    on_event(envelope)
        except errors.MoorageError as error:
            if not begun:
                raise
            if not lost:
                log.warning("containerd is away, waiting for it: %s", error)
                lost = True
        await anyio.sleep(next(tries))

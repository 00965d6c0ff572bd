"""A call with a time-out on a plugin that may be busy: the time-out counts from the call, not from its turn."""

from collections.abc import Awaitable, Callable

import anyio

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage.engine.lifecycle import State
from moorage.engine.plugin import Plugin

__all__ = ("run_within",)

_BUSY = {
    State.STARTING: "an earlier call is starting it and waits for its socket",
    State.STOPPING: "it is being stopped",
    State.REMOVING: "it is being removed",
}
_AT_ONCE = 0.1  # seconds; whoever waited no longer than this has all of the time-out left


async def run_within(
    plugin: Plugin,
    within: float,
    verb: str,
    queue: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
    job: Callable[[float], Awaitable[None]],
) -> None:
    """Let ``queue`` run the job, which gets the seconds that are left of ``within``.

    Raises: Conflict where its turn does not come in time, and then it never does; Unavailable where what runs of the
    plugin is not known by then; what the job raises.
    """
    begun_at = anyio.current_time()
    has_begun = is_given_up = False

    async def run() -> None:
        nonlocal has_begun
        if is_given_up:
            return
        has_begun = True
        waited = anyio.current_time() - begun_at
        await job(within if waited < _AT_ONCE else round(max(within - waited, _AT_ONCE), 1))

    async def give_up(scope: anyio.CancelScope) -> None:
        nonlocal is_given_up
        await anyio.sleep(within)
        if not has_begun:
            is_given_up = True
            scope.cancel()

    with anyio.CancelScope() as scope:
        async with background_tasks() as tasks:
            tasks.start_soon(give_up, scope)
            await queue(run)
    if is_given_up:
        what = f"cannot {verb} plugin {plugin.name} within {within:g} s"
        if not plugin.known.is_set():
            raise errors.Unavailable(f"{what}: what runs of it is not known yet, because containerd does not answer")
        raise errors.Conflict(f"{what}: {_BUSY.get(plugin.state, 'an earlier call on it is not done')}")

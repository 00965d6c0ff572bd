"""Record and task of a new run, made where perhaps an earlier one has left something; undone later where not now."""

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct, field

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.executor import _machine as machine
from moorage.executor._task import Held, Removal
from moorage.executor.protocols import RUN_LABEL, ContainerClient
from moorage.timeouts import Timeouts

log = logging.getLogger(__name__)


class Making:
    """Makes records and tasks."""

    def __init__(self, client: ContainerClient, removal: Removal) -> None:
        self._client = client
        self._removal = removal

    async def record(self, id: str, create: Callable[[], Awaitable[None]]) -> None:
        """Make the record; where that fails, clear what an earlier run has left and try once more.

        Raises: the first failure where something lives under this id, else the second one. Source: row E02.
        """
        try:
            await create()
            return
        except errors.MoorageError as first:
            if not await self._clear_the_way(id):
                raise
            log.info("cleared what was left of %s, making it once more: %s", id, first)
        try:
            await create()
        except errors.MoorageError as second:
            raise type(second)(f"cannot create containerd container: {second}") from second

    async def _clear_the_way(self, id: str) -> bool:
        """Remove what is in the way of a new record; False where it lives and must not be touched."""
        try:
            status = await self._client.status(id)
        except errors.NotFound:
            status = None
        except errors.MoorageError as error:
            # Nothing is known of a task, so nothing is killed; what has none can still be cleared.
            log.warning("cannot read the status of %s, whose id is wanted: %s", id, error)
            await self._removal.forget(id)
            return True
        if not machine.may_replace(status) and await self._has_record(id):
            return False
        await self._removal.clean_up(id)
        return True

    async def _has_record(self, id: str) -> bool:
        """Whether anybody can reach the task of this id: one that runs without its record is a leftover."""
        try:
            await self._client.labels(id)
        except errors.NotFound:
            return False
        except errors.MoorageError:
            pass
        return True

    async def start(self, held: Held) -> int:
        """Start the task; what an earlier one left in the way is cleared, once; its pid. Source: rows E03, E04."""
        try:
            return await self._client.start(held.id, "", False, held.streams.attach)
        except errors.Conflict as error:
            if held.streams.is_attached:
                raise
            log.info("clearing what is left of an earlier task of %s: %s", held.id, error)
            # The record is ours and new, so whatever has a task under it is a leftover that nobody can reach.
            await self._client.delete_task(held.id)
        return await self._client.start(held.id, "", False, held.streams.attach)


class _Remains(Struct, eq=False):
    """What a create could not undo."""

    run_id: str
    has_record: bool
    """The record was made for certain; a task may hang on it."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)


class Sweeper:
    """Undoes later what could not be undone at once: containerd was away, or a process did not end.

    Nobody answers for such an id any more, so it is tried again for ever, and before the id is taken again.
    """

    def __init__(self, client: ContainerClient, removal: Removal, timeouts: Timeouts) -> None:
        self._client = client
        self._removal = removal
        self._timeouts = timeouts
        self._left: dict[str, _Remains] = {}

    def leave(self, id: str, run_id: str, tasks: TaskGroup, *, has_record: bool) -> None:
        """Take over an undo, in this task group."""
        remains = self._left[id] = _Remains(run_id, has_record)
        tasks.start_soon(self._sweep, id, remains)

    async def clear(self, id: str) -> None:
        """Finish what is left of this id, before it is used again. Raises: Unavailable where it cannot be done yet."""
        remains = self._left.get(id)
        if remains is not None and not await self._try(id, remains):
            raise errors.Unavailable(f"cannot take container {id}: what an earlier try left cannot be removed yet")

    async def _sweep(self, id: str, remains: _Remains) -> None:
        for pause in pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit):
            await anyio.sleep(pause)
            if await self._try(id, remains):
                return

    async def _try(self, id: str, remains: _Remains) -> bool:
        """Whether all is gone now. One try at a time, so that none meets the id's next run."""
        async with remains.lock:
            if self._left.get(id) is not remains:
                return True
            with anyio.CancelScope(shield=True):
                done = await self._remove(id, remains)
            if done:
                del self._left[id]
            return done

    async def _remove(self, id: str, remains: _Remains) -> bool:
        try:
            run_id = (await self._client.labels(id)).get(RUN_LABEL)
        except errors.NotFound:
            # Without its record a task can still be there; without ever one, nothing is.
            run_id = remains.run_id
            if not remains.has_record:
                return True
        except errors.MoorageError:
            return False
        if run_id != remains.run_id and (run_id or not remains.has_record):
            return True  # the id is somebody else's by now
        return await self._removal.clean_up(id, logging.DEBUG)

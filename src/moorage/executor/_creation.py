"""Creates the record and task of a run, removing leftovers of earlier runs; retries failed removals."""

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct, field

from moorage import errors
from moorage._lib.backoff import pauses
from moorage.executor import _machine as machine
from moorage.executor._container import OwnedContainer, Removal
from moorage.executor.protocols import RUN_LABEL, ContainerClient
from moorage.timeouts import ExecutorTimeouts

log = logging.getLogger(__name__)


class Creator:
    """Creates container records and tasks."""

    def __init__(self, client: ContainerClient, removal: Removal) -> None:
        self._client = client
        self._removal = removal

    async def record(self, id: str, create: Callable[[], Awaitable[None]]) -> None:
        """Create the record; if that fails, remove leftovers of an earlier run and retry once.

        Raises: the first failure if a task is running under this id, else the second one. Source: row E02.
        """
        try:
            await create()
            return
        except errors.MoorageError as first:
            if not await self._remove_leftovers(id):
                raise
            log.info("removed leftovers of %s, creating it again: %s", id, first)
        try:
            await create()
        except errors.MoorageError as second:
            raise type(second)(f"cannot create containerd container: {second}") from second

    async def _remove_leftovers(self, id: str) -> bool:
        """Remove leftovers that block a new record; False if a task is running, which is not touched."""
        try:
            status = await self._client.status(id)
        except errors.NotFound:
            status = None
        except errors.MoorageError as error:
            # The state of the task is unknown, so nothing is killed; a record without a task can still be deleted.
            log.warning("cannot read the status of %s, whose id is requested: %s", id, error)
            await self._removal.delete_record(id)
            return True
        if not machine.is_replaceable(status) and await self._has_record(id):
            return False
        await self._removal.remove(id)
        return True

    async def _has_record(self, id: str) -> bool:
        """Whether the id has a record: a task without one cannot be reached and is a leftover."""
        try:
            await self._client.labels(id)
        except errors.NotFound:
            return False
        except errors.MoorageError:
            pass
        return True

    async def start(self, container: OwnedContainer) -> int:
        """Create the task, start it and return its pid; a leftover task is deleted, once. Source: rows E03, E04."""
        return await self._with_task(
            container, lambda: self._client.start(container.id, "", False, container.streams.attach)
        )

    async def prepare(self, container: OwnedContainer) -> int:
        """As ``start``, but the task is only created."""
        return await self._with_task(container, lambda: self._client.prepare(container.id, container.streams.attach))

    async def _with_task(self, container: OwnedContainer, make: Callable[[], Awaitable[int]]) -> int:
        try:
            return await make()
        except errors.Conflict as error:
            if container.streams.is_attached:
                raise
            log.info("deleting a leftover task of %s: %s", container.id, error)
            # The record is new, so a task under it is a leftover that no other process can reach.
            await self._client.delete_task(container.id)
        return await make()


class _Leftover(Struct, eq=False):
    """What a failed create could not remove."""

    run_id: str
    has_record: bool
    """The record certainly exists; it may have a task."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)


class Sweeper:
    """Retries removals that failed: containerd was unavailable, or a process did not exit.

    Such an id has no owner any more, so the removal is retried until it succeeds, and before the id is used again.
    """

    def __init__(self, client: ContainerClient, removal: Removal, timeouts: ExecutorTimeouts) -> None:
        self._client = client
        self._removal = removal
        self._timeouts = timeouts
        self._leftovers: dict[str, _Leftover] = {}

    def add(self, id: str, run_id: str, tasks: TaskGroup, *, has_record: bool) -> None:
        """Retry a removal in this task group."""
        leftover = self._leftovers[id] = _Leftover(run_id, has_record)
        tasks.start_soon(self._sweep, id, leftover)

    async def clear(self, id: str) -> None:
        """Remove the leftovers of this id before it is used again. Raises: Unavailable if that is not possible yet."""
        leftover = self._leftovers.get(id)
        if leftover is not None and not await self._try(id, leftover):
            raise errors.Unavailable(f"cannot use container {id}: its leftovers cannot be removed yet")

    async def _sweep(self, id: str, leftover: _Leftover) -> None:
        for pause in pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit):
            await anyio.sleep(pause)
            if await self._try(id, leftover):
                return

    async def _try(self, id: str, leftover: _Leftover) -> bool:
        """Whether everything is removed now. One attempt at a time, so that none meets the id's next run."""
        async with leftover.lock:
            if self._leftovers.get(id) is not leftover:
                return True
            with anyio.CancelScope(shield=True):
                done = await self._remove(id, leftover)
            if done:
                del self._leftovers[id]
            return done

    async def _remove(self, id: str, leftover: _Leftover) -> bool:
        try:
            run_id = (await self._client.labels(id)).get(RUN_LABEL)
        except errors.NotFound:
            # A task may exist without its record; if there never was a record, there is no task.
            run_id = leftover.run_id
            if not leftover.has_record:
                return True
        except errors.MoorageError:
            return False
        if run_id != leftover.run_id and (run_id or not leftover.has_record):
            return True  # the id has another owner by now
        return await self._removal.remove(id, logging.DEBUG)

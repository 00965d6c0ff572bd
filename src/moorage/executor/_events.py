"""The events of the containers of one executor: each id's are handled in order, in an inbox of its own."""

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from moorage import errors
from moorage._lib.inbox import Inboxes
from moorage.executor import _machine as machine
from moorage.executor._container import LastExits, OwnedContainer, Removal
from moorage.executor._creation import Sweeper
from moorage.executor.protocols import ContainerClient, ExitHandler
from moorage.timeouts import ExecutorTimeouts

log = logging.getLogger(__name__)


class ContainerEvents:
    """The containers that an executor owns, and what follows from what is reported of them."""

    def __init__(
        self,
        client: ContainerClient,
        exit_handler: ExitHandler,
        timeouts: ExecutorTimeouts,
        wait_for_exit: Callable[[int], Awaitable[None]],
    ) -> None:
        """``wait_for_exit`` returns when a pid has exited; ``timeouts`` bounds calls."""
        self._client = client
        self._handler = exit_handler
        self._timeouts = timeouts
        self._wait_for_exit = wait_for_exit
        self._removal = Removal(client, timeouts)
        self._sweeper = Sweeper(client, self._removal, timeouts)
        self._containers: dict[str, OwnedContainer] = {}
        self._last_exits = LastExits()
        self._tasks: TaskGroup
        self._inboxes: Inboxes[str]

    async def _unregister(self, container: OwnedContainer) -> None:
        """Undo ``_register`` for a run that was not started."""
        container.run, _ = machine.step(container.run, machine.StartFailed())
        if self._containers.get(container.id) is container:
            self._release(container)
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            await container.streams.close()

    async def _undo_create(self, container: OwnedContainer) -> None:
        if not await self._removal.remove(container.id):
            self._sweeper.add(container.id, container.run_id, self._tasks, has_record=True)

    async def _remove_prepared(self, container: OwnedContainer) -> None:
        """Remove a prepared container, which is not started any more, whatever its process does."""
        container.pid_watch.cancel()
        try:
            await self._undo_create(container)
        finally:
            await self._unregister(container)

    async def _watch_pid(self, container: OwnedContainer, pid: int) -> None:
        with container.pid_watch:
            try:
                await self._wait_for_exit(pid)
            except OSError as error:
                log.warning("cannot watch process %d of %s; its exit is noticed later: %s", pid, container.id, error)
                return
            self._queue(container, machine.ProcessExited())

    def _check(self, container: OwnedContainer) -> None:
        """Queue a check unless one is queued: a hung shim must not accumulate them."""
        if not container.is_check_queued:
            container.is_check_queued = True
            self._queue(container, machine.CheckRequested())

    # events of a run

    def _queue(self, container: OwnedContainer, event: machine.RunEvent) -> None:
        async def handle() -> None:
            try:
                await self._process(container, event)
            except Exception:
                log.exception("handling %s of %s failed", type(event).__name__, container.id)

        self._inboxes.put(container.id, handle)

    async def _process(self, container: OwnedContainer, event: machine.RunEvent | None) -> None:
        """Run the state machine until no action remains. Called by the id's inbox only, one event at a time."""
        if isinstance(event, machine.CheckRequested):
            container.is_check_queued = False
        while event is not None:
            container.run, do = machine.step(container.run, event)
            event = await self._do(container, do)

    async def _do(self, container: OwnedContainer, do: machine.Action) -> machine.RunEvent | None:
        match do:
            case machine.Action.NOTHING:
                return None
            case machine.Action.QUERY:
                return await self._query(container.id)
            case machine.Action.REMOVE:
                return await self._removal.remove_exited(container)
            case machine.Action.QUERY_LATER | machine.Action.REMOVE_LATER:
                self._check_later(container)
                return None
            case machine.Action.FIND_EXIT:
                return await self._removal.find_exit(container)
            case machine.Action.DELIVER:
                return await self._deliver(container)
            case machine.Action.DISCARD:
                log.info("the process of %s, which was not started, has exited; it is discarded", container.id)
                await self._remove_prepared(container)
                return None
            case machine.Action.RELEASE:
                self._release(container)
                return None

    async def _query(self, id: str) -> machine.RunEvent:
        try:
            return machine.StatusKnown(await self._client.status(id))
        except errors.NotFound:
            return machine.StatusKnown(None)
        except errors.MoorageError as error:
            log.debug("cannot query the status of %s: %s", id, error)
            return machine.StatusUnavailable()

    def _check_later(self, container: OwnedContainer) -> None:
        async def check() -> None:
            await anyio.sleep(next(container.retry_pauses))
            container.is_check_scheduled = False
            self._check(container)

        if not container.is_check_scheduled:
            container.is_check_scheduled = True
            self._tasks.start_soon(check)

    async def _deliver(self, container: OwnedContainer) -> machine.RunEvent | None:
        container.pid_watch.cancel()
        exit = container.exit()
        self._last_exits.add(exit)
        is_removed = container.run.phase is machine.Phase.REMOVED
        if is_removed:
            self._release(container)
        try:
            await self._handler.handle_exit_event(container.id, exit)
        except Exception:
            if not is_removed:
                self._check_later(container)  # what it raises is the caller's, and the removal has to follow
            raise
        return None if is_removed else machine.Delivered()

    def _release(self, container: OwnedContainer) -> None:
        del self._containers[container.id]
        container.released.set()

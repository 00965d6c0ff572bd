"""One container per id: created, restored, signalled, watched, and its exit delivered exactly once."""

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import anyio
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.inbox import Inboxes
from moorage.containerd.types import Envelope, Event, Mount, RuntimeOptions, Spec, Status, TaskExit, TaskOOM
from moorage.executor import _machine as machine
from moorage.executor._container import LastExits, OwnedContainer, Removal
from moorage.executor._creation import Creator, Sweeper
from moorage.executor._io_owner import io_owner
from moorage.executor._operations import Operations
from moorage.executor._streams import DiscardSink, SinkCopies, Streams
from moorage.executor.protocols import (
    INIT_PROCESS_NAME,
    RUN_LABEL,
    Attach,
    ByteSink,
    ContainerClient,
    Exit,
    ExitHandler,
)
from moorage.executor.watch import watch
from moorage.timeouts import ExecutorTimeouts

__all__ = ("Executor",)

log = logging.getLogger(__name__)

_SIGNALS = range(65)  # 0 only tests whether the process exists


class Executor:
    """Containers of ``client``'s namespace. ``open_executor`` makes one; exits go to ``exit_handler``.

    Every method may be called from any task of the loop. Errors are raised by kind, MoorageError for the runtime's own.
    ``runtime`` runs all containers; ``timeouts`` bounds calls; ``wait_for_exit`` returns when a pid has exited;
    ``exits_early`` is as for ``open_executor``.
    """

    def __init__(
        self,
        client: ContainerClient,
        exit_handler: ExitHandler,
        runtime: RuntimeOptions,
        timeouts: ExecutorTimeouts,
        wait_for_exit: Callable[[int], Awaitable[None]],
        exits_early: bool = False,
    ) -> None:
        self._client = client
        self._handler = exit_handler
        self._runtime = runtime
        self._timeouts = timeouts
        self._wait_for_exit = wait_for_exit
        self._exits_early = exits_early
        self._removal = Removal(client, timeouts)
        self._creator = Creator(client, self._removal)
        self._sweeper = Sweeper(client, self._removal, timeouts)
        self._operations = Operations()
        self._containers: dict[str, OwnedContainer] = {}
        self._last_exits = LastExits()
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        self._tasks: TaskGroup
        self._inboxes: Inboxes[str]

    async def create(
        self,
        id: str,
        spec: Spec,
        stdout: ByteSink | None = None,
        stderr: ByteSink | None = None,
        *,
        rootfs: Sequence[Mount] = (),
        attach: Attach | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create and start a container. On failure or cancellation everything of it is removed.

        The output goes to byte sinks (without one it is discarded) or to ``attach``; sinks are closed once. If given,
        the ``rootfs`` mounts make the root; otherwise ``spec["root"]["path"]`` is used unchanged.

        Raises: Conflict if the id is owned by this executor, or its task is running.
        Raises: the kind of the first failure; the text names its cause.
        Source: rows E01 to E14 of docs/reference/executor.md.
        """
        with self._operations.track(id):
            container = await self._register(id, secrets.token_hex(8), stdout, stderr, attach)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._unregister, container)
                self._last_exits.forget(id)
                uid, gid = io_owner(spec)
                options = replace(self._runtime, io_uid=uid, io_gid=gid)
                all_labels = {**(labels or {}), RUN_LABEL: container.run_id}
                await self._sweeper.clear(id)
                await self._make_record(
                    container, lambda: self._client.create(id, spec, options, rootfs=rootfs, labels=all_labels)
                )
                undo.push_async_callback(self._undo_create, container)
                pid = await self._creator.start(container)
                undo.pop_all()
            self._track(container, pid)

    async def restore(
        self,
        id: str,
        stdout: ByteSink | None = None,
        stderr: ByteSink | None = None,
        *,
        attach: Attach | None = None,
    ) -> bool:
        """Take over a container that an earlier process started; returns whether it is running.

        A container that is not running, in whatever state, is removed; the handler is not called, and its exit, if it
        was ever started, is returned by ``last_exit``.

        Raises: Conflict if this executor owns the id, or the container was not created by an executor.
        Raises: the kind of any other failure; the container stays unchanged and the sinks are closed.
        Source: rows E20 to E24.
        """
        with self._operations.track(id):
            container = await self._register(id, "", stdout, stderr, attach)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._unregister, container)
                await self._sweeper.clear(id)
                container.run_id = await self._read_run_id(id)
                try:
                    alive, pid = await self._client.restore(id, container.streams.attach)
                except errors.NotFound:
                    alive, pid = False, None
                if alive:
                    undo.pop_all()
                    self._track(container, pid)
                    return True
                try:
                    await self._removal.remove_dead(container)
                finally:
                    if container.exit_found is not None:
                        self._last_exits.add(container.exit_found)
        return False

    async def is_running(self, id: str) -> bool:
        """Whether containerd reports the task as running. Raises: NotFound for an unknown id."""
        return await self._client.status(id) is Status.RUNNING

    async def signal(self, id: str, signal: int) -> None:
        """Send a signal to the container's first process.

        Raises: NotFound if it has exited.
        Raises: Invalid for an invalid signal number.
        """
        if signal not in _SIGNALS:
            raise errors.Invalid(f"cannot signal container {id}: {signal} is not a signal (0 to {_SIGNALS[-1]})")
        await self._client.signal_process(id, INIT_PROCESS_NAME, int(signal))

    async def process_event(self, id: str, event: Event) -> None:
        """Process an event of this id, as the executor does with each event; only exits of init of a container matter.

        Returns when the event is processed, the exit handler included; an unconfirmed exit is queried again later.
        Raises: what the exit handler raises; Conflict where the executor is closed before.
        """
        container = self._containers.get(id)
        if container is not None and isinstance(event, TaskExit):
            seen = machine.ExitReported(event.process_id, event.pid, event.code, event.exited_at)
            await self._inboxes.run(id, lambda: self._process(container, seen))

    def pid(self, id: str) -> int | None:
        """The pid of init of a container that this executor owns; None for others, and if it is unknown."""
        return self._containers[id].pid if id in self._containers else None

    def owns(self, id: str) -> bool:
        """Whether this executor owns the id: from ``create`` or ``restore`` until everything of the run is removed."""
        return id in self._containers

    async def wait_removed(self, id: str) -> None:
        """Return when this executor does not own the id, at once if it does not; after ``aclose`` too."""
        if id in self._containers:
            await self._containers[id].released.wait()

    def last_exit(self, id: str) -> Exit | None:
        """The exit of the last run of this id, until it is created again; None if unknown.

        Only the last few thousand ids are remembered.
        """
        return self._last_exits.find(id)

    async def aclose(self) -> None:
        """Release all streams, watches and sinks. Running tasks continue. May be repeated."""
        self._closing.set()
        await self._closed.wait()

    # opening and closing

    async def _serve(self, *, task_status: TaskStatus[errors.MoorageError | None]) -> None:
        """Run the tasks of this executor until ``aclose``; starts with the failure of the first subscription."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._inboxes = Inboxes(self._tasks)
                try:
                    await self._tasks.start(self._watch)
                except errors.MoorageError as error:
                    task_status.started(error)
                    return
                self._tasks.start_soon(self._check_periodically)
                task_status.started(None)
                try:
                    await self._closing.wait()
                finally:
                    self._closing.set()  # where it was cancelled: an operation that begins now has no group to run in
                    # Even if the surrounding scope is cancelled: clean-up still needs this group and the client.
                    with anyio.CancelScope(shield=True):
                        await self._operations.cancel_all()
                self._tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                for container in self._containers.values():
                    await container.streams.close()
                    container.released.set()
            self._containers.clear()
            self._closed.set()

    async def _watch(self, *, task_status: TaskStatus[None]) -> None:
        await watch(self._client, self._on_event, self._check_all, self._timeouts, task_status=task_status)

    def _on_event(self, envelope: Envelope) -> None:
        event = envelope.event
        if isinstance(event, TaskOOM) and event.container_id in self._containers:
            self._containers[event.container_id].oom = True
        if isinstance(event, TaskExit) and event.container_id in self._containers:
            self._tasks.start_soon(self._process_and_log, event)  # a slow handler of one id must delay no other

    async def _process_and_log(self, event: TaskExit) -> None:
        try:
            await self.process_event(event.container_id, event)
        except Exception:
            log.exception("handling the exit of %s failed", event.container_id)

    def _check_all(self) -> None:
        for container in self._containers.values():
            self._check(container)

    def _check(self, container: OwnedContainer) -> None:
        """Queue a check unless one is queued: a hung shim must not accumulate them."""
        if not container.is_check_queued:
            container.is_check_queued = True
            self._queue(container, machine.CheckRequested())

    async def _check_periodically(self) -> None:
        while True:
            await anyio.sleep(self._timeouts.reconcile)
            self._check_all()

    # ownership

    async def _register(
        self, id: str, run_id: str, stdout: ByteSink | None, stderr: ByteSink | None, attach: Attach | None
    ) -> OwnedContainer:
        """Register the id before anything else: an immediate exit must find its owner."""
        if attach is None:
            attach = SinkCopies(id, stdout or DiscardSink(), stderr or DiscardSink(), self._tasks, self._timeouts)
        streams = Streams(id, attach)
        if self._closing.is_set() or id in self._containers:
            await streams.close()
            reason = "the executor is closed" if self._closing.is_set() else "it is already in use"
            raise errors.Conflict(f"cannot use container {id}: {reason}")
        again = pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit)
        run = machine.RunState(id, early=self._exits_early)
        container = self._containers[id] = OwnedContainer(id, run_id, run, streams, again)
        return container

    async def _unregister(self, container: OwnedContainer) -> None:
        """Undo ``_register`` for a run that was not started."""
        container.run, _ = machine.step(container.run, machine.StartFailed())
        if self._containers.get(container.id) is container:
            self._release(container)
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            await container.streams.close()

    async def _make_record(self, container: OwnedContainer, create: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._creator.record(container.id, create)
        except BaseException as error:
            # Without an answer, the record may exist nevertheless.
            if isinstance(error, errors.Unavailable) or not isinstance(error, errors.MoorageError):
                self._sweeper.add(container.id, container.run_id, self._tasks, has_record=False)
            raise

    async def _undo_create(self, container: OwnedContainer) -> None:
        if not await self._removal.remove(container.id):
            self._sweeper.add(container.id, container.run_id, self._tasks, has_record=True)

    def _track(self, container: OwnedContainer, pid: int | None) -> None:
        container.pid = pid
        self._queue(container, machine.Started(pid))
        if pid is not None:
            self._tasks.start_soon(self._watch_pid, container, pid)

    async def _watch_pid(self, container: OwnedContainer, pid: int) -> None:
        with container.pid_watch:
            try:
                await self._wait_for_exit(pid)
            except OSError as error:
                log.warning("cannot watch process %d of %s; its exit is noticed later: %s", pid, container.id, error)
                return
            self._queue(container, machine.ProcessExited())

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

    async def _read_run_id(self, id: str) -> str:
        """The run id of a record, empty without a record. Raises: Conflict for a record that no executor created."""
        try:
            labels = await self._client.labels(id)
        except errors.NotFound:
            return ""
        if RUN_LABEL not in labels:
            raise errors.Conflict(f"cannot restore container {id}: it was not created by Moorage")
        return labels[RUN_LABEL]

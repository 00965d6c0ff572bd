"""One container per id: created, restored, signalled, watched, and its exit delivered exactly once."""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from anyio.abc import TaskStatus
from msgspec.structs import replace

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.inbox import Inboxes
from moorage.containerd.types import Envelope, Event, Mount, RuntimeOptions, Spec, Status, TaskExit, TaskOOM
from moorage.executor import _machine as machine
from moorage.executor._container import OwnedContainer
from moorage.executor._creation import Creator
from moorage.executor._events import ContainerEvents
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


class Executor(ContainerEvents):
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
        super().__init__(client, exit_handler, timeouts, wait_for_exit)
        self._runtime = runtime
        self._exits_early = exits_early
        self._creator = Creator(client, self._removal)
        self._operations = Operations()
        self._closing = anyio.Event()
        self._closed = anyio.Event()

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
            async with self._new_record(id, spec, (stdout, stderr, attach), rootfs, labels) as container:
                pid = await self._creator.start(container)
            self._track(container, pid)

    async def prepare(
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
        """As ``create``, but nothing of the container's program runs before ``start``; or ``discard`` removes all.

        The process that is to become the program exists, and uses memory. If it exits before, everything is removed and
        the id released, without a call of the exit handler. ``restore`` by the next process removes the container.

        Raises: as ``create``. Source: rows E15 to E19.
        """
        with self._operations.track(id):
            async with self._new_record(id, spec, (stdout, stderr, attach), rootfs, labels) as container:
                container.pid = pid = await self._creator.prepare(container)
                container.run, do = machine.step(container.run, machine.Prepared(pid))
            self._tasks.start_soon(self._watch_pid, container, pid)
            if do is not machine.Action.NOTHING:
                self._check(container)

    async def start(self, id: str) -> None:
        """Start a prepared container; from now on it is as one that was created. On failure all of it is removed.

        Raises: NotFound if it is not prepared, or not any more: its process has exited.
        Raises: the kind of the failure.
        """
        container = self._find_prepared(id)
        if container is None:
            await self._wait_discarded(id)
            raise errors.NotFound(f"cannot start container {id}: it is not prepared")
        with self._operations.track(id):
            container.run, _ = machine.step(container.run, machine.StartRequested())
            try:
                pid = await self._client.start_prepared(id)
            except BaseException:
                await self._remove_prepared(container)
                raise
            self._queue(container, machine.Started(pid))

    async def discard(self, id: str) -> None:
        """Remove a container that is prepared and not started. Without one, nothing happens. May be repeated.

        Raises: Unavailable if not all of it can be removed now. The rest is removed in the background then.
        """
        container = self._find_prepared(id)
        if container is not None:
            with self._operations.track(id):
                container.run, _ = machine.step(container.run, machine.StartFailed())
                await self._remove_prepared(container)
        await self._wait_discarded(id)
        await self._sweeper.clear(id)

    def is_prepared(self, id: str) -> bool:
        """Whether ``start`` would start this id, as far as is known."""
        return self._find_prepared(id) is not None

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

    async def _check_periodically(self) -> None:
        while True:
            await anyio.sleep(self._timeouts.reconcile)
            self._check_all()

    # ownership

    @asynccontextmanager
    async def _new_record(
        self,
        id: str,
        spec: Spec,
        streams: tuple[ByteSink | None, ByteSink | None, Attach | None],
        rootfs: Sequence[Mount],
        labels: Mapping[str, str] | None,
    ) -> AsyncIterator[OwnedContainer]:
        """Register the id and make its record; if the block fails, everything is removed."""
        container = await self._register(id, secrets.token_hex(8), *streams)
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
            yield container
            undo.pop_all()

    def _find_prepared(self, id: str) -> OwnedContainer | None:
        container = self._containers.get(id)
        return container if container is not None and container.run.phase is machine.Phase.PREPARED else None

    async def _wait_discarded(self, id: str) -> None:
        """Return when a container is removed that was prepared, and whose process has exited."""
        if id in self._containers and self._containers[id].run.phase is machine.Phase.REMOVED:
            await self.wait_removed(id)

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

    async def _make_record(self, container: OwnedContainer, create: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._creator.record(container.id, create)
        except BaseException as error:
            # Without an answer, the record may exist nevertheless.
            if isinstance(error, errors.Unavailable) or not isinstance(error, errors.MoorageError):
                self._sweeper.add(container.id, container.run_id, self._tasks, has_record=False)
            raise

    def _track(self, container: OwnedContainer, pid: int | None) -> None:
        container.pid = pid
        self._queue(container, machine.Started(pid))
        if pid is not None:
            self._tasks.start_soon(self._watch_pid, container, pid)

    async def _read_run_id(self, id: str) -> str:
        """The run id of a record, empty without a record. Raises: Conflict for a record that no executor created."""
        try:
            labels = await self._client.labels(id)
        except errors.NotFound:
            return ""
        if RUN_LABEL not in labels:
            raise errors.Conflict(f"cannot restore container {id}: it was not created by Moorage")
        return labels[RUN_LABEL]

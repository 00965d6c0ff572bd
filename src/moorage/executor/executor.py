"""One container per id, owned for certain: started, watched, signalled, found again, and its end told exactly once."""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.groups import background_tasks
from moorage._lib.inbox import Inboxes
from moorage._lib.pidfd import wait_for_end
from moorage.containerd.types import Envelope, Event, Mount, RuntimeOptions, Spec, Status, TaskExit
from moorage.executor import _machine as machine
from moorage.executor._io_owner import io_owner
from moorage.executor._machine import Do, Happening
from moorage.executor._making import Making, Sweeper
from moorage.executor._operations import Operations
from moorage.executor._streams import Copies, Streams
from moorage.executor._task import Held, LastExits, Removal
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
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("Executor", "open_executor")

log = logging.getLogger(__name__)

_SIGNALS = range(65)  # 0 only asks whether the process is there


class Executor:
    """Containers in one containerd namespace. ``open_executor`` makes one.

    Every method may be called from any task of the loop. Failures come by kind: Conflict (the id is held, or taken),
    NotFound, Invalid, Unavailable (containerd is away), MoorageError (the runtime refused, in its words).
    """

    def __init__(
        self,
        client: ContainerClient,
        exit_handler: ExitHandler,
        runtime: RuntimeOptions,
        timeouts: Timeouts,
        process_end: Callable[[int], Awaitable[None]],
    ) -> None:
        self._client = client
        self._handler = exit_handler
        self._runtime = runtime
        self._timeouts = timeouts
        self._process_end = process_end
        self._removal = Removal(client, timeouts)
        self._making = Making(client, self._removal)
        self._sweeper = Sweeper(client, self._removal, timeouts)
        self._operations = Operations()
        self._held: dict[str, Held] = {}
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
        """Start a container: record, task with its output, process. On failure or cancellation nothing of it is left.

        The output goes to two byte sinks or to ``attach``; sinks are closed once, also when this fails. ``rootfs``
        mounts make the root, where given; otherwise ``spec["root"]["path"]`` is used as it is.

        Raises: Conflict where the id is held by this executor or runs; the first failure, in words that name the cause.
        Source: rows E01 to E14 of docs/reference/executor.md.
        """
        with self._operations.one(id):
            held = await self._hold(id, secrets.token_hex(8), stdout, stderr, attach)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._let_go, held)
                self._last_exits.forget(id)
                uid, gid = io_owner(spec)
                options = replace(self._runtime, io_uid=uid, io_gid=gid)
                all_labels = {**(labels or {}), RUN_LABEL: held.run_id}
                await self._sweeper.clear(id)
                await self._make_record(
                    held, lambda: self._client.create(id, spec, options, rootfs=rootfs, labels=all_labels)
                )
                undo.push_async_callback(self._undo_create, held)
                pid = await self._making.start(held)
                undo.pop_all()
            self._begin(held, pid)

    async def restore(
        self,
        id: str,
        stdout: ByteSink | None = None,
        stderr: ByteSink | None = None,
        *,
        attach: Attach | None = None,
    ) -> bool:
        """Take over a container that an earlier process started; whether it lives.

        One that does not, in whatever state, is removed as a whole; no handler is called, and how it ended, if it ever
        ran, is in ``last_exit``.

        Raises: Conflict where this executor holds the id, or the container was not made by one; every other failure,
        in which case the container is left as it is and the sinks are closed.
        Source: rows E20 to E24.
        """
        with self._operations.one(id):
            held = await self._hold(id, "", stdout, stderr, attach)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._let_go, held)
                await self._sweeper.clear(id)
                held.run_id = await self._run_of(id)
                try:
                    alive, pid = await self._client.restore(id, held.streams.attach)
                except errors.NotFound:
                    alive, pid = False, None
                if alive:
                    undo.pop_all()
                    self._begin(held, pid)
                    return True
                try:
                    await self._removal.bury(held)
                finally:
                    if held.found is not None:
                        self._last_exits.remember(held.found)
        return False

    async def is_running(self, id: str) -> bool:
        """Whether containerd says that the task runs. Raises: NotFound for an unknown id."""
        return await self._client.status(id) is Status.RUNNING

    async def signal(self, id: str, signal: int) -> None:
        """Send a signal to the container's first process.

        Raises: NotFound for one that is gone, which whoever wanted it stopped takes for done; Invalid for a number
        that is no signal.
        """
        if signal not in _SIGNALS:
            raise errors.Invalid(f"cannot signal container {id}: {signal} is no signal (0 to {_SIGNALS[-1]})")
        await self._client.signal_process(id, INIT_PROCESS_NAME, int(signal))

    async def process_event(self, id: str, event: Event) -> None:
        """Take an event of this id into account; only exits of a held container's first process count.

        Returns when what follows is done, the exit handler included; what is not confirmed yet is asked for later.
        Raises: what the exit handler raises.
        """
        held = self._held.get(id)
        if held is not None and isinstance(event, TaskExit):
            seen = machine.ExitSeen(event.process_id, event.pid, event.code, event.exited_at)
            await self._inboxes.run(id, lambda: self._feed(held, seen))

    def pid(self, id: str) -> int | None:
        """The first process of a container that this executor holds; None for others, and where nobody could tell."""
        held = self._held.get(id)
        return held.pid if held is not None else None

    def last_exit(self, id: str) -> Exit | None:
        """How the last run of this id ended, until the next ``create`` of it; None where nothing is known.

        Of ids that are never used again only the newest few thousand are kept.
        """
        return self._last_exits.find(id)

    async def aclose(self) -> None:
        """Let go of everything: streams, watching, sinks. Running tasks stay as they are. May be repeated."""
        self._closing.set()
        await self._closed.wait()

    # opening and closing

    async def _serve(self, *, task_status: TaskStatus[errors.MoorageError | None]) -> None:
        """Hold the tasks of this executor until ``aclose``. Tells its starter the failure of the first subscription."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._inboxes = Inboxes(self._tasks)
                try:
                    await self._tasks.start(self._watch)
                except errors.MoorageError as error:
                    task_status.started(error)
                    return
                self._tasks.start_soon(self._compare_now_and_then)
                task_status.started(None)
                try:
                    await self._closing.wait()
                finally:
                    # Also where all around us is cancelled: an undo still needs this group and the client.
                    with anyio.CancelScope(shield=True):
                        await self._operations.end()
                self._tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                for held in self._held.values():
                    await held.streams.close()
            self._held.clear()
            self._closed.set()

    async def _watch(self, *, task_status: TaskStatus[None]) -> None:
        await watch(self._client, self._on_event, self._compare, self._timeouts, task_status=task_status)

    def _on_event(self, envelope: Envelope) -> None:
        if isinstance(envelope.event, TaskExit):
            id, event = envelope.event.container_id, envelope.event
            held = self._held.get(id)
            if held is not None:
                self._queue(held, machine.ExitSeen(event.process_id, event.pid, event.code, event.exited_at))

    def _compare(self) -> None:
        for held in self._held.values():
            self._look(held)

    def _look(self, held: Held) -> None:
        """Ask for a comparison, unless one is waiting: a shim that hangs must not pile them up."""
        if not held.look_queued:
            held.look_queued = True
            self._queue(held, machine.Look())

    async def _compare_now_and_then(self) -> None:
        while True:
            await anyio.sleep(self._timeouts.reconcile)
            self._compare()

    # holding

    async def _hold(
        self, id: str, run_id: str, stdout: ByteSink | None, stderr: ByteSink | None, attach: Attach | None
    ) -> Held:
        """Register the id, before anything is done for it: an instant exit must find its owner."""
        if attach is None:
            if stdout is None or stderr is None:
                raise errors.Invalid(f"cannot take container {id}: its output needs two sinks, or attach")
            attach = Copies(id, stdout, stderr, self._tasks, self._timeouts)
        streams = Streams(id, attach)
        if self._closing.is_set() or id in self._held:
            await streams.close()
            why = "the executor is closed" if self._closing.is_set() else "it is held already"
            raise errors.Conflict(f"cannot take container {id}: {why}")
        again = pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit)
        held = self._held[id] = Held(id, run_id, machine.Run(id), streams, again)
        return held

    async def _let_go(self, held: Held) -> None:
        """Undo of ``_hold``, for a run that never began."""
        held.run, _ = machine.step(held.run, machine.GaveUp())
        if self._held.get(held.id) is held:
            del self._held[held.id]
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            await held.streams.close()

    async def _make_record(self, held: Held, create: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._making.record(held.id, create)
        except BaseException as error:
            # Where an answer was not waited for, or never came, the record may be there all the same.
            if isinstance(error, errors.Unavailable) or not isinstance(error, errors.MoorageError):
                self._sweeper.leave(held.id, held.run_id, self._tasks, has_record=False)
            raise

    async def _undo_create(self, held: Held) -> None:
        if not await self._removal.clean_up(held.id):
            self._sweeper.leave(held.id, held.run_id, self._tasks, has_record=True)

    def _begin(self, held: Held, pid: int | None) -> None:
        held.pid = pid
        self._queue(held, machine.Started(pid))
        if pid is not None:
            self._tasks.start_soon(self._watch_pid, held, pid)

    async def _watch_pid(self, held: Held, pid: int) -> None:
        with held.watching:
            try:
                await self._process_end(pid)
            except OSError as error:
                log.warning("cannot watch process %d of %s, its exit will be known later: %s", pid, held.id, error)
                return
            self._queue(held, machine.Died())

    # what happens to a run

    def _queue(self, held: Held, happening: Happening) -> None:
        async def handle() -> None:
            try:
                await self._feed(held, happening)
            except Exception:
                log.exception("handling %s of %s failed", type(happening).__name__, held.id)

        self._inboxes.put(held.id, handle)

    async def _feed(self, held: Held, happening: Happening | None) -> None:
        """Run the machine until it has nothing more to do. Only the id's inbox calls this, one at a time."""
        if isinstance(happening, machine.Look):
            held.look_queued = False
        while happening is not None:
            held.run, do = machine.step(held.run, happening)
            happening = await self._do(held, do)

    async def _do(self, held: Held, do: Do) -> Happening | None:
        match do:
            case Do.NOTHING:
                return None
            case Do.ASK:
                return await self._ask(held.id)
            case Do.FINISH:
                return await self._removal.finish(held)
            case Do.ASK_LATER | Do.FINISH_LATER:
                self._look_later(held)
                return None
            case Do.DELIVER:
                await self._deliver(held)
                return None

    async def _ask(self, id: str) -> Happening:
        try:
            return machine.Answered(await self._client.status(id))
        except errors.NotFound:
            return machine.Answered(None)
        except errors.MoorageError as error:
            log.debug("cannot ask for the status of %s: %s", id, error)
            return machine.Unanswered()

    def _look_later(self, held: Held) -> None:
        async def look() -> None:
            await anyio.sleep(next(held.again))
            held.look_planned = False
            self._look(held)

        if not held.look_planned:
            held.look_planned = True
            self._tasks.start_soon(look)

    async def _deliver(self, held: Held) -> None:
        held.watching.cancel()
        exit = held.exit()
        self._last_exits.remember(exit)
        del self._held[held.id]
        await self._handler.handle_exit_event(held.id, exit)

    async def _run_of(self, id: str) -> str:
        """The run of a record, empty where there is no record. Raises: Conflict for one that no executor made."""
        try:
            labels = await self._client.labels(id)
        except errors.NotFound:
            return ""
        if RUN_LABEL not in labels:
            raise errors.Conflict(f"cannot restore container {id}: it was not made by Moorage")
        return labels[RUN_LABEL]


@asynccontextmanager
async def open_executor(
    client: ContainerClient,
    exit_handler: ExitHandler,
    *,
    runtime: RuntimeOptions,
    timeouts: Timeouts = DEFAULT,
    process_end: Callable[[int], Awaitable[None]] = wait_for_end,
) -> AsyncIterator[Executor]:
    """An executor over this client, until the block ends, which detaches it as ``aclose`` does.

    ``process_end`` returns when the process with a pid has ended: the kernel's word, unless somebody simulates it.

    Raises: the kind of the cause, as "cannot create containerd exec client: ...", where containerd cannot be reached.
    """
    executor = Executor(client, exit_handler, runtime, timeouts, process_end)
    async with background_tasks() as tasks:
        failure: errors.MoorageError | None = await tasks.start(executor._serve)
        if failure is not None:
            raise type(failure)(f"cannot create containerd exec client: {failure}") from failure
        try:
            yield executor
        finally:
            with anyio.CancelScope(shield=True):
                await executor.aclose()

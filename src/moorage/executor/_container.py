"""One container of an executor, and its removal: the only module that knows the order."""

import logging
import signal as signals
from collections.abc import Iterator

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage.containerd.types import Status
from moorage.executor._machine import SIGKILL_EXIT_CODE, ExitKnown, ExitUnknown, RemovalFailed, Removed, RunState
from moorage.executor._streams import Streams
from moorage.executor.protocols import ContainerClient, Exit
from moorage.timeouts import ExecutorTimeouts

log = logging.getLogger(__name__)

MAX_REFUSALS = 6
"""How often a removal may be refused before the exit is delivered anyway."""


class OwnedContainer(Struct, eq=False):
    """A container that an executor owns: the state of its run and its open streams."""

    id: str
    run_id: str
    run: RunState
    streams: Streams
    retry_pauses: Iterator[float]
    """Pauses before the next retry."""

    pid: int | None = None
    """The pid of init once it is started."""

    removed: Removed | None = None
    """Its exit, once the task is deleted; record and directory may still exist."""

    oom: bool = False
    """The OOM killer killed a process in it, as an event or the counter of its control group says: an event may be
    missed, and systemd removes a scope with its counter as soon as its last process has exited."""

    refusals: int = 0
    """How often containerd refused its removal."""

    exit_found: Exit | None = None
    """Its exit, if a restore found it not running."""

    is_check_queued: bool = False
    is_check_scheduled: bool = False
    pid_watch: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    released: anyio.Event = field(default_factory=anyio.Event)
    """Set when the executor does not own it any more."""

    def exit(self) -> Exit:
        """The exit of a run that is removed."""
        code = self.run.code
        return Exit(self.id, self.run_id, code, signal_name(code), self.run.oom, self.run.exited_at, self.run.pid)


def signal_name(code: int | None) -> str | None:
    """The name of the signal for an exit code, None for other codes. Source: runc adds 128 to a signal's number."""
    try:
        return signals.Signals(code - 128).name if code is not None and code > 128 else None
    except ValueError:
        return None


class LastExits:
    """The last exits of ids. Bounded, because ids that are used once must not use more and more memory."""

    LIMIT = 4096

    def __init__(self) -> None:
        self._exits: dict[str, Exit] = {}

    def find(self, id: str) -> Exit | None:
        """The last exit of this id, None if unknown."""
        return self._exits.get(id)

    def forget(self, id: str) -> None:
        """Remove the exit of an id that is used again."""
        self._exits.pop(id, None)

    def add(self, exit: Exit) -> None:
        """Add an exit; the oldest is dropped beyond ``LIMIT``."""
        self.forget(exit.id)
        self._exits[exit.id] = exit
        while len(self._exits) > self.LIMIT:
            del self._exits[next(iter(self._exits))]


class Removal:
    """Removes containers. The order is always: task, then record, directory and FIFOs; never the record first."""

    def __init__(self, client: ContainerClient, timeouts: ExecutorTimeouts) -> None:
        self._client = client
        self._timeouts = timeouts

    async def remove(self, id: str, level: int = logging.ERROR) -> bool:
        """Remove everything of this id, shielded and bounded; return whether that succeeded.

        Failures are logged at this level, because the caller raises the first error. Source: row E04.
        """
        done = False
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup) as scope:
            done = await self._remove(id, level)
        if scope.cancelled_caught:
            log.log(level, "cannot clean up after %s within %g s", id, self._timeouts.cleanup)
        return done

    async def _remove(self, id: str, level: int) -> bool:
        try:
            await self._client.delete_task(id)
        except errors.Unavailable as error:
            log.log(level, "cannot delete the task of %s, its process may still be running: %s", id, error)
            return False
        except (errors.MoorageError, OSError) as error:
            if not isinstance(error, errors.NotFound):
                log.log(level, "cannot delete the task of %s: %s", id, error)
                await self.delete_record(id, level)
                return False
        return await self.delete_record(id, level)

    async def delete_record(self, id: str, level: int = logging.ERROR) -> bool:
        """Delete record, directory and FIFOs; return whether that succeeded. Failures are logged at this level."""
        try:
            await self._client.delete(id)
        except (errors.MoorageError, OSError) as error:
            if not isinstance(error, errors.NotFound):
                log.log(level, "cannot delete container %s: %s", id, error)
                return False
        return True

    async def find_exit(self, container: OwnedContainer) -> ExitKnown | ExitUnknown:
        """How a stopped task exited, before its removal and after its output was drained. Bounded."""
        if not await container.streams.wait(self._timeouts.exit_drain):
            container.streams.note_cut_off()
        try:
            found = await self._client.find_exit(container.id)
            if found is None:
                return ExitUnknown()
            container.oom = await self._client.oom_killed(container.id) or container.oom
        except (errors.MoorageError, OSError) as error:
            log.debug("cannot find out how %s exited before its removal: %s", container.id, error)
            return ExitUnknown()
        code, exited_at = found
        return ExitKnown(code, exited_at, container.oom)

    async def remove_exited(self, container: OwnedContainer) -> Removed | RemovalFailed:
        """Remove an exited run after its output was drained; returns the exit as the deletion reports it.

        Shielded and bounded: once the task is deleted, its exit is known nowhere else. May be repeated after
        RemovalFailed: finished steps are not repeated. Source: rows E11, E40.
        """
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            return await self._remove_exited(container)
        log.warning("cannot clean up after %s within %g s", container.id, self._timeouts.cleanup)
        return RemovalFailed()

    async def _remove_exited(self, container: OwnedContainer) -> Removed | RemovalFailed:
        deadline = anyio.current_time() + self._timeouts.stream_wait
        if container.removed is None:
            if not await container.streams.wait(self._timeouts.exit_drain):
                container.streams.note_cut_off()
            try:
                container.removed = await self._delete_task(container)
            except (errors.MoorageError, OSError) as error:
                if self._is_retried(container, error):
                    log.info("cannot delete the task of %s yet: %s", container.id, error)
                    return RemovalFailed()
                log.error("cannot delete the task of %s: %s", container.id, error)
                container.removed = Removed(oom=container.oom)
        try:
            await self._client.delete(container.id)
        except (errors.MoorageError, OSError) as error:
            if self._is_retried(container, error):
                log.info("cannot delete container %s yet: %s", container.id, error)
                return RemovalFailed()
            log.error("cannot delete container %s: %s", container.id, error)
        await container.streams.wait(max(0.0, deadline - anyio.current_time()))
        await container.streams.close()
        return container.removed

    def _is_retried(self, container: OwnedContainer, error: Exception) -> bool:
        """Whether to retry: a refusal may be permanent, and the exit must be delivered."""
        if isinstance(error, errors.Unavailable):
            return True
        container.refusals += 1
        return container.refusals < MAX_REFUSALS

    async def remove_dead(self, container: OwnedContainer) -> None:
        """Remove a container that is not running; its exit, if it was ever started, is set as ``exit_found``.

        May be called again after a failure. Source: row E21. Raises: what the deletion raises.
        """
        try:
            status = await self._client.status(container.id)
        except errors.NotFound:
            status = None
        if status is Status.STOPPED and not await container.streams.wait(self._timeouts.exit_drain):
            container.streams.note_cut_off()
        if status not in (None, Status.CREATED):
            container.exit_found = Exit(container.id, container.run_id, None)
        with anyio.CancelScope(shield=True):  # each call is bounded; a cancelled call would lose its answer
            removed = await self._delete_task(container)
        if container.exit_found is not None or (status is None and removed.code is not None):
            oom = removed.oom and removed.code == SIGKILL_EXIT_CODE
            container.exit_found = Exit(
                container.id, container.run_id, removed.code, signal_name(removed.code), oom, removed.exited_at
            )
        await self._client.delete(container.id)

    async def _delete_task(self, container: OwnedContainer) -> Removed:
        try:
            if not container.run.is_delivered:
                # Stored, because a retry finds no counter any more.
                container.oom = await self._client.oom_killed(container.id) or container.oom
        except errors.Unavailable:
            raise
        except errors.MoorageError:
            pass  # the shim or the control group is gone: no OOM kill is known
        code, exited_at = await self._client.delete_task(container.id)
        return Removed(code, exited_at, container.oom)

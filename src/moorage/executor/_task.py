"""One held container, and how everything of it is removed: the only place that knows the order."""

import logging
import signal as signals
from collections.abc import Iterator

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage.containerd.types import Status
from moorage.executor._machine import KILLED, NotRemoved, Removed, Run
from moorage.executor._streams import Streams
from moorage.executor.protocols import ContainerClient, Exit
from moorage.timeouts import Timeouts

log = logging.getLogger(__name__)

REFUSALS = 6
"""So often a removal may be refused before the exit is told all the same."""


class Held(Struct, eq=False):
    """A container that an executor answers for: its run, and what is open for it."""

    id: str
    run_id: str
    run: Run
    streams: Streams
    again: Iterator[float]
    """Pauses before the next try of what could not be done."""

    pid: int | None = None
    """Of its first process, from when it runs."""

    ended: Removed | None = None
    """How it ended, once the task is deleted; record and directory may still be there."""

    oom: bool = False
    """The kernel killed something in it for want of memory."""

    refusals: int = 0
    """How often containerd refused to remove it."""

    found: Exit | None = None
    """How it ended, where a restore found it dead."""

    look_queued: bool = False
    look_planned: bool = False
    watching: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def exit(self) -> Exit:
        """The end of a run that is over."""
        code = self.run.code
        return Exit(self.id, self.run_id, code, signal_name(code), self.run.oom, self.run.exited_at, self.run.pid)


def signal_name(code: int | None) -> str | None:
    """The signal that an exit code of a runtime stands for. Source: runc adds 128 to the signal's number."""
    try:
        return signals.Signals(code - 128).name if code is not None and code > 128 else None
    except ValueError:
        return None


class LastExits:
    """How runs ended, the newest few thousand: ids that are used once must not make us grow for ever."""

    LIMIT = 4096

    def __init__(self) -> None:
        self._exits: dict[str, Exit] = {}

    def find(self, id: str) -> Exit | None:
        """The last exit of this id, None where nothing is known."""
        return self._exits.get(id)

    def forget(self, id: str) -> None:
        """The id begins anew."""
        self._exits.pop(id, None)

    def remember(self, exit: Exit) -> None:
        """Keep this exit, and drop the oldest of too many."""
        self.forget(exit.id)
        self._exits[exit.id] = exit
        while len(self._exits) > self.LIMIT:
            del self._exits[next(iter(self._exits))]


class Removal:
    """Removes containers. The order is always: task, then record, directory and FIFOs; never the record first."""

    def __init__(self, client: ContainerClient, timeouts: Timeouts) -> None:
        self._client = client
        self._timeouts = timeouts

    async def clean_up(self, id: str, level: int = logging.ERROR) -> bool:
        """Remove whatever there is of this id, shielded and bounded; whether all of it is gone.

        Failures are logged at this level: the first error is another's. Source: row E04.
        """
        done = False
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup) as scope:
            done = await self._clean_up(id, level)
        if scope.cancelled_caught:
            log.log(level, "cannot clean up after %s within %g s", id, self._timeouts.cleanup)
        return done

    async def _clean_up(self, id: str, level: int) -> bool:
        try:
            await self._client.delete_task(id)
        except errors.Unavailable as error:
            log.log(level, "cannot delete the task of %s, its process may still live: %s", id, error)
            return False
        except (errors.MoorageError, OSError) as error:
            if not isinstance(error, errors.NotFound):
                log.log(level, "cannot delete the task of %s: %s", id, error)
                await self.forget(id, level)
                return False
        return await self.forget(id, level)

    async def forget(self, id: str, level: int = logging.ERROR) -> bool:
        """Remove record, directory and FIFOs; whether they are gone. Failures are logged at this level."""
        try:
            await self._client.delete(id)
        except (errors.MoorageError, OSError) as error:
            if not isinstance(error, errors.NotFound):
                log.log(level, "cannot delete container %s: %s", id, error)
                return False
        return True

    async def finish(self, held: Held) -> Removed | NotRemoved:
        """Remove a run that ended, after its output was taken; what the deletion says of the end.

        Shielded and bounded: once the task is deleted nobody else can tell how it ended. May be repeated after
        NotRemoved: what was done is not done again. Source: rows E11, E40.
        """
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            return await self._finish(held)
        log.warning("cannot clean up after %s within %g s", held.id, self._timeouts.cleanup)
        return NotRemoved()

    async def _finish(self, held: Held) -> Removed | NotRemoved:
        deadline = anyio.current_time() + self._timeouts.stream_wait
        if held.ended is None:
            if not await held.streams.wait(self._timeouts.exit_drain):
                held.streams.note_cut_off()
            try:
                held.ended = await self._delete_task(held)
            except (errors.MoorageError, OSError) as error:
                if self._is_tried_again(held, error):
                    log.info("cannot delete the task of %s yet: %s", held.id, error)
                    return NotRemoved()
                log.error("cannot delete the task of %s: %s", held.id, error)
                held.ended = Removed(oom=held.oom)
        try:
            await self._client.delete(held.id)
        except (errors.MoorageError, OSError) as error:
            if self._is_tried_again(held, error):
                log.info("cannot delete container %s yet: %s", held.id, error)
                return NotRemoved()
            log.error("cannot delete container %s: %s", held.id, error)
        await held.streams.wait(max(0.0, deadline - anyio.current_time()))
        await held.streams.close()
        return held.ended

    def _is_tried_again(self, held: Held, error: Exception) -> bool:
        """Containerd comes back; but what it refuses it may refuse for ever, and the exit must be told."""
        if isinstance(error, errors.Unavailable):
            return True
        held.refusals += 1
        return held.refusals < REFUSALS

    async def bury(self, held: Held) -> None:
        """Remove a container that is not alive. How it ended, if it ever ran, is in ``held.found``. Source: row E21.

        Raises: what the deletion raises; it may be called again. What was found by then stays found.
        """
        try:
            status = await self._client.status(held.id)
        except errors.NotFound:
            status = None
        if status is Status.STOPPED and not await held.streams.wait(self._timeouts.exit_drain):
            held.streams.note_cut_off()
        if status not in (None, Status.CREATED):
            held.found = Exit(held.id, held.run_id, None)
        with anyio.CancelScope(shield=True):  # each call has its bound; an answer that is not waited for is lost
            ended = await self._delete_task(held)
        if held.found is not None or (status is None and ended.code is not None):
            oom = ended.oom and ended.code == KILLED
            held.found = Exit(held.id, held.run_id, ended.code, signal_name(ended.code), oom, ended.exited_at)
        await self._client.delete(held.id)

    async def _delete_task(self, held: Held) -> Removed:
        try:
            # Kept, because a second try finds no counter any more.
            held.oom = await self._client.oom_killed(held.id) or held.oom
        except errors.Unavailable:
            raise
        except errors.MoorageError:
            pass  # the shim or the control group is gone; nothing says that memory was short
        code, exited_at = await self._client.delete_task(held.id)
        return Removed(code, exited_at, held.oom)

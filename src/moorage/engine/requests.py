"""Requests on one plugin: they wait in its inbox for their turn, and a stop takes precedence over a start."""

import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage._lib.threads import run_abandonable, run_blocking
from moorage.containerd.types import Spec
from moorage.engine.lifecycle import State
from moorage.engine.run.mount_sources import started_spec
from moorage.runs.container_files import pack_files, unpack_into

if TYPE_CHECKING:
    from moorage.engine.plugin import PluginState
    from moorage.engine.runtime import ContainerRuntime, EngineContext

__all__ = ("FileCopies", "Interrupted", "Job", "PluginInbox", "StartControl", "StartPhase", "as_user_error")

log = logging.getLogger(__name__)

Job = Callable[[], Awaitable[None]]

_CHUNK = 256 * 1024
_AT_ONCE = 0.1  # seconds; a call that waited no longer than this for its turn has all of its timeout left
_BUSY = {
    State.STARTING: "an earlier call is starting it and waits for its socket",
    State.STOPPING: "it is being stopped",
    State.REMOVING: "it is being removed",
}


class StartPhase(Enum):
    """What starts a plugin at this moment."""

    IDLE = "nothing"
    PAUSED = "an automatic start, after a pause; the inbox is free until then"
    STARTING = "a job of the inbox, which waits until the plugin is ready"


class StartControl:
    """Whether something starts a plugin, and how a request to stop it takes precedence. One state of three parts:

    - ``phase``: there is at most one pause or start at a time, and one scope that cancels it.
    - ``is_requested``: a user waits for the start. It is true from before the phase is STARTING until the start has
      succeeded or is undone: the record says enabled by then, but the plugin counts as enabled only after success.
    - the number of accepted requests to stop that are not done. While there is one, no automatic start begins, and
      ``interrupt`` has cancelled the pause or start under way. A request that is refused at its turn, because the
      plugin is in use, lets the supervisor resume what was cancelled for it.
    """

    def __init__(self) -> None:
        self._phase = StartPhase.IDLE
        self._is_requested = False
        self._scope: anyio.CancelScope | None = None
        self._stops = 0

    @property
    def phase(self) -> StartPhase:
        """What starts the plugin now."""
        return self._phase

    @property
    def is_requested(self) -> bool:
        """Whether a user waits for a start."""
        return self._is_requested

    @property
    def is_stop_pending(self) -> bool:
        """Whether a stop was accepted and is not done."""
        return self._stops > 0

    @contextmanager
    def requested(self) -> Iterator[None]:
        """A user waits for a start for the length of the block."""
        self._is_requested = True
        try:
            yield
        finally:
            self._is_requested = False

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[anyio.CancelScope]:
        """A start for the length of the block, which ``interrupt`` cancels; the block is left silently then."""
        scope = self._begin(StartPhase.STARTING)
        try:
            with scope:
                yield scope
        finally:
            self._end(scope)

    def begin_pause(self) -> anyio.CancelScope:
        """The scope of a pause before an automatic start, which begins now."""
        return self._begin(StartPhase.PAUSED)

    def end_pause(self, scope: anyio.CancelScope) -> bool:
        """End this pause; False where it was interrupted, or replaced by another one."""
        is_current = self._scope is scope
        self._end(scope)
        return is_current

    def interrupt(self) -> None:
        """Cancel the start that is under way, or the pause before the next one."""
        if self._scope is not None:
            self._scope.cancel()
            if self._phase is StartPhase.PAUSED:
                self._end(self._scope)

    def accept_stop(self) -> None:
        """A request to stop is accepted: nothing starts by itself until ``finish_stop``."""
        self._stops += 1
        self.interrupt()

    def finish_stop(self) -> None:
        """An accepted request to stop was carried out, or refused."""
        self._stops -= 1

    def _begin(self, phase: StartPhase) -> anyio.CancelScope:
        self._scope, self._phase = anyio.CancelScope(), phase
        return self._scope

    def _end(self, scope: anyio.CancelScope) -> None:
        if self._scope is scope:
            self._scope, self._phase = None, StartPhase.IDLE


class PluginInbox:
    """Runs the jobs of one plugin one after another, as soon as it is known what runs of the plugin."""

    def __init__(self, plugin: "PluginState", starts: StartControl, context: "EngineContext") -> None:
        """``plugin`` is only read."""
        self._plugin = plugin
        self._starts = starts
        self._context = context
        self._known = anyio.Event()
        self._restored = anyio.Event()
        self._planned: set[Job] = set()
        """What waits for a pause to end."""

    @property
    def is_run_known(self) -> bool:
        """Whether it is known what runs of the plugin; no job of a user begins before."""
        return self._known.is_set()

    def set_run_known(self) -> None:
        """It is known what runs of the plugin."""
        self._known.set()

    def set_restored(self) -> None:
        """What ran at the engine's start is taken over, or does not run."""
        self._known.set()
        self._restored.set()

    def forget_run(self) -> None:
        """The connection to containerd is lost: what runs has to be found out again."""
        self._known, self._restored = anyio.Event(), anyio.Event()

    async def wait_restored(self) -> None:
        """Return when what ran at the engine's start is taken over, or does not run. No bound."""
        await self._restored.wait()

    # the inbox

    async def do(self, job: Job) -> None:
        """Let the inbox do a job, and wait for it.

        Raises: NotFound where the plugin is removed by then; Unavailable where it is not known in time what runs of it;
        what the job raises.
        """

        async def run() -> None:
            if self._context.plugins.find_id(self._plugin.id) is None:
                raise errors.NotFound(f'plugin "{self._plugin.name}" not found')
            await job()

        await self.wait_known()
        await self.run_job(run)

    async def run_job(self, job: Job) -> None:
        """Let the inbox do a job, whatever is known of the plugin, and wait for it."""
        await self._context.inboxes.run(self._plugin.id, job)

    def queue(self, job: Job) -> None:
        """Let the inbox do a job that no caller waits for: what it raises is logged."""
        self._context.inboxes.put(self._plugin.id, self.logged(job))

    def queue_later(self, job: Job, seconds: float, purpose: Job) -> None:
        """As ``queue``, after a pause. Of several for one purpose the first one counts."""
        if purpose in self._planned:
            return
        self._planned.add(purpose)

        async def wait() -> None:
            await anyio.sleep(seconds)
            self._planned.discard(purpose)
            self.queue(job)

        self._context.tasks.start_soon(wait)

    def finish_stop_later(self, finish: Job, seconds: float) -> None:
        """Do the rest of a stop that failed: after a pause, and when containerd answers, unless the exit came first."""

        async def job() -> None:
            if self._plugin.state is not State.STOPPING:
                return
            try:
                await self._context.availability.require().client.version()
            except errors.Unavailable:
                self.finish_stop_later(finish, self._context.timeouts.reconnect_limit)
            else:
                await finish()

        self.queue_later(job, seconds, finish)

    def logged(self, job: Job) -> Job:
        """A job whose failure is logged instead of raised."""

        async def run() -> None:
            try:
                await job()
            except errors.MoorageError as error:
                log.warning("plugin %s: %s", self._plugin.name, error)
            except Exception:
                log.exception("a job of plugin %s failed", self._plugin.name)

        return run

    async def do_stop(self, job: Job, resume: Job) -> None:
        """As ``do``, for a job that stops the plugin: a start, or a pause before one, is cancelled for it at once.

        ``resume`` is the job's sequel where it fails: what was cancelled for it is taken up again.
        """

        async def run() -> None:
            try:
                await job()
            except BaseException:
                self._starts.finish_stop()
                await resume()
                raise
            self._starts.finish_stop()

        await self.wait_known()
        self._starts.accept_stop()
        await self.do(run)

    async def do_within(self, within: float, verb: str, job: Callable[[float], Awaitable[None]]) -> None:
        """As ``do``, for a job that gets the remaining seconds of ``within`` when its turn comes.

        Raises: Conflict where its turn does not come in time, and then it never does; Unavailable where it is not known
        by then what runs of the plugin; what the job raises.
        """
        called_at = anyio.current_time()
        is_started = is_given_up = False

        async def run() -> None:
            nonlocal is_started
            if is_given_up:
                return
            is_started = True
            waited = anyio.current_time() - called_at
            await job(within if waited < _AT_ONCE else round(max(within - waited, _AT_ONCE), 1))

        async def give_up(scope: anyio.CancelScope) -> None:
            nonlocal is_given_up
            await anyio.sleep(within)
            if not is_started:
                is_given_up = True
                scope.cancel()

        with anyio.CancelScope() as scope:
            async with background_tasks() as tasks:
                tasks.start_soon(give_up, scope)
                await self.do(run)
        if is_given_up:
            what = f"cannot {verb} plugin {self._plugin.name} within {within:g} s"
            if not self.is_run_known:
                raise errors.Unavailable(
                    f"{what}: what runs of it is not known yet, because containerd does not answer"
                )
            raise errors.Conflict(f"{what}: {_BUSY.get(self._plugin.state, 'an earlier call on it is not done')}")

    async def wait_known(self) -> None:
        """Return when it is known what runs of it. Raises: Unavailable after ``containerd_wait``."""
        with anyio.move_on_after(self._context.availability.longest_wait):
            await self._known.wait()
            return
        reason = self._plugin.problem or self._context.availability.problem or "containerd does not answer"
        raise errors.Unavailable(
            f"cannot change plugin {self._plugin.name} yet: what runs of it is not known: {reason}"
        )


class FileCopies:
    """Copies of files between a running plugin and archives."""

    def __init__(self, plugin: "PluginState", directory: Path) -> None:
        """Archives are stored in the directory while they are made or received."""
        self._plugin, self._directory = plugin, directory

    @asynccontextmanager
    async def read(self, runtime: "ContainerRuntime", path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A file or a directory of the plugin as a tar. Raises: Conflict where nothing runs, NotFound, Unsupported."""
        spec, root = await self._find(runtime)
        async with self._scratch() as file:
            await self._run(lambda: pack_files(spec, root, path, file), path)
            await run_blocking(lambda: file.seek(0))

            async def chunks() -> AsyncIterator[bytes]:
                while data := await run_blocking(lambda: file.read(_CHUNK)):
                    yield data

            yield chunks()

    async def write(self, runtime: "ContainerRuntime", path: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar into a directory of the plugin. Raises: Conflict where nothing runs, NotFound, Invalid."""
        spec, root = await self._find(runtime)
        async with self._scratch() as file:
            async for chunk in archive:
                await run_blocking(lambda data=chunk: file.write(data))  # type: ignore[misc]
            await run_blocking(lambda: file.seek(0))
            await self._run(lambda: unpack_into(spec, root, path, file), path)

    async def _find(self, runtime: "ContainerRuntime") -> tuple[Spec, str]:
        plugin, run = self._plugin, self._plugin.run
        if run is None or run.finished.is_set():
            raise errors.Conflict(f"cannot copy files of plugin {plugin.name}: it is {plugin.state.value}")
        try:
            spec = (await runtime.client.get_container(run.container)).spec
        except errors.NotFound as error:
            raise errors.Conflict(f"cannot copy files of plugin {plugin.name}: it does not run any more") from error
        return started_spec(spec, plugin.directories), str(plugin.directories.root)

    async def _run(self, copy: Callable[[], None], path: str) -> None:
        try:
            await run_abandonable(copy)
        except OSError as error:
            raise errors.Invalid(
                f"cannot copy {path} of plugin {self._plugin.name}: {error.strerror or error}"
            ) from error

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[BinaryIO]:
        file = await run_blocking(lambda: tempfile.TemporaryFile(dir=self._directory))  # noqa: SIM115 - closed below
        try:
            yield file
        finally:
            file.close()


class Interrupted(errors.Conflict):
    """A start that a request to stop has cancelled."""


def as_user_error(failure: errors.MoorageError, text: str) -> errors.MoorageError:
    """A failure with this text, of a kind that is true of the plugin: what containerd did not find, or found in its
    way, is no plugin that is unknown or in the wrong state.
    """
    if isinstance(failure, Interrupted):
        return errors.Conflict(text)
    is_inner = isinstance(failure, errors.NotFound | errors.Conflict)
    return errors.MoorageError(text) if is_inner else type(failure)(text)

"""One supervisor per plugin: it owns the plugin's record, state, run and inbox, and nothing else changes them.

What a user requests, what a run does and what an engine does at its start are jobs of the plugin's inbox, which runs
them one after another. The first methods are requests: they queue a job and wait for it. Those from ``start_if_due`` on
are steps, and only jobs call them, as they call ``save``. Source: docs/adr/0038-one-supervisor-per-plugin.md.
"""

import logging
import random
import signal
from datetime import UTC, datetime, timedelta

import anyio
from msgspec.structs import replace

from moorage import errors
from moorage._lib.task_groups import side_by_side
from moorage._lib.threads import run_blocking
from moorage.containerd.processes import ExecCommand
from moorage.engine.lifecycle import Event, ExitAction, LifecycleState, State, after_exit, back_off, exit_action, move
from moorage.engine.plugin import PluginState
from moorage.engine.requests import Interrupted, PluginInbox, StartPhase, as_user_error
from moorage.engine.run.exec_processes import AddedProcesses
from moorage.engine.run.plugin_run import PluginRun, last_exit
from moorage.engine.run.standby import Standby
from moorage.engine.runtime import ContainerRuntime, EngineContext, Owners
from moorage.engine.telemetry import exit_fields, log_exit, log_step
from moorage.engine.values import LastExit, PluginRecord
from moorage.executor import Exit
from moorage.health.supervision import HealthSupervision
from moorage.logs.reader import PluginLog
from moorage.runs.directories import PluginDirectories

__all__ = ("RETRY_SECONDS", "Supervisor")

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds between two attempts that fail because containerd is unavailable: it may answer at any time."""
_STOP_AGAIN, _REMOVE_AGAIN = 60.0, 10.0  # seconds between two attempts of a stop, and of a removal


class Supervisor(PluginState):
    """Runs one plugin over time."""

    def __init__(
        self, record: PluginRecord, directories: PluginDirectories, log: PluginLog, context: EngineContext
    ) -> None:
        """Raises: Invalid where the record's config is invalid."""
        shared = context.store, context.events, context.meter, context.defaults, context.publisher
        super().__init__(record, directories, log, *shared)
        self._context = context
        self._timeouts = context.timeouts
        self.inbox = PluginInbox(self, self.starts, context)
        self.processes = AddedProcesses(self, context)
        run = lambda command: self.processes.run(context.availability.require(), ExecCommand(command))  # noqa: E731
        self.health = HealthSupervision(self, context.tasks, run)
        self.standby = Standby(self, context)

    # requests

    async def enable(self, name: str, within: float) -> None:
        """Start it and wait until it is ready, ``within`` seconds from now. On failure it is disabled again.

        Raises: Conflict where it is enabled, or its turn does not come in time; why it did not become ready.
        """
        await self.inbox.do_within(within, "enable", lambda seconds: self._enable(name, seconds))

    async def restart(self) -> None:
        """Stop it and start it again; where that fails it is tried again. Raises: Conflict; why it is not ready."""
        await self.inbox.do(self._restart)

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop it. Raises: Conflict; Unavailable for a process that does not exit (it stays stopping)."""
        self.check_unused(force=force)
        await self.connected.request_release(self._timeouts.let_go)
        cancels_start = self.starts.phase is StartPhase.STARTING
        job = lambda: self._disable(name, force=force, cancels_start=cancels_start)  # noqa: E731
        await self.inbox.do_stop(job, self._resume)

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove all of it. Raises: Conflict; Unavailable where something prevents it (it is tried again then)."""
        self.check_unused(force=force)
        await self.connected.request_release(self._timeouts.let_go)
        job = lambda: self.remove_now(name, force=force)  # noqa: E731
        await (self.inbox.do_stop(job, self._resume) if force else self.inbox.do(job))

    async def shut_down(self) -> None:
        """Stop it and remove its mounts; it stays enabled if it is. Raises: Unavailable."""
        await self.inbox.do_stop(self.stop, self._resume)

    def handle_exit(self, container: str, exit: Exit) -> None:
        """The executor reports the exit of a run; returns at once."""
        run = self.run
        if run is not None and run.container == container:
            run.end(exit)
            self.counts.exited(exit)
            self.inbox.queue(lambda: self._run_exited(run))

    # jobs

    async def _enable(self, name: str, within: float) -> None:
        if self.record.enabled or self.state is not State.DISABLED:
            state = "enabled" if self.record.enabled else self.state.value
            raise errors.Conflict(f"plugin already enabled: plugin {self.name} is {state}")
        self._context.availability.require()
        with self.starts.requested():
            failure = await self.start(within, failures=0, restarts=0, last_exit=None)
            if failure is not None:
                await self._refuse(failure)
                raise as_user_error(failure, f"cannot enable plugin {self.name}: {failure}") from failure
        self.report("enable", name=name)
        self.report("ready")

    async def _restart(self) -> None:
        if not self.record.enabled:
            raise errors.Conflict(f"cannot restart plugin {self.name}: it is disabled")
        self._context.availability.require()
        # what would be refused is refused while it runs
        await run_blocking(lambda: self._context.consent.check_now(self.name, self.record, self.config))
        await self.stop()
        failure = await self.start(self._timeouts.ready, failures=0)
        if failure is not None:
            await self._start_failed(failure, answers_first=True)
            raise as_user_error(
                failure, f"cannot restart plugin {self.name}: {failure}; it is tried again"
            ) from failure
        if self.state is State.STARTING:
            raise errors.Conflict(f"cannot restart plugin {self.name}: a stop was requested while it started")
        self.report("restart")
        self.report("ready")

    async def _disable(self, name: str, *, force: bool, cancels_start: bool) -> None:
        if self.state is not State.STARTING:  # such a start was cancelled for this, after the same check
            self.check_unused(force=force)
        if not self.record.enabled and self.state is State.DISABLED:
            if cancels_start:  # the start that a user requested has undone itself
                self.report("disable", name=name)
                return
            raise errors.Conflict(f"plugin is already disabled: plugin {self.name} found but disabled")
        await self.save(enabled=False, next_try_at=None, failures=0, holders=())
        self.connected.clear()
        await self.stop()
        self.report("disable", name=name)

    async def _resume(self) -> None:
        """Take up again what was cancelled for a stop that was then refused."""
        if self.record.enabled and self.state is State.STARTING:
            await self._start_failed(errors.Unavailable("a stop was requested, which was then refused"))
        elif self.record.enabled and self.state is State.RESTARTING:
            await self._pause(RETRY_SECONDS)

    async def remove_now(self, name: str, *, force: bool) -> None:
        """The job of ``remove``."""
        if self.state is not State.STARTING:
            self.check_unused(force=force)
        if self.record.enabled and not force:
            raise errors.Conflict(f"plugin {self.name} is enabled")
        self._context.availability.require()
        if self.state is not State.DISABLED and self.state is not State.REMOVING:
            await self.save(enabled=False, holders=())
            await self.stop()
        await self.save(removing=True, enabled=False)
        self._move(Event.REMOVE)
        await self.erase()
        self.report("remove", name=name)

    async def _run_exited(self, run: PluginRun) -> None:
        """The run exited. One that another job waits for is that job's."""
        if self.run is not run or run.exit is None:
            return
        action = exit_action(self.state)
        if action is ExitAction.FINISH_STOP:
            await self._finish_stop()
        elif action is ExitAction.RESTART:
            await self.runner.forget()
            last = last_exit(run)
            self._report_exit(last)
            await self._exited(last, is_failure=last.code != 0)

    # steps

    async def start_if_due(self, **fields: object) -> None:
        """An automatic start, if it is enabled and not stopped: at the engine's start, after an exit, after a pause."""
        is_due = self.record.enabled and self.state in (State.DISABLED, State.RESTARTING)
        if not is_due or self.starts.is_stop_pending:
            return
        failure = await self.start(self._timeouts.ready, **fields)
        if failure is not None:
            self._change(self._changed(**fields))  # known in memory anyway, also where the disk did not take it
            await self._start_failed(failure)
        elif self.is_ready:
            self.report("ready")

    async def start(self, within: float, **fields: object) -> errors.MoorageError | None:
        """Take it from its present state to ready; why that failed, None also where it was stopped meanwhile."""
        self._move(Event.START)
        failure: errors.MoorageError | None = None
        try:
            async with self.starts.attempt():
                runtime = self._context.availability.require()
                saved = {"run": self.record.run + 1, "enabled": True, "next_try_at": None, **fields}
                await side_by_side(lambda: self.save(**saved), self.standby.check)
                # what an earlier start could not end must be removed before another one uses the same root
                await self.runner.stop(runtime, self._timeouts, at_once=True, keep_mounted=True)
                await self.runner.start(runtime, self._context.consent, within, self.report)
                self._move(Event.ACCEPTED)  # no await between this and the last check whether the run has exited
        except errors.MoorageError as error:
            failure = error
        except OSError as error:
            failure = errors.MoorageError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        if self.state is State.STARTING and failure is None and self.starts.is_requested:
            failure = Interrupted("a stop was requested while it started")
        return failure

    async def _refuse(self, failure: errors.MoorageError) -> None:
        """Undo a start that the user requested: nothing of it is left, and it is disabled."""
        run, last = self.run, last_exit(self.run, str(failure))
        self._move(Event.REFUSED)
        try:
            await self._stop_run(at_once=True)
            self._move(Event.STOPPED)
        except errors.MoorageError as error:  # the first failure is the one that is answered
            log.error("plugin %s: %s", self.name, error)
        await self._save_or_log(enabled=False, last_exit=last)
        if isinstance(failure, Interrupted):
            return
        if run is not None:
            self._report_exit(last_exit(run))
        log_step(self.name, "is not enabled", exit_fields(last), level=logging.WARNING, text=str(failure))
        self.report("failed", error=str(failure).partition("\n")[0])

    async def _start_failed(self, failure: errors.MoorageError, *, answers_first: bool = False) -> None:
        """Undo a start, and plan the next one, or make it at once; ``answers_first``: a caller waits for the answer."""
        run, last = self.run, last_exit(self.run, str(failure))
        try:
            await self._stop_run(at_once=True, keep_mounted=True)
        except errors.Unavailable as error:
            failure = error
            log.warning("plugin %s: %s", self.name, error)
        if run is not None and run.exit is not None:
            self._report_exit(last_exit(run))
        if isinstance(failure, errors.Unavailable):
            self._become(replace(self._life, state=move(self._life, Event.EXITED).state))
            log_exit(self.name, last, self.record.restarts, RETRY_SECONDS)
            await self._pause(RETRY_SECONDS)
        else:
            await self._exited(last, is_failure=True, answers_first=answers_first)

    def end_unhealthy(self, reason: str, *, kill: bool) -> None:
        """Queue a stop of the present run, and what follows an exit; or only SIGKILL, on which the exit follows."""
        run = self.run

        async def job() -> None:
            if run is None or self.run is not run or not self.is_ready or self.starts.is_stop_pending:
                return
            if kill:
                await self._context.availability.require().executor.signal(run.container, signal.SIGKILL)
                return
            self.health.stop()
            try:
                await self._stop_run(keep_mounted=True)
            except BaseException:
                self.health.follow()  # so that it is tried again
                raise
            await self._exited(LastExit(at=datetime.now(UTC), error=reason), is_failure=True)

        self.inbox.queue(job)

    def _become(self, life: LifecycleState, event: Event | None = None) -> None:
        """Take this life. Health is checked while the plugin is ready."""
        super()._become(life, event)
        self.health.follow()
        self.standby.follow()

    def _report_exit(self, last: LastExit) -> None:
        attributes = {"code": "" if last.code is None else str(last.code), "oom": str(last.oom).lower()}
        self.report("die", **attributes, **({"signal": last.signal} if last.signal else {}))

    async def _exited(self, last: LastExit, *, is_failure: bool, answers_first: bool = False) -> None:
        """It exited by itself: start it again, after this returns where it ``answers_first``, or give up."""
        ready = self._ready.take(self.record.container) if self.health.lasted else 0.0  # never healthy: has not worked
        life = after_exit(self._life, self.record.policy, is_failure=is_failure, ready_seconds=ready)
        self._become(life)
        if life.state is not State.RESTARTING:
            log_exit(self.name, last, self.record.restarts, None)
            await self._save_or_log(last_exit=last, failures=life.failures)
            self.report("failed")
            return
        fields = {"last_exit": last, "failures": life.failures, "restarts": self.record.restarts + 1}
        pause = back_off(life.failures) * random.uniform(0.5, 1.0)
        log_exit(self.name, last, self.record.restarts, pause)
        if pause or answers_first:
            await self._pause(pause, **fields)
        else:
            self.report("restart")
            await self.start_if_due(**fields)

    async def _pause(self, seconds: float, **fields: object) -> None:
        """Start it again after a pause, which a stop ends."""
        scope = self.starts.begin_pause()
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        await self._save_or_log(next_try_at=at, **fields)
        self.report("backoff", seconds=f"{seconds:.3f}")

        async def start() -> None:
            self.report("restart")
            await self.start_if_due()

        async def wait() -> None:
            with scope:
                await anyio.sleep(seconds)
                if self.starts.end_pause(scope):
                    self.inbox.queue(start)

        self._context.tasks.start_soon(wait)

    async def take_over(self, owners: Owners | None, *, start: bool, live: bool) -> None:
        """Take over the run that the record names, which has a container. ``owners``: all containers, if known.

        One that has exited is started again, without ``live`` any; without ``start`` what runs is only taken over.
        """
        runtime = self._context.availability.require()
        orphans = await self.processes.find_orphans()
        is_running, exit, ready_at = await self.runner.adopt(runtime)
        self._ready.take_over(self.record.container, ready_at, exit)
        self.inbox.set_run_known()
        if is_running:
            self._move(Event.ADOPTED)
        if not start:
            return
        if exit is not None:
            self._become(LifecycleState(State.READY, self.record.failures))
            await self._exited(LastExit.of(exit), is_failure=exit.code != 0)
        elif is_running and live:
            log_step(self.name, "continues to run")
            await self.processes.end_orphans(orphans)
            await self._await_ready_again(runtime, owners)
        else:
            if is_running:
                await self.stop()
            await self.start_if_due()

    async def _await_ready_again(self, runtime: ContainerRuntime, owners: Owners | None) -> None:
        try:
            async with self.starts.attempt() as scope:
                if self.starts.is_stop_pending:  # accepted since it is known what runs
                    scope.cancel()
                await self.runner.await_ready(runtime, self._timeouts.ready)
                self._move(Event.ACCEPTED)
        except errors.MoorageError as error:
            await self._start_failed(error)
        await self.runner.remove_orphans(runtime, owners)

    async def stop(self, again: float = RETRY_SECONDS) -> None:
        """End it, whatever it is doing, and remove what was made for it; the desired state is not changed.

        An engine that shuts down does not wait. Raises: Unavailable, and it is tried again after ``again`` seconds.
        """
        self.starts.interrupt()
        self._move(Event.STOP)
        try:
            await self._stop_run()
        except errors.Unavailable:
            self.inbox.finish_stop_later(self._finish_stop, again)
            raise
        self._move(Event.STOPPED)

    async def _finish_stop(self) -> None:
        await self.stop(_STOP_AGAIN)
        await self.start_if_due()  # after a restart; nothing after a disable, which has cleared ``enabled``

    async def _stop_run(self, *, at_once: bool = False, keep_mounted: bool = False) -> None:
        runtime, kill_now = self._context.availability.runtime, self._context.kill_now
        try:
            await self.runner.stop(
                runtime, self._timeouts, at_once=at_once, keep_mounted=keep_mounted, kill_now=kill_now
            )
        except errors.MoorageError as error:
            self._problem = str(error)
            raise
        self._problem = ""

    async def erase(self) -> None:
        """Remove all that is this plugin's, its record last. Raises: Unavailable, and it is tried again later."""
        try:
            await self._erase()
        except (errors.MoorageError, OSError) as error:
            self._problem = f"cannot remove plugin {self.name} yet, it is tried again: {error}"
            self.inbox.queue_later(self._erase_again, _REMOVE_AGAIN, self._erase_again)
            raise errors.Unavailable(self._problem) from error

    async def _erase(self) -> None:
        await self.runner.erase(self._context.availability.require())
        await run_blocking(lambda: self._context.store.forget(self.id))
        self._context.plugins.discard(self)

    async def _erase_again(self) -> None:
        if self._context.plugins.find_id(self.id) is self:  # else it was removed by another request
            await self.erase()

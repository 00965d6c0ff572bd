"""One plugin in the foreground: start, output, readiness, exit. Reports events; prints nothing."""

import time
from typing import Protocol

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_abandonable, run_blocking
from moorage.containerd.types import Spec
from moorage.executor import ByteSink, Exit
from moorage.foreground.events import Report, RunExited, RunReady, RunStarted
from moorage.foreground.line_sink import LineSink
from moorage.host.cgroups import parent_group_in_use
from moorage.plugins.activation import find_mismatch
from moorage.runs.entrypoint import explain_start_failure
from moorage.runs.plan import RunPlan
from moorage.runs.preparation import close_views
from moorage.runs.readiness import HTTP_PROTOCOLS, Activation, activate, describe_other_sockets, wait_until_listening
from moorage.runs.termination import terminate
from moorage.timeouts import RunTimeouts

__all__ = ("ContainerStarter", "ForegroundRun", "RunResult")


class ContainerStarter(Protocol):
    """What a run needs of an executor."""

    async def create(self, id: str, spec: Spec, stdout: ByteSink, stderr: ByteSink) -> None:
        """Start a container."""

    async def signal(self, id: str, signal: int) -> None:
        """Signal its first process. Raises: NotFound for one that has exited."""


class RunResult(Struct, frozen=True):
    """How a run ended that was not stopped."""

    exit: Exit
    failure: str = ""
    """What was wrong although the process exited by itself."""

    @property
    def status(self) -> int:
        """The exit status for a shell: the plugin's, 128 + n for signal n; 1 where it is unknown."""
        return 1 if self.exit.code is None else self.exit.code


class ForegroundRun:
    """Runs one plan once. It is the executor's exit handler, too."""

    def __init__(self, plan: RunPlan, report: Report, timeouts: RunTimeouts) -> None:
        """``plan`` is prepared; ``timeouts`` says how long the plugin may take to become ready and to stop."""
        self._plan = plan
        self._id = plan.directories.id
        self._report = report
        self._timeouts = timeouts
        self._exit: Exit | None = None
        self._exited = anyio.Event()
        self._kill_now = anyio.Event()
        self._is_late = False
        self._was_ready = False
        self._hint = ""

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        """Called by the executor when the process has exited and its container is removed."""
        self._exit = exit
        self._exited.set()
        self._kill_now.set()

    async def run(self, executor: ContainerStarter) -> RunResult:
        """Start the plugin, report when it is ready, and return when it has exited. Cancelled, it stops the plugin.

        Raises: MoorageError of the cause's kind where it cannot be started.
        Raises: Unavailable where it does not become ready in time, or does not exit after SIGKILL.
        """
        await self._create(executor)
        try:
            await run_blocking(lambda: close_views(self._plan.directories))
            await self._report(RunStarted(self._plan))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._report_when_ready, executor, time.monotonic())
                await self._exited.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                exit = await self._stop(executor)
                reason = "" if self._was_ready or exit.code == 0 else await self._explain()
                if not self._was_ready and not self._is_late:
                    self._hint = await self._find_hint()
                await self._report(RunExited(exit, reason))
        if self._is_late:
            raise errors.Unavailable(
                f"the plugin did not accept a connection on {self._plan.socket.path} within {self._timeouts.ready:g} s "
                f"and was stopped{self._hint}"
            )
        failure = ""
        if not self._was_ready and (self._hint or exit.code == 0):
            failure = f"the plugin exited before it accepted a connection on {self._plan.socket.path}{self._hint}"
        return RunResult(exit, failure)

    def kill(self) -> None:
        """While the plugin is being stopped, do not wait for it to handle SIGTERM."""
        self._kill_now.set()

    async def _stop(self, executor: ContainerStarter) -> Exit:
        """SIGTERM, then SIGKILL after the stop time-out; how the process exited.

        Raises: Unavailable for a process whose exit is not reported.
        """
        await terminate(
            lambda number: executor.signal(self._id, number),
            self._exited,
            self._timeouts,
            stop_timeout=self._timeouts.stop,
            kill_now=self._kill_now,
        )
        if self._exit is None:
            raise errors.Unavailable(
                "cannot stop the plugin: containerd does not report that its process exited, "
                f"{self._timeouts.killed:g} s after SIGKILL"
            )
        return self._exit

    async def _create(self, executor: ContainerStarter) -> None:
        sinks = [LineSink(stream, self._report) for stream in ("stdout", "stderr")]
        try:
            with parent_group_in_use():
                await executor.create(self._id, self._plan.spec, *sinks)
        except errors.MoorageError as error:
            reason = await self._explain()
            raise type(error)(f"cannot start the plugin: {f'{reason} ({error})' if reason else error}") from error

    async def _explain(self) -> str:
        return await run_abandonable(lambda: explain_start_failure(self._plan.spec, str(self._plan.directories.root)))

    async def _find_hint(self) -> str:
        text = await run_abandonable(lambda: describe_other_sockets(self._plan.socket))
        return f"; {text}" if text else ""

    async def _report_when_ready(self, executor: ContainerStarter, started_at: float) -> None:
        """Report readiness, or stop the plugin where it is not ready in time."""
        deadline = started_at + self._timeouts.ready
        is_ready = await wait_until_listening(
            self._plan.socket, lambda: self._exited.is_set() or time.monotonic() > deadline
        )
        if is_ready:
            self._was_ready = True
            seconds = time.monotonic() - started_at
            await self._report(RunReady(seconds, await self._activate()))
        elif not self._exited.is_set():
            self._is_late = True
            self._hint = await self._find_hint()
            await self._stop(executor)

    async def _activate(self) -> Activation | None:
        interface = self._plan.config.interface
        if interface.protocol_scheme not in HTTP_PROTOCOLS:
            return None
        answer = await activate(self._plan.socket, self._timeouts.activate)
        mismatch = find_mismatch(tuple(each.text for each in interface.types), answer.implements)
        return Activation(answer.implements, answer.problem or mismatch)

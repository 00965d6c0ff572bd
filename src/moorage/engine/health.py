"""The health of one plugin in the engine: checks while it is ready, events, and a restart of what is unhealthy."""

import logging
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage.engine.lifecycle import State
from moorage.engine.values import LastExit
from moorage.health.model import HealthPolicy, HealthState, HealthStatus
from moorage.health.monitor import HealthMonitor

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess
    from moorage.engine.runner import PluginRun
    from moorage.engine.runtime import EngineContext
    from moorage.engine.supervisor import Supervisor

__all__ = ("PluginHealth",)

log = logging.getLogger(__name__)


class PluginHealth:
    """Checks one plugin while it is ready. The supervisor says when that begins and ends."""

    def __init__(self, plugin: "Supervisor", context: "EngineContext") -> None:
        self._plugin = plugin
        self._context = context
        self._monitor = HealthMonitor(context.tasks, self._run_command, self._changed)
        self._was_healthy = False
        """Whether the present run, or the last one, was healthy once."""

    @property
    def state(self) -> HealthState | None:
        """What is known of its health; None where it has no checks, or is not ready."""
        return self._monitor.state

    @property
    def policy(self) -> HealthPolicy:
        """Its checks."""
        return self._plugin.record.health

    @property
    def lasted(self) -> bool:
        """Whether its last run may count as one that worked: it was healthy once, or has no checks."""
        return self._was_healthy or not self.policy.checks

    def follow(self, state: State) -> None:
        """The plugin is in this state now, or its policy has changed."""
        if state is State.READY:
            self._was_healthy = False
            self._monitor.start(self.policy, self._plugin.directories.socket(self._plugin.config))
        else:
            self._monitor.stop()

    async def wait_healthy(self, within: float) -> None:
        """Return when it is healthy, at once where it has no checks.

        Raises: MoorageError where it is unhealthy, stops, or is not healthy after ``within`` seconds.
        """
        name = self._plugin.name
        if not self.policy.checks:
            return
        with anyio.move_on_after(within):
            state = await self._monitor.wait_decided()
            if state is None:
                raise errors.MoorageError(f"plugin {name} stopped before a health check passed")
            if state.status is HealthStatus.UNHEALTHY:
                raise errors.MoorageError(f"plugin {name} is unhealthy: {state.results[-1].text}")
            return
        results = self._monitor.state.results if self._monitor.state is not None else ()
        reason = f": {results[-1].text}" if results else ""
        raise errors.MoorageError(f"plugin {name} is not healthy after {within:g} s{reason}")

    def _changed(self, state: HealthState) -> None:
        self._was_healthy = self._was_healthy or state.was_healthy
        text = state.results[-1].text
        self._plugin.report(f"health_status: {state.status.value}", **({"error": text} if text else {}))
        run = self._plugin.run
        if state.status is not HealthStatus.UNHEALTHY or run is None:
            return
        log.warning("plugin %s is unhealthy: %s", self._plugin.name, text)
        if self.policy.on_failure == "kill":
            self._plugin.inbox.queue(lambda: self._kill(run))
        elif self.policy.on_failure == "restart":
            last = LastExit(at=datetime.now(UTC), error=f"unhealthy: {text}")
            self._plugin.inbox.queue(lambda: self._plugin.restart_unhealthy(run, last))

    async def _kill(self, run: "PluginRun") -> None:
        if self._plugin.run is run and not run.finished.is_set():
            await self._context.availability.require().executor.signal(run.container, signal.SIGKILL)

    @asynccontextmanager
    async def _run_command(self, command: Sequence[str]) -> "AsyncIterator[AddedProcess]":
        runtime = self._context.availability.require()
        async with self._plugin.processes.run(runtime, command, (), terminal=False) as added:
            yield added

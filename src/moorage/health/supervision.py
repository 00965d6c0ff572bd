"""The health of one supervised plugin: checks while it is ready, events, and what follows once it is unhealthy."""

import logging
from enum import Enum
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from moorage import errors
from moorage.health.model import HealthPolicy, HealthState, HealthStatus
from moorage.health.monitor import HealthMonitor
from moorage.health.probe import RunCommand
from moorage.host.sockets import PluginSocket

__all__ = ("HealthSupervision", "Supervised")

log = logging.getLogger(__name__)

_NEVER_READY = ("disabled", "failed", "removing", "stopping")
_POLL = 0.05  # seconds between two polls of a plugin that is not ready


class Supervised(Protocol):
    """What is read of the plugin, and required of it."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> Enum:
        """In the words of ``engine.lifecycle.State``."""
        ...

    @property
    def is_ready(self) -> bool: ...

    @property
    def record(self) -> "HasHealthPolicy": ...

    def plugin_socket(self) -> PluginSocket:
        """The socket on which it listens."""

    def report(self, action: str, /, *, name: str = "", **attributes: str) -> None:
        """Publish an event."""

    def notify_publisher(self) -> None:
        """Its consumers are to know."""

    def end_unhealthy(self, reason: str, *, kill: bool) -> None:
        """Queue a restart of the present run, as after an exit; or SIGKILL, after which its restart policy decides."""


class HasHealthPolicy(Protocol):
    """The record of a plugin."""

    @property
    def health(self) -> HealthPolicy: ...


class HealthSupervision:
    """Checks one plugin while it is ready. Its supervisor says when that begins and ends."""

    def __init__(self, plugin: Supervised, tasks: TaskGroup, run_command: RunCommand) -> None:
        self._plugin = plugin
        self._monitor = HealthMonitor(tasks, run_command, self._changed)
        self._was_healthy = False

    @property
    def state(self) -> HealthState | None:
        """What is known now; None for a plugin that has no checks, or is not ready."""
        return self._monitor.state

    @property
    def is_unhealthy(self) -> bool:
        """Whether its checks fail."""
        return self.state is not None and self.state.status is HealthStatus.UNHEALTHY

    @property
    def lasted(self) -> bool:
        """Whether its present or last run has worked: it was healthy once, or has no checks."""
        return self._was_healthy or not self._plugin.record.health.checks

    def follow(self) -> None:
        """The state of the plugin has changed, or its checks have."""
        if self._plugin.is_ready:
            self._was_healthy = False
            self._monitor.start(self._plugin.record.health, self._plugin.plugin_socket())
        else:
            self._monitor.stop()

    def stop(self) -> None:
        """It is about to be stopped: no check runs any more."""
        self._monitor.stop()

    async def wait_healthy(self, within: float) -> None:
        """Return when the plugin is ready, and healthy where it has checks.

        Raises: Conflict where it is disabled, or has failed.
        Raises: MoorageError where it is unhealthy, or takes longer than ``within`` seconds.
        """
        plugin = self._plugin
        with anyio.move_on_after(within):
            while not (state := await self._monitor.wait_decided()):
                if plugin.state.value in _NEVER_READY:
                    raise errors.Conflict(f"plugin {plugin.name} does not become healthy: it is {plugin.state.value}")
                if plugin.is_ready and not plugin.record.health.checks:
                    return
                await anyio.sleep(_POLL)
            if state.status is HealthStatus.UNHEALTHY:
                raise errors.MoorageError(f"plugin {plugin.name} is unhealthy: {state.results[-1].text}")
            return
        results = self._monitor.state.results if self._monitor.state is not None else ()
        reason = results[-1].text if results else "no check has passed" if plugin.is_ready else "it is not ready"
        raise errors.MoorageError(f"plugin {plugin.name} is not healthy after {within:g} s: {reason}")

    def _changed(self, state: HealthState) -> None:
        self._was_healthy = self._was_healthy or state.was_healthy
        text, policy = state.results[-1].text, self._plugin.record.health
        # Docker's words: the status is a part of the action
        self._plugin.report(f"health_status: {state.status.value}", **({"error": text} if text else {}))
        self._plugin.notify_publisher()
        if state.status is not HealthStatus.UNHEALTHY:
            return
        log.warning("plugin %s is unhealthy: %s", self._plugin.name, text)
        if policy.on_failure != "none":
            self._plugin.end_unhealthy(f"unhealthy: {text}", kill=policy.on_failure == "kill")

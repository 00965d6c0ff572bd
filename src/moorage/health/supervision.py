"""The health of one supervised plugin: checks while it is ready, events, and what follows once it is unhealthy."""

import logging
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from moorage import errors
from moorage.health.model import HealthPolicy, HealthState, HealthStatus
from moorage.health.monitor import HealthMonitor
from moorage.health.probe import RunCommand
from moorage.host.sockets import PluginSocket

__all__ = ("PluginHealth", "Supervised")

log = logging.getLogger(__name__)

_POLL = 0.05  # seconds between two looks at a plugin that is not ready


class Supervised(Protocol):
    """What is asked and required of the plugin."""

    @property
    def name(self) -> str: ...

    @property
    def health_policy(self) -> HealthPolicy: ...

    @property
    def plugin_socket(self) -> PluginSocket: ...

    @property
    def is_ready(self) -> bool: ...

    def check_will_be_ready(self) -> None:
        """Raises: MoorageError, also Conflict, where it will not become ready by itself, with its state."""

    def report(self, action: str, *, name: str = "", **attributes: str) -> None:
        """Publish an event."""

    def kill_unhealthy(self) -> None:
        """Queue SIGKILL to the present run. Its restart policy decides what follows."""

    def restart_unhealthy(self, reason: str) -> None:
        """Queue a restart of the present run, as after an exit."""


class PluginHealth:
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
    def lasted(self) -> bool:
        """Whether its present or last run has worked: it was healthy once, or has no checks."""
        return self._was_healthy or not self._plugin.health_policy.checks

    def follow(self, *, is_ready: bool) -> None:
        """The plugin is ready from now on, or not; or it is ready and its checks have changed."""
        if is_ready:
            self._was_healthy = False
            self._monitor.start(self._plugin.health_policy, self._plugin.plugin_socket)
        else:
            self._monitor.stop()

    async def wait_healthy(self, within: float) -> None:
        """Return when the plugin is ready, and healthy where it has checks.

        Raises: Conflict where it is disabled.
        Raises: MoorageError where it is unhealthy, has failed, or takes longer than ``within`` seconds.
        """
        plugin = self._plugin
        with anyio.move_on_after(within):
            while not (state := await self._monitor.wait_decided()):  # noqa: ASYNC110 - several things make it ready
                plugin.check_will_be_ready()
                if plugin.is_ready and not plugin.health_policy.checks:
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
        text, policy = state.results[-1].text, self._plugin.health_policy
        # Docker's words: the status is a part of the action
        self._plugin.report(f"health_status: {state.status.value}", **({"error": text} if text else {}))
        if state.status is not HealthStatus.UNHEALTHY:
            return
        log.warning("plugin %s is unhealthy: %s", self._plugin.name, text)
        if policy.on_failure == "kill":
            self._plugin.kill_unhealthy()
        elif policy.on_failure == "restart":
            self._plugin.restart_unhealthy(f"unhealthy: {text}")

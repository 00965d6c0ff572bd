"""Follows the health of one plugin while it is ready: a check at once, then one after each pause."""

from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from moorage.health.model import NO_HEALTH, HealthPolicy, HealthState, HealthStatus, after_result, next_pause
from moorage.health.probe import RunCommand, make_checks
from moorage.host.sockets import PluginSocket

__all__ = ("HealthMonitor",)

Changed = Callable[[HealthState], None]
"""Called with the state when its status has changed. Must not wait."""


class HealthMonitor:
    """The health of one plugin. No check runs unless ``start`` was called and ``stop`` was not."""

    def __init__(self, tasks: TaskGroup, run_command: RunCommand, changed: Changed) -> None:
        """``tasks`` runs the checks; ``run_command`` runs a process inside the plugin."""
        self._tasks = tasks
        self._run_command = run_command
        self._changed = changed
        self._policy = NO_HEALTH
        self._socket: PluginSocket | None = None
        self._scope: anyio.CancelScope | None = None
        self._state: HealthState | None = None
        self._decided = anyio.Event()

    @property
    def state(self) -> HealthState | None:
        """What is known now; None for a plugin that has no checks, or is not ready."""
        return self._state

    def start(self, policy: HealthPolicy, socket: PluginSocket) -> None:
        """The plugin is ready, or its policy has changed: check it from now on, as one of which nothing is known."""
        self.stop()
        self._policy, self._socket = policy, socket
        if policy.checks:
            self._state = HealthState()
            self._scope = anyio.CancelScope()
            self._tasks.start_soon(self._follow, self._scope)

    def stop(self) -> None:
        """The plugin is not ready any more, or stops: no check runs after this, and one under way is cancelled."""
        if self._scope is not None:
            self._scope.cancel()
        self._scope = self._state = None
        self._decide()

    async def wait_decided(self) -> HealthState | None:
        """The state as soon as it is not ``starting``; None where there are no checks, or the plugin stops."""
        while (state := self._state) is not None and state.status is HealthStatus.STARTING:
            await self._decided.wait()
        return state

    async def _follow(self, scope: anyio.CancelScope) -> None:
        policy, socket, ready_at = self._policy, self._socket, anyio.current_time()
        assert socket is not None, "start has set it"
        with scope:
            while True:
                started = anyio.current_time()
                result = await make_checks(policy, socket, self._run_command)
                before = self._state
                if scope.cancel_called or before is None:
                    return
                state = self._state = after_result(policy, before, result, started - ready_at)
                if state.status is not before.status:
                    self._decide()
                    self._changed(state)
                await anyio.sleep(next_pause(policy, state))

    def _decide(self) -> None:
        self._decided.set()
        self._decided = anyio.Event()

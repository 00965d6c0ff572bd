"""Keeps the service manager informed of an engine: that it serves, that its loop turns, how its plugins are."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio

from moorage._lib.notify import ServiceManager
from moorage._lib.task_groups import background_tasks
from moorage.engine.lifecycle import State
from moorage.engine.values import EngineInfo, PluginEvent, PluginView
from moorage.timeouts import EngineTimeouts

__all__ = ("ObservedEngine", "describe_stop", "notify_service_manager", "status_line")


class ObservedEngine(Protocol):
    """What is reported of an engine."""

    def info(self) -> EngineInfo:
        """The engine as a whole."""

    def list(self) -> Sequence[PluginView]:
        """Every plugin."""

    async def settle(self) -> None:
        """Return when containerd is running, and all that ran before is taken over."""

    def events(
        self, *, since: int | None, until: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[PluginEvent]]:
        """What happens to plugins."""


def status_line(engine: ObservedEngine) -> str:
    """How the plugins are: "3 plugins: 2 ready, 1 failed", and why none can run where that is so."""
    counts = Counter(plugin.state for plugin in engine.list())
    total = counts.total()
    line = f"{total or 'no'} plugin{'' if total == 1 else 's'}"
    if total:
        line += ": " + ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    problem = engine.info().problem
    return f"{line}; {problem}" if problem else line


def describe_stop(*, live_restore: bool) -> str:
    """What an engine does when it is stopped."""
    # `moorage down` stops the engine by the same signal, and then the plugins
    return "leaving the plugins to the next engine or to `moorage down`" if live_restore else "ending the plugins"


@asynccontextmanager
async def notify_service_manager(
    manager: ServiceManager, engine: ObservedEngine, timeouts: EngineTimeouts
) -> AsyncIterator[None]:
    """Send READY=1 with a STATUS= when calls are answered as they will be later, or after ``timeouts.announce``; then
    WATCHDOG=1 and each other status; STOPPING=1 at the end of the block.

    The beat comes from the loop that serves the API: one that hangs is noticed, and the engine is restarted.
    """
    if not manager.is_present:
        yield
        return
    reporter = _Reporter(manager, engine, timeouts)
    async with background_tasks() as tasks:
        tasks.start_soon(reporter.run)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):  # bounded by the manager's own time limit
                await manager.notify(
                    timeouts.notify, STOPPING=1, STATUS=describe_stop(live_restore=engine.info().live_restore)
                )


class _Reporter:
    """Three tasks: one waits for events, one sends the status, one sends the watchdog beat."""

    def __init__(self, manager: ServiceManager, engine: ObservedEngine, timeouts: EngineTimeouts) -> None:
        self._manager = manager
        self._engine = engine
        self._pause = timeouts.notify
        self._announce = timeouts.announce
        self._sent = ""
        self._changed = anyio.Event()

    async def run(self) -> None:
        with anyio.move_on_after(self._announce):
            await self._engine.settle()
        await self._manager.notify(self._pause, READY=1, STATUS=self.next_line())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.listen)
            tasks.start_soon(self.report)
            if self._manager.beat:
                tasks.start_soon(self.beat)

    def next_line(self) -> str:
        """The present status, which counts as sent."""
        self._sent = status_line(self._engine)
        return self._sent

    async def listen(self) -> None:
        while True:  # a listener that is too far behind is closed
            async with self._engine.events(since=None, until=None) as events:
                async for _ in events:
                    self._changed.set()

    async def report(self) -> None:
        while True:
            with anyio.move_on_after(self._pause):  # not every change of state is an event
                await self._changed.wait()
            self._changed = anyio.Event()
            if status_line(self._engine) != self._sent:
                await self._manager.notify(self._pause, STATUS=self.next_line())

    async def beat(self) -> None:
        while True:
            await self._manager.notify(self._manager.beat, WATCHDOG=1)
            await anyio.sleep(self._manager.beat)

"""Watches an engine: its plugins, what they use and what happens to them, over restarts of the engine."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.threads import run_abandonable
from moorage.api.schema.output import PluginStats
from moorage.api.schema.plugins import PluginDetails
from moorage.api.schema.system import EventMessage, SystemInfo
from moorage.client import MoorageClient
from moorage.timeouts import PageTimeouts
from moorage.ui.history import History, Sample
from moorage.ui.streams import StreamReader
from moorage.ui.timeline import Timeline, TimelineEvent, lines_before

__all__ = ("CurrentUsage", "EngineState", "EngineWatcher")

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_POLL = 2.0  # seconds between two queries of all plugins while a page is open; an event does not wait for it
_IDLE_POLL = 15.0  # while none is
_LEAST_POLL = 0.25  # between two queries, however many events there are
_LEAST_SECONDS = 1.0  # that a share of a processor is measured over
_EVENTS_BUFFERED = 1024
_LINES_READ = 50
_MOST_EXITS = 64  # exits whose last lines are still to be read; of those before there are none


class CurrentUsage(Struct, frozen=True):
    """What a plugin uses."""

    stats: PluginStats
    cpu_percent: float | None
    """Of one processor, between ``base`` and a measurement since; None where there was none."""
    base: PluginStats
    """What the next one is compared with, if it is at least a second older."""


class EngineState(Struct, frozen=True):
    """An engine at one instant, as far as it answered."""

    at: datetime
    plugins: tuple[PluginDetails, ...] = ()
    usage: dict[str, CurrentUsage] = {}
    info: SystemInfo | None = None
    problem: str = ""
    """Why the engine does not answer; empty while it does."""
    since: datetime | None = None
    """Since when it does not answer, or answers again; None where it always did."""

    def find(self, name: str) -> PluginDetails:
        """A plugin by its id, its name, or the beginning of its id.

        Raises:
            errors.NotFound: there is none
        """
        by_name = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        for plugin in self.plugins:
            if plugin.id == name or plugin.name in (name, by_name):
                return plugin
        found = [plugin for plugin in self.plugins if plugin.id.startswith(name)]
        if len(found) != 1:
            raise errors.NotFound(f"plugin {name} not found")
        return found[0]


class EngineWatcher:
    """The last known state of an engine, and what was recorded of it while ``run`` runs."""

    def __init__(self, host: str, timeouts: PageTimeouts) -> None:
        self.host = host
        self.state = EngineState(datetime.now(UTC), problem="not connected yet")
        self.history = History()
        self.timeline = Timeline()
        self._timeouts = timeouts
        self._client = MoorageClient(host, timeouts.ui_answer)
        self._streams = StreamReader(host, 1)
        self._revision = 0
        self._changed = anyio.Event()
        self._due = anyio.Event()
        self._viewers = 0
        self._exits: list[TimelineEvent] = []
        self._has_exits = anyio.Event()

    async def run(self) -> None:
        """Watch until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll)
            tasks.start_soon(self._follow_events)
            tasks.start_soon(self._read_last_lines)

    def close(self) -> None:
        """Abort the calls that are under way."""
        self._client.abort()

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """A block in which a page is open: the state is queried more often."""
        self._viewers += 1
        self._due.set()
        try:
            yield
        finally:
            self._viewers -= 1

    @property
    def revision(self) -> int:
        """Rises with each change."""
        return self._revision

    async def wait_change(self, revision: int) -> int:
        """Return when something has changed since this revision; the present one."""
        while self._revision == revision:
            await self._changed.wait()
        return self._revision

    def touch(self) -> None:
        """Something has changed that pages show."""
        self._revision += 1
        self._changed.set()
        self._changed = anyio.Event()

    def refresh(self) -> None:
        """Query the engine now."""
        self._due.set()

    async def find(self, name: str) -> PluginDetails:
        """A plugin by its id, its name, or the beginning of its id; also one that was created just now.

        Raises:
            errors.NotFound: there is none
        """
        before = self.state
        try:
            return before.find(name)
        except errors.NotFound:
            self.refresh()
            with anyio.move_on_after(self._timeouts.ui_answer):
                while self.state is before:
                    await self.wait_change(self.revision)
            return self.state.find(name)

    async def query(self, call: Callable[[MoorageClient], Result]) -> Result:
        """The result of a call, which runs in a thread and is bounded.

        Raises:
            errors.MoorageError: by kind, what the engine reports
        """
        client = self._client
        return await run_abandonable(lambda: call(client))

    # the state

    async def _poll(self) -> None:
        while True:
            self._due = anyio.Event()
            await self._query_state()
            await anyio.sleep(_LEAST_POLL)
            with anyio.move_on_after(_POLL if self._viewers else _IDLE_POLL):
                await self._due.wait()

    async def _query_state(self) -> None:
        before = self.state
        try:
            plugins, stats, info = await self.query(
                lambda client: (client.plugins(), client.stats_of_all(), client.info())
            )
        except errors.MoorageError as error:
            since = before.since if before.problem else datetime.now(UTC)
            usage: dict[str, CurrentUsage] = {}
            self._take(EngineState(datetime.now(UTC), before.plugins, usage, before.info, str(error), since))
            return
        ordered = tuple(sorted(plugins, key=lambda plugin: plugin.name))
        usage = {each.id: _usage(before.usage.get(each.id), each) for each in stats}
        since = datetime.now(UTC) if before.problem and before.since else before.since
        self._take(EngineState(datetime.now(UTC), ordered, usage, info, "", since))
        self._record(self.state)

    def _take(self, state: EngineState) -> None:
        self.state = state
        self.touch()

    def _record(self, state: EngineState) -> None:
        ids = {plugin.id for plugin in state.plugins}
        self.history.keep_only(ids)
        self.timeline.keep_only(ids)
        samples = []
        for plugin in state.plugins:
            if plugin.enabled:
                usage = state.usage.get(plugin.id)
                memory = usage.stats.memory_bytes if usage else None
                cpu = usage.cpu_percent if usage else None
                samples.append(Sample(plugin.id, cpu, memory, plugin.moorage.restarts))
        self.history.add(state.at.timestamp(), samples)

    # events

    async def _follow_events(self) -> None:
        timeouts = self._timeouts
        waits = pauses(timeouts.reconnect_first, timeouts.reconnect_limit)
        while True:
            try:
                async with self._streams.follow(self._events, _EVENTS_BUFFERED) as followed:
                    async for batch in followed.batches():
                        self._take_events(batch.items)
                        waits = pauses(timeouts.reconnect_first, timeouts.reconnect_limit)
            except errors.MoorageError as error:
                log.debug("cannot follow the events of the engine: %s", error)
            self.refresh()
            await anyio.sleep(next(waits))

    def _events(self, client: MoorageClient) -> Iterator[EventMessage]:
        """Events from the last one on, or all that the engine still has."""
        whole, rest = divmod(self.timeline.newest, 10**9)
        return client.events(since=f"{whole}.{rest:09d}")

    def _take_events(self, messages: Sequence[EventMessage]) -> None:
        for message in messages:
            made = self.timeline.add(message)
            if made is not None and made.is_exit:
                self._exits.append(made)
                del self._exits[:-_MOST_EXITS]
                self._has_exits.set()
        self.touch()
        self.refresh()

    async def _read_last_lines(self) -> None:
        """Read what a plugin wrote before each exit, the newest exit first."""
        while True:
            if not self._exits:
                self._has_exits = anyio.Event()
                await self._has_exits.wait()
            exit = self._exits.pop()
            try:
                lines = await self.query(lambda client, id=exit.id: list(client.logs(id, tail=_LINES_READ)))  # type: ignore[misc]
            except errors.MoorageError as error:
                log.debug("cannot read the last lines of plugin %s: %s", exit.name, error)
                continue
            self.timeline.add_lines(exit, lines_before(lines, exit, self.timeline.exit_before(exit)))
            self.touch()


def _usage(before: CurrentUsage | None, now: PluginStats) -> CurrentUsage:
    if before is None or before.base.cpu_seconds is None or now.cpu_seconds is None:
        return CurrentUsage(now, None, now)
    seconds = (datetime.fromisoformat(now.at) - datetime.fromisoformat(before.base.at)).total_seconds()
    used = now.cpu_seconds - before.base.cpu_seconds
    if used < 0:  # another run began, with a group of its own
        return CurrentUsage(now, None, now)
    if seconds < _LEAST_SECONDS:  # an event made it query again; so short a time says little
        return CurrentUsage(now, before.cpu_percent, before.base)
    return CurrentUsage(now, 100 * used / seconds, now)

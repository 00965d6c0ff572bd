"""Plugins over time: what users ask for goes to the plugin's inbox, what happens by itself does too."""

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.adding import execute
from moorage.engine.arrivals import Arrivals
from moorage.engine.calls import call
from moorage.engine.consent import Consent
from moorage.engine.creation import Creation
from moorage.engine.events import EventLog
from moorage.engine.figures import Figures, ProcessView, find_groups, read_figures, read_processes
from moorage.engine.lifecycle import State
from moorage.engine.machinery import Machinery
from moorage.engine.measuring import Metrics, measure
from moorage.engine.meter import Meter
from moorage.engine.moving import Moving
from moorage.engine.ownership import Ownership
from moorage.engine.packages import Packages, Registries
from moorage.engine.places import SHORT_ID, PluginPlaces
from moorage.engine.plugin import Plugin
from moorage.engine.policy_change import policy_change
from moorage.engine.queue_deadline import run_within
from moorage.engine.registry import Registry
from moorage.engine.restoring import Restoring
from moorage.engine.startup import Startup
from moorage.engine.store import Choice, Record, Store
from moorage.engine.values import Answer, EngineInfo, Happened, Holder, PluginView, PolicyChange
from moorage.engine.work import Job, Work, check_unused, logged
from moorage.executor import Exit
from moorage.logs.files import Line, PluginLog
from moorage.plugins import NO_CONFINEMENT, Confinement
from moorage.timeouts import Timeouts

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess

__all__ = ("Engine",)

log = logging.getLogger(__name__)


class Engine:
    """All plugins of one data directory. It is the API's backend, and the executor's exit handler.

    Made with its records read; ``serve`` gives it something to run them on, as often as that is lost and found.
    """

    def __init__(
        self,
        store: Store,
        runtime: Path,
        choice: Choice,
        tasks: TaskGroup,
        timeouts: Timeouts,
        registries: Registries | None = None,
        *,
        live_restore: bool = True,
        shares_shim: bool = False,
        defaults: Confinement = NO_CONFINEMENT,
    ) -> None:
        """Without ``live_restore`` nothing is taken over that an earlier engine left running; see ``ServeOptions``."""
        self._store = store
        self._runtime = runtime
        self._choice = choice
        self._timeouts = timeouts
        self._live_restore, self._shares_shim, self._defaults = live_restore, shares_shim, defaults
        self._started_at = datetime.now(UTC)
        self._events = EventLog()
        self._registry = Registry()
        self.meter = Meter()
        consent = Consent(registries.policy if registries is not None else None)
        self.ownership = Ownership(choice.engine_id, self._is_recorded)
        self._work = Work(store, self._registry, self._events, tasks, timeouts, consent)
        self._restoring = Restoring(self._work, tasks, live=live_restore)
        self._creation = Creation(self._work, self._take)
        self.packages = Packages(self._work, self._creation, self._do, registries)
        self.moving = Moving(self._work, self._creation, self.packages.registries.options)
        self.arrivals = Arrivals(self._work, self._creation, self.packages)
        self._startup = Startup(self._work, self._creation, self._restoring, runtime)
        self._notices: list[str] = []
        self._address = ""

    # what is there

    def load(self) -> None:
        """Read every record (blocking). One that cannot be read is told and left alone.

        Raises: Unsupported for the data of a newer version.
        """
        loaded = self._store.load()
        problems = list(loaded.problems)
        for record in loaded.records:
            try:
                self._take(record)
            except errors.MoorageError as error:
                problems.append(f"cannot use the record of plugin {record.name}: {error}")
        self._notices = [f"{problem}; it is skipped, and its files stay" for problem in problems]
        for notice in self._notices:
            log.error("%s", notice)

    def _is_recorded(self, id: str) -> bool:
        return self._registry.find_id(id) is not None or not self._store.is_free(id)

    def _take(self, record: Record) -> Plugin:
        runtime, propagated = self._runtime / "p" / record.id[:SHORT_ID], self._store.propagated_mount(record.id)
        places = PluginPlaces(record.id, runtime, propagated, self._shares_shim)
        plugin_log = PluginLog(self._store.root / "logs" / record.id)
        plugin = Plugin(record, places, plugin_log, self.meter, self._defaults)
        self._registry.add(plugin)
        if self._work.machinery is not None:  # it was created just now
            plugin.settle()
        return plugin

    def info(self) -> EngineInfo:
        """The engine as a whole."""
        machinery, namespace = self._work.machinery, self._choice.namespace
        foreign = (f"{each} in namespace {namespace} is not this engine's" for each in self._startup.foreign)
        return EngineInfo(
            root=str(self._store.root),
            namespace=namespace,
            containerd=self._choice.containerd,
            containerd_address=self._address,
            containerd_version=machinery.version if machinery else "",
            problem=self._work.problem,
            snapshotter=self._creation.snapshotter,
            started_at=self._started_at,
            engine_id=self._choice.engine_id,
            live_restore=self._live_restore,
            exec_root=str(self._runtime),
            notices=(
                *self._notices,
                *foreign,
            ),
            registries=self.packages.registries.options,
            listeners=self._events.listeners,
        )

    def list(self) -> Sequence[PluginView]:
        """Every plugin, by name."""
        return [plugin.view() for plugin in self._registry.all()]

    def get(self, name: str) -> PluginView:
        """One plugin. Raises: NotFound, Invalid."""
        return self._registry.get(name).view()

    async def figures(self, name: str) -> Figures:
        """What it uses of this machine now. Raises: NotFound, Invalid; Conflict while it does not run."""
        plugin = self._registry.get(name)
        await self._work.await_settled(plugin)
        if plugin.run is None or plugin.run.ended.is_set():
            raise errors.Conflict(f"plugin {plugin.name} does not run: it is {plugin.state.value}")
        return await run_blocking(lambda: read_figures(find_groups(plugin.places.cgroup)))

    async def metrics(self) -> Metrics:
        """What is counted, and measured now."""
        return await measure(self.meter, self._registry.all(), self._work.machinery)

    async def processes(self, name: str) -> Sequence[ProcessView]:
        """What runs in it now, none while it does not run. Raises: NotFound, Invalid."""
        places = self._registry.get(name).places
        return await run_blocking(lambda: read_processes(find_groups(places.cgroup)))

    def host_path(self, name: str, inside: str) -> str:
        """The host's path of one inside. Raises: NotFound, Invalid; Conflict for its root while that is not there."""
        plugin = self._registry.get(name)
        if not inside.startswith("/") or "\0" in inside:
            raise errors.Invalid(f"cannot find {inside!r} in plugin {plugin.name}: a path inside it begins with /")
        path = plugin.places.host_path(plugin.config, inside)
        is_kept = Path(path).is_relative_to(plugin.places.propagated)
        if not is_kept and plugin.state in (State.DISABLED, State.REMOVING):
            raise errors.Conflict(
                f"cannot find {inside} of plugin {plugin.name}: it is {plugin.state.value}, and its root file system "
                "is there only while it is enabled"
            )
        return path

    def events(self, *, since: int | None, until: int | None) -> AbstractAsyncContextManager[AsyncIterator[Happened]]:
        """Events from now on, and buffered ones from ``since`` (ns since 1970), or up to ``until`` where it ends."""
        return self._events.listen(since, until)

    def logs(
        self, name: str, *, tail: int | None, since: datetime | None, follow: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[Line]]:
        """A plugin's output; what is followed ends when it is removed. Raises: NotFound, Invalid."""
        plugin = self._registry.get(name)
        return plugin.log.read(tail=tail, since=since, follow=follow, ended=plugin.removed)

    # what users ask for

    async def create(self, name: str, package: AsyncIterator[bytes]) -> PluginView:
        """Make a plugin of a package. Raises: Conflict for a taken name; Denied where it must be signed; Invalid."""
        self.packages.signatures.refuse_unsigned(name)
        return (await self._creation.create(name, package)).view()

    async def enable(self, name: str, within: float) -> None:
        """Start it and wait until it is ready. Raises: Conflict; why it did not come up."""
        plugin = self._registry.get(name)
        queue, job = partial(self._do, plugin), partial(self._work.enable, plugin, name)
        await run_within(plugin, within or self._timeouts.ready, "enable", queue, job)

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop it. Raises: Conflict, Unavailable."""
        plugin = self._registry.get(name)
        check_unused(plugin, force=force)
        await plugin.ask_to_let_go(self._timeouts.let_go)
        cuts_off = plugin.starting is not None
        await self._stop(plugin, lambda: self._work.disable(plugin, name, force=force, cuts_off=cuts_off))

    async def restart(self, name: str) -> None:
        """Stop it and start it again. Raises: Conflict; why it did not come up."""
        plugin = self._registry.get(name)
        await self._do(plugin, lambda: self._work.restart(plugin))

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove it; by a further name, only that name. Raises: Conflict, Unavailable."""
        if await self.moving.untag(name):
            return
        plugin = self._registry.get(name)
        check_unused(plugin, force=force)
        await plugin.ask_to_let_go(self._timeouts.let_go)
        do = self._stop if force else self._do
        await do(plugin, lambda: self._work.remove(plugin, name, force=force))

    async def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str]) -> None:
        """Change settings, all or none. Raises: Conflict, Invalid, Denied."""
        plugin = self._registry.get(name)
        await self._do(plugin, lambda: self._work.set(plugin, assignments, secrets))

    async def set_policy(self, name: str, change: PolicyChange) -> PluginView:
        """Change its policy. Raises: Invalid; Denied for what this host does not grant unattended."""
        plugin = self._registry.get(name)
        await self._do(plugin, policy_change(self._work, plugin, change))
        return plugin.view()

    async def call(self, name: str, method: str, body: bytes, within: float) -> Answer:
        """What a plugin answers to a call. Raises: Conflict, Invalid, Unavailable."""
        plugin = self._registry.get(name)
        await self._work.await_settled(plugin)
        if plugin.state is not State.READY:
            raise errors.Conflict(f"cannot call plugin {plugin.name}: it is {plugin.state.value}")
        if not plugin.config.interface.is_http:
            scheme = plugin.config.interface.protocol_scheme
            raise errors.Invalid(f"cannot call plugin {plugin.name}: it speaks {scheme}, not HTTP")
        return await call(plugin.places.socket(plugin.config), method, body, within or self._timeouts.call)

    @asynccontextmanager
    async def execute(
        self, name: str, arguments: Sequence[str], environment: Sequence[str], *, terminal: bool
    ) -> "AsyncIterator[AddedProcess]":
        """A process beside the plugin's own, until the block ends. Raises: Conflict where nothing runs, Invalid."""
        plugin, machinery = self._registry.get(name), await self._work.await_machinery()
        await self._work.await_known(plugin)
        async with execute(plugin, machinery, arguments, environment, terminal=terminal) as added:
            yield added

    async def resize(self, name: str, exec_id: str, rows: int, columns: int) -> None:
        """The size of the terminal of an added process. Raises: NotFound."""
        plugin = self._registry.get(name)
        if exec_id not in plugin.added:
            raise errors.NotFound(f"plugin {plugin.name} has no added process {exec_id}")
        await plugin.added[exec_id].resize(rows, columns)

    async def hold(self, name: str, owner: str, *, is_attached: bool) -> Holder:
        """Note that somebody uses it. Raises: Conflict where it is disabled."""
        plugin = self._registry.get(name)
        holder = Holder(secrets.token_hex(16), owner, datetime.now(UTC))

        async def job() -> None:
            if not plugin.is_enabled:
                raise errors.Conflict(f"cannot hold plugin {plugin.name}: it is disabled")
            if is_attached:
                plugin.attach(holder)
            else:
                await self._work.save(plugin, holders=(*plugin.record.holders, holder))

        await self._do(plugin, job)
        return holder

    async def until_asked_to_let_go(self, name: str, token: str) -> None:
        """Return when a forced stop asks this attached holder to let go, or when it is none any more."""
        plugin = self._registry.get(name)
        if (notice := plugin.notice(token)) is not None:
            await notice.wait()

    async def release(self, name: str, token: str) -> None:
        """Let a hold go. Raises: NotFound."""
        plugin = self._registry.get(name)

        async def job() -> None:
            if not plugin.detach(token):
                left = tuple(each for each in plugin.record.holders if each.token != token)
                if len(left) == len(plugin.record.holders):
                    raise errors.NotFound(f"plugin {plugin.name} has no holder with this token")
                await self._work.save(plugin, holders=left)

        await self._do(plugin, job)

    def running(self) -> int:
        """How many plugins run."""
        return sum(plugin.run is not None and not plugin.run.ended.is_set() for plugin in self._registry.all())

    async def stop_all(self, hurry: anyio.Event | None = None) -> Sequence[str]:
        """Stop every plugin, all at once, and remove their mounts; what is enabled stays so. What failed, as text.

        When ``hurry`` is set they are killed instead of waited for.
        """
        problems: list[str] = []
        self._work.hurry = hurry

        async def stop(plugin: Plugin) -> None:
            try:
                await self._stop(plugin, lambda: self._work.stop(plugin))
            except errors.MoorageError as error:
                problems.append(str(error))

        async with anyio.create_task_group() as tasks:
            for plugin in self._registry.all():
                if plugin.state is not State.REMOVING:
                    tasks.start_soon(stop, plugin)
        return problems

    async def _stop(self, plugin: Plugin, job: Job) -> None:
        """As ``_do``, for a job that ends the plugin: a start, or a pause before one, is cut off for it at once."""

        async def run() -> None:
            try:
                await job()
            except BaseException:
                plugin.stops -= 1
                await self._work.go_on(plugin)
                raise
            plugin.stops -= 1

        await self._work.await_known(plugin)
        plugin.stops += 1
        plugin.interrupt()
        await self._do(plugin, run)

    async def _do(self, plugin: Plugin, job: Job) -> None:
        """Let the plugin's inbox do it, and wait. Raises: NotFound where the plugin was removed meanwhile."""

        async def run() -> None:
            if self._registry.find_id(plugin.id) is None:
                raise errors.NotFound(f'plugin "{plugin.name}" not found')
            await job()

        await self._work.await_known(plugin)
        await self._work.inboxes.run(plugin.id, run)

    # what happens by itself

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        """The executor tells of the end of a run. Returns at once: the plugin's inbox goes on from here."""
        plugin = self._registry.find_id(id.partition(".")[0])
        run = plugin.run if plugin is not None else None
        if plugin is not None and run is not None and run.container == id:
            run.end(exit)
            plugin.counts.exited(exit)
            self._work.inboxes.put(plugin.id, logged(plugin, lambda: self._work.run_ended(plugin, run)))

    @asynccontextmanager
    async def working_on(self, machinery: Machinery, address: str, *, start: bool) -> AsyncIterator[None]:
        """Run plugins on this machinery for the length of the block; first take over what is there.

        ``start`` also starts what users want enabled. Raises: Conflict for a namespace that is not ours.
        """
        owners = await self._startup.claim(machinery)
        self._address = address
        self._work.found(machinery)
        try:
            await self._startup.restore(owners, start=start)
            yield
        finally:
            self._work.lost("the engine is being stopped")
            for plugin in self._registry.all():
                plugin.forget_run()

    def without_machinery(self, problem: str, is_lasting: bool = False) -> None:
        """Say why plugins cannot be started or stopped; empty where they can be again."""
        self._work.hinder(problem, is_lasting=is_lasting)

    async def settle(self) -> None:
        """Return when containerd is there, and all that ran at the start is taken over: calls are answered as later."""
        while self._work.machinery is None:
            await self._work.changed()
        for plugin in self._registry.all():
            await plugin.settled.wait()

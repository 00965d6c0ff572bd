"""All plugins of one data directory: passes requests to their supervisors, and answers from what those know."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.changes.apply import DesiredPlugins
from moorage.engine.changes.labels import change_labels
from moorage.engine.changes.values import ChangeTerms, PolicyChange
from moorage.engine.consumers.driver_calls import call_driver
from moorage.engine.consumers.holders import acquire, release
from moorage.engine.consumers.publisher import DEFAULT_PUBLISH_PATHS, Publisher, PublishPaths
from moorage.engine.consumers.requests import check_authorization, publish, unpublish
from moorage.engine.consumers.tables import find_host_path, with_host_paths
from moorage.engine.grants import GrantPolicy, change_policy, change_settings
from moorage.engine.installation import Installation, Registries
from moorage.engine.lifecycle import State
from moorage.engine.plugin import PluginIndex
from moorage.engine.requests import FileCopies
from moorage.engine.restore import Restore
from moorage.engine.runtime import ContainerRuntime, EngineContext, Ownership
from moorage.engine.store import Store
from moorage.engine.supervisor import Supervisor
from moorage.engine.telemetry import EngineCounters, EventLog, Metrics, measure
from moorage.engine.transfers import PackageTransfers
from moorage.engine.values import (
    EngineIdentity,
    EngineInfo,
    Holder,
    PluginEvent,
    PluginRecord,
    PluginView,
)
from moorage.engine.versions import VersionBuilder
from moorage.executor import Exit
from moorage.host.cgroup_usage import CgroupUsage, ProcessView, read_plugin_usage, read_processes
from moorage.host.cgroups import find_groups
from moorage.logs.reader import Line, PluginLog
from moorage.plugins import NO_CONFINEMENT, CgroupDriver, Confinement, resolve_confinement
from moorage.proxy.protocol import PublishOptions
from moorage.runs.directories import PluginDirectories
from moorage.runs.http_call import PluginResponse, call
from moorage.runs.plan import PlanOptions
from moorage.timeouts import Timeouts

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess, ExecCommand

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
        choice: EngineIdentity,
        tasks: TaskGroup,
        timeouts: Timeouts,
        registries: Registries | None = None,
        *,
        live_restore: bool = True,
        shares_shim: bool = False,
        defaults: Confinement = NO_CONFINEMENT,
        cgroup_driver: CgroupDriver = "cgroupfs",
        publish_paths: PublishPaths = DEFAULT_PUBLISH_PATHS,
    ) -> None:
        """Without ``live_restore`` nothing is taken over that an earlier engine left running; see ``ServeOptions``."""
        self._store = store
        self._runtime = runtime
        self._choice = choice
        self._timeouts = timeouts
        self._live_restore = live_restore
        self._started_at = datetime.now(UTC)
        self._events = EventLog()
        consent = GrantPolicy(registries.policy if registries is not None else None)
        self.ownership = Ownership(choice.engine_id, self._is_recorded)
        options = PlanOptions(
            confinement=resolve_confinement(defaults), shares_shim=shares_shim, cgroup_driver=cgroup_driver
        )
        plugins: PluginIndex[Supervisor] = PluginIndex()
        self.publisher = Publisher(plugins, publish_paths, store.root, runtime, timeouts)
        self._context = context = EngineContext(
            plugins, store, self._events, EngineCounters(), tasks, timeouts, consent, options, self.publisher
        )
        self.meter = context.meter
        self._plugins, self._availability = context.plugins, context.availability
        self._versions = VersionBuilder(context, self._take)
        self.packages = Installation(context, self._versions, registries)
        self.transfers = PackageTransfers(context, self._versions, self.packages)
        self.desired = DesiredPlugins(context, self._versions, self.packages)
        self._restore = Restore(context, self._versions, runtime, live=live_restore)
        self._notices, self._address = list[str](), ""

    # queries

    def load(self) -> None:
        """Read every record (blocking). One that cannot be read is logged, and its files stay.

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
        return self._plugins.find_id(id) is not None or not self._store.is_free(id)

    def _take(self, record: PluginRecord) -> Supervisor:
        directories = PluginDirectories(record.id, self._runtime, self._store.propagated_mount(record.id))
        plugin_log = PluginLog(self._store.root / "logs" / record.id)
        plugin = Supervisor(record, directories, plugin_log, self._context)
        self._plugins.add(plugin)
        if self._availability.runtime is not None:  # it was created just now
            plugin.inbox.set_restored()
        return plugin

    def info(self) -> EngineInfo:
        """The engine as a whole."""
        runtime, namespace = self._availability.runtime, self._choice.namespace
        foreign = (f"{each} in namespace {namespace} is not this engine's" for each in self._restore.foreign)
        return EngineInfo(
            root=str(self._store.root),
            namespace=namespace,
            containerd=self._choice.containerd,
            containerd_address=self._address,
            containerd_version=runtime.version if runtime else "",
            problem=self._availability.problem,
            snapshotter=self._versions.snapshotter,
            started_at=self._started_at,
            engine_id=self._choice.engine_id,
            live_restore=self._live_restore,
            exec_root=str(self._runtime),
            cgroup_driver=self._context.defaults.cgroup_driver,
            notices=(*self._notices, *foreign, *([self.publisher.problem] if self.publisher.problem else ())),
            registries=self.packages.registries.options,
            runtime=runtime.oci_runtime.command if runtime else "",
            runtime_version=runtime.oci_runtime.version if runtime else "",
            runtime_reason=runtime.oci_runtime.reason if runtime else "",
            listeners=self._events.listeners,
        )

    def list(self) -> Sequence[PluginView]:
        """Every plugin, by name."""
        return [plugin.view() for plugin in self._plugins.all()]

    def get(self, name: str) -> PluginView:
        """One plugin. Raises: NotFound, Invalid."""
        return self._plugins.get(name).view()

    async def usage(self, name: str) -> CgroupUsage:
        """What it uses of this machine now. Raises: NotFound, Invalid; Conflict while it does not run."""
        plugin = self._plugins.get(name)
        await self._wait_restored(plugin)
        run = plugin.run
        if run is None or not plugin.is_running:
            raise errors.Conflict(f"plugin {plugin.name} does not run: it is {plugin.state.value}")
        return await run_blocking(lambda: read_plugin_usage(run.control_group, plugin.standby.control_group))

    async def metrics(self) -> Metrics:
        """What is counted, and measured now."""
        return await measure(self.meter, self._plugins.all(), self._availability.runtime)

    async def processes(self, name: str) -> Sequence[ProcessView]:
        """What runs in it now, none while it does not run. Raises: NotFound, Invalid."""
        run = self._plugins.get(name).run
        return await run_blocking(lambda: read_processes(find_groups(run.control_group if run is not None else "")))

    def host_path(self, name: str, inside: str) -> str:
        """The host's path of one inside. Raises: NotFound, Invalid; Conflict for its root while that is not mounted."""
        plugin = self._plugins.get(name)
        if not inside.startswith("/") or "\0" in inside:
            raise errors.Invalid(f"cannot find {inside!r} in plugin {plugin.name}: a path inside it begins with /")
        found = find_host_path(plugin, inside)
        if found.rule.kind == "root" and plugin.state in (State.DISABLED, State.REMOVING):
            raise errors.Conflict(
                f"cannot find {inside} of plugin {plugin.name}: it is {plugin.state.value}, and its root file system "
                "is mounted only while it is enabled"
            )
        return found.path

    def events(
        self, *, since: int | None, until: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[PluginEvent]]:
        """Events from now on, and buffered ones from ``since`` (ns since 1970), or up to ``until`` where it ends."""
        return self._events.listen(since, until)

    def logs(
        self, name: str, *, tail: int | None, since: datetime | None, follow: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[Line]]:
        """A plugin's output; what is followed ends when it is removed. Raises: NotFound, Invalid."""
        plugin = self._plugins.get(name)
        return plugin.log.read(tail=tail, since=since, follow=follow, finished=plugin.removed)

    # requests

    async def create(self, name: str, package: AsyncIterator[bytes]) -> PluginView:
        """Make a plugin of a package. Raises: Conflict for a taken name; Denied where it must be signed; Invalid."""
        return (await self.packages.create(name, package)).view()

    async def enable(self, name: str, within: float) -> None:
        """Start it and wait until it is ready. Raises: Conflict; why it did not become ready."""
        await self._plugins.get(name).enable(name, within or self._timeouts.ready)
        await self.publisher.settle()

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop it. Raises: Conflict, Unavailable."""
        plugin = self._plugins.get(name)
        await check_authorization(plugin, "disable", force=force)
        await plugin.disable(name, force=force)
        await self.publisher.settle()

    async def restart(self, name: str) -> None:
        """Stop it and start it again. Raises: Conflict; why it did not become ready."""
        await self._plugins.get(name).restart()

    async def wait_healthy(self, name: str, within: float) -> None:
        """Return when it is ready, and healthy where it has checks. Raises: Conflict; why it is not, in time."""
        await self._plugins.get(name).health.wait_healthy(within or self._timeouts.healthy)

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove it; by a further name, only that name. Raises: Conflict, Unavailable."""
        if not await self.transfers.untag(name):
            plugin = self._plugins.get(name)
            await check_authorization(plugin, "remove", force=force)
            await plugin.remove(name, force=force)
            await self.publisher.settle()

    async def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str]) -> None:
        """Change settings, all or none. Raises: Conflict, Invalid, Denied."""
        await change_settings(self._context, self._plugins.get(name), assignments, secrets)

    async def set_policy(self, name: str, change: PolicyChange) -> PluginView:
        """Change its policy. Raises: Invalid; Denied for what this host does not grant unattended."""
        plugin = self._plugins.get(name)
        await change_policy(self._context, plugin, change)
        return plugin.view()

    async def set_labels(self, name: str, added: Mapping[str, str], removed: Sequence[str]) -> PluginView:
        """Change its labels, at once. Raises: Invalid; Unavailable."""
        plugin = self._plugins.get(name)
        await change_labels(plugin, added, removed)
        return plugin.view()

    async def publish(
        self,
        name: str,
        names: Sequence[str],
        options: PublishOptions,
        group: str,
        *,
        force: bool,
        podman: bool | None = None,
    ) -> PluginView:
        """Publish it to consumers under these names (none: its own). Raises: Conflict, Invalid, Unavailable."""
        plugin = self._plugins.get(name)
        await publish(self._context, plugin, names, options, group, force=force, podman=podman)
        return plugin.view()

    async def unpublish(self, name: str, *, force: bool) -> None:
        """Remove its sockets for consumers. Raises: Conflict where it is not published, or in use."""
        await unpublish(self._context, self._plugins.get(name), force=force)

    async def volume_call(
        self, name: str, method: str, body: dict[str, Any], consumer: str, within: float = 0.0
    ) -> dict[str, Any]:
        """The answer of a volume driver to ``VolumeDriver.<method>`` through the plugin proxy, whose paths are the
        host's and which knows the ``consumer`` as the owner of a mount. ``within`` seconds; 0 for the proxy's limit.

        Raises: Invalid for a plugin that is no volume driver; MoorageError with the driver's own error; Unavailable.
        """
        plugin = self._plugins.get(name)
        return await call_driver(self.publisher, plugin, method, body, consumer, within, self._timeouts)

    async def call(self, name: str, method: str, body: bytes, within: float) -> PluginResponse:
        """What a plugin answers to a call, paths of volumes as the host's.

        Raises: Conflict, Invalid, InvalidResponse, Unavailable.
        """
        plugin = self._plugins.get(name)
        await self._wait_restored(plugin)
        if plugin.state is not State.READY:
            raise errors.Conflict(f"cannot call plugin {plugin.name}: it is {plugin.state.value}")
        if not plugin.config.interface.is_http:
            scheme = plugin.config.interface.protocol_scheme
            raise errors.Invalid(f"cannot call plugin {plugin.name}: it speaks {scheme}, not HTTP")
        socket, within = plugin.directories.socket(plugin.config), within or self._timeouts.call
        return with_host_paths(plugin, method, await call(socket, method, body, within, plugin=plugin.name))

    @asynccontextmanager
    async def execute(self, name: str, command: "ExecCommand") -> "AsyncIterator[AddedProcess]":
        """A process beside the plugin's own, until the block ends. Raises: Conflict where nothing runs, Invalid."""
        plugin, runtime = self._plugins.get(name), await self._availability.wait()
        await plugin.inbox.wait_known()
        async with plugin.processes.run(runtime, command) as added:
            yield added

    @asynccontextmanager
    async def read_files(self, name: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Files of a plugin as a tar. Raises: Conflict where nothing runs, NotFound, Unsupported."""
        plugin, runtime = self._plugins.get(name), await self._availability.wait()
        await plugin.inbox.wait_known()
        async with FileCopies(plugin, self._context.store.root).read(runtime, path) as chunks:
            yield chunks

    async def write_files(self, name: str, path: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar into a directory of a plugin. Raises: Conflict where nothing runs, NotFound, Invalid."""
        plugin, runtime = self._plugins.get(name), await self._availability.wait()
        await plugin.inbox.wait_known()
        await FileCopies(plugin, self._context.store.root).write(runtime, path, archive)

    async def replace_package(self, name: str, package: AsyncIterator[bytes], change: ChangeTerms) -> Sequence[str]:
        """Give a plugin another package; settings that were dropped. Raises: Conflict, Denied, Invalid, Unavailable."""
        return await self.packages.replace_package(name, package, change)

    async def signal(self, name: str, number: int) -> None:
        """Signal its first process. Raises: Conflict where nothing runs."""
        plugin, runtime = self._plugins.get(name), await self._availability.wait()
        await plugin.inbox.wait_known()
        run = plugin.run
        if run is None or run.finished.is_set():
            raise errors.Conflict(f"cannot signal plugin {plugin.name}: it is {plugin.state.value}")
        try:
            await runtime.executor.signal(run.container, number)
        except errors.NotFound as error:
            raise errors.Conflict(f"cannot signal plugin {plugin.name}: it does not run any more") from error

    async def resize(self, name: str, exec_id: str, rows: int, columns: int) -> None:
        """The size of the terminal of an added process. Raises: NotFound."""
        await self._plugins.get(name).processes.get(exec_id).resize(rows, columns)

    async def acquire(self, name: str, owner: str, *, is_attached: bool) -> Holder:
        """Note a user of it. Raises: Conflict where it is disabled."""
        return await acquire(self._plugins.get(name), owner, is_attached=is_attached)

    async def wait_release_requested(self, name: str, token: str) -> None:
        """Return when a forced stop asks this attached user to release it, or when it is no user any more."""
        if (request := self._plugins.get(name).connected.find_request(token)) is not None:
            await request.wait()

    async def release(self, name: str, token: str) -> None:
        """Remove a user of it. Raises: NotFound."""
        await release(self._plugins.get(name), token)

    def running(self) -> int:
        """How many plugins run."""
        return sum(plugin.is_running for plugin in self._plugins.all())

    async def stop_all(self, kill_now: anyio.Event | None = None) -> Sequence[str]:
        """Stop every plugin, all at once, and remove their mounts; what is enabled stays so. What failed, as text.

        When ``kill_now`` is set they are killed instead of waited for.
        """
        problems: list[str] = []
        self._context.kill_now = kill_now

        async def stop(plugin: Supervisor) -> None:
            try:
                await plugin.shut_down()
            except errors.MoorageError as error:
                problems.append(str(error))

        async with anyio.create_task_group() as tasks:
            for plugin in self._plugins.all():
                if plugin.state is not State.REMOVING:
                    tasks.start_soon(stop, plugin)
        return problems

    # reports

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        """The executor reports the exit of a run: the plugin's inbox continues from here.

        The run is removed when this returns. Where a standby is started, that comes first: both take the processors.
        """
        plugin = self._plugins.find_id(id.partition(".")[0])
        if plugin is not None:
            plugin.handle_exit(id, exit)
            await plugin.standby.wait_started()

    @asynccontextmanager
    async def run_on(self, runtime: ContainerRuntime, address: str, *, start: bool) -> AsyncIterator[None]:
        """Run plugins on this containerd for the length of the block; first take over what runs there.

        ``start`` also starts what is enabled. Raises: Conflict for a namespace of another engine.
        """
        owners = await self._restore.claim(runtime)
        self._address = address
        self._availability.set(runtime)
        try:
            await self._restore.restore(owners, start=start)
            yield
        finally:
            self._availability.set(None, "the engine is being stopped")
            for plugin in self._plugins.all():
                plugin.inbox.forget_run()

    def set_problem(self, problem: str, is_lasting: bool = False) -> None:
        """Say why plugins cannot be started or stopped; empty where they can be again."""
        self._availability.set_problem(problem, is_lasting=is_lasting)

    async def settle(self) -> None:
        """Return when containerd runs, all that ran at the start is taken over, and all published sockets listen."""
        while self._availability.runtime is None:
            await self._availability.changed()
        for plugin in self._plugins.all():
            await plugin.inbox.wait_restored()
        await self.publisher.settled()

    async def _wait_restored(self, plugin: Supervisor) -> None:
        """Return when what ran of a plugin is taken over, at most after ``containerd_wait``."""
        with anyio.move_on_after(self._availability.longest_wait):
            await plugin.inbox.wait_restored()

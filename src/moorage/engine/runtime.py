"""What an engine works with: the containerd that its plugins run on, while it runs, and what its parts share."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct, field

from moorage import errors
from moorage._lib.imports import collector_paused
from moorage._lib.inbox import Inboxes
from moorage._lib.threads import run_blocking
from moorage.executor import Executor, ExitHandler, open_executor
from moorage.logs.keeper_client import KeeperClient
from moorage.oci_runtime.choice import OciRuntime
from moorage.packages.content import LEASE_PREFIX, end_lease
from moorage.timeouts import Timeouts

if TYPE_CHECKING:
    from moorage.containerd import CallObserver, Client
    from moorage.containerd.containers import BundledContainers
    from moorage.containerd.storage import Storage
    from moorage.engine.consumers.publisher import Publisher
    from moorage.engine.grants import GrantPolicy
    from moorage.engine.plugin import PluginIndex
    from moorage.engine.store import Store
    from moorage.engine.supervisor import Supervisor
    from moorage.engine.telemetry import EngineCounters, EventLog
    from moorage.runs.plan import PlanOptions
from collections.abc import Mapping

__all__ = (
    "ENGINE_LABEL",
    "PLUGIN_LABEL",
    "ContainerRuntime",
    "EngineContext",
    "Owners",
    "Ownership",
    "RuntimeAvailability",
    "open_runtime",
    "plugin_of",
)

log = logging.getLogger(__name__)

ENGINE_LABEL = "moorage.engine"
"""Label of everything that an engine creates: the id of the engine, which its data directory records."""

PLUGIN_LABEL = "moorage.plugin"
"""Label of a container, and of an image record: the id of the plugin that it belongs to."""

Owners = Mapping[str, str]
"""The containers of an engine, each with the id of the plugin that it belongs to."""


class Ownership:
    """What belongs to one engine in containerd, defined once.

    Everything that an engine creates there bears its identity: containers, images, leases, snapshots and content in a
    label, uploads, which have none, in the prefix of their refs. What bears another engine's identity is never changed,
    whether that engine runs or not. What bears none is this engine's only where its records name the plugin (earlier
    versions wrote no identity); everything else is reported and left alone.

    Source: docs/adr/0023-what-an-engine-owns.md.
    """

    def __init__(self, engine_id: str, is_recorded: Callable[[str], bool]) -> None:
        """``is_recorded``: whether there is a record of the plugin with this id, also one that cannot be read."""
        self.engine_id = engine_id
        self._is_recorded = is_recorded

    @property
    def marks(self) -> Mapping[str, str]:
        """Labels of everything that this engine creates."""
        return {ENGINE_LABEL: self.engine_id}

    @property
    def ref_prefix(self) -> str:
        """What the refs of this engine's uploads begin with."""
        return f"{LEASE_PREFIX}{self.engine_id}-"

    def mark(self, storage: "Storage") -> "Storage":
        """The storage, through which everything is created as this engine's."""
        return storage.marked(self.marks, self.ref_prefix)

    def owns(self, labels: Mapping[str, str], container: str = "") -> bool:
        """Whether an object with these labels is this engine's; ``container``: its id, where it is one."""
        engine = labels.get(ENGINE_LABEL)
        if engine is not None:
            return engine == self.engine_id
        return self._is_recorded(plugin_of(labels, container))

    def is_recorded(self, plugin: str) -> bool:
        """Whether there is a record of the plugin with this id, also one that cannot be read."""
        return self._is_recorded(plugin)


def plugin_of(labels: Mapping[str, str], container: str = "") -> str:
    """The id of the plugin that an object belongs to, as its label or the id of the container says."""
    return labels.get(PLUGIN_LABEL) or container.partition(".")[0]


class ContainerRuntime(Struct, frozen=True):
    """Everything of one containerd that an engine uses, and who keeps the output."""

    client: "Client"
    containers: "BundledContainers"
    executor: Executor
    keeper: KeeperClient
    ownership: Ownership
    oci_runtime: OciRuntime
    """For new containers."""
    creating: anyio.CapacityLimiter
    """Creations at once: more than this only make each other slow."""
    leases: set[str] = field(default_factory=set)
    """Those of what is under way."""
    gate: anyio.Lock = field(default_factory=anyio.Lock)
    """Held where a lease begins, and by what must not see one begin."""

    @property
    def version(self) -> str:
        """The version of containerd, as of the last connection."""
        return self.client.last_version

    @property
    def storage(self) -> "Storage":
        """Content, images, snapshots, leases; all that is created through it is marked as this engine's."""
        return self.ownership.mark(self.client.storage)

    async def owners(self, plugin: str = "") -> dict[str, str]:
        """Every container of this engine, with the id of the plugin that it belongs to.

        Of one plugin only those that may be its: they say so, or their id begins with the plugin's. Of some there is
        only the directory: the engine was killed before it had made the record, or after it had deleted it.
        """
        filters = (f'labels."{PLUGIN_LABEL}"=={plugin}', f"id~=^{plugin}") if plugin else ()
        directories = await self.containers.directories()  # first: what is removed meanwhile has no record either
        records = await self.client.list_containers(*filters)
        found = {each: plugin_of({}, each) for each in set(directories).difference(each.id for each in records)}
        return {
            **{id: owner for id, owner in found.items() if plugin in ("", owner)},
            **{
                each.id: plugin_of(each.labels, each.id)
                for each in records
                if self.ownership.owns(each.labels, each.id)
            },
        }

    async def destroy(self, container: str) -> None:
        """Kill and remove a container of this engine that is not of an executor."""
        log.warning("removing container %s, which belongs to no run of a plugin", container)
        await self.containers.delete_task(container)
        await self.containers.delete(container)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[str]:
        """The id of a lease for the length of the block; whatever only it holds is collected before this returns.

        Otherwise that stays until containerd has a reason of its own to collect: after a failure there may be no room
        for a next try, and what was removed within the block has been held by this lease only.
        """
        id = f"{LEASE_PREFIX}{secrets.token_hex(8)}"
        async with self.gate:
            self.leases.add(id)
        try:
            await self.storage.create_lease(id)
            yield id
        finally:
            await end_lease(self.storage, id)
            self.leases.discard(id)

    async def delete_image(self, name: str, plugin: str) -> None:
        """Remove the image record of a plugin, and what only it referenced; one of another owner stays.

        Raises: NotFound where there is none.
        """
        labels = (await self.storage.get_image(name)).labels
        if not self.ownership.owns(labels) or plugin_of(labels) != plugin:
            log.warning("leaving image %s alone: it is not of plugin %s of this engine", name, plugin)
            return
        await self.storage.delete_image(name, collect=True)

    async def drop_stale_leases(self) -> None:
        """Delete the leases that this engine left when it was killed, and collect what only they held."""
        marks = self.ownership.marks.items()
        found = await self.storage.list_leases()
        stale = [id for id, labels in found.items() if id.startswith(LEASE_PREFIX) and marks <= labels.items()]
        for id in stale:
            await self.storage.delete_lease(id)
        if stale:
            await self.storage.collect()


class RuntimeAvailability:
    """Whether there is a runtime to run plugins on, and why not; calls wait for it, bounded."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._runtime: ContainerRuntime | None = None
        self._problem = "containerd is not running yet"
        self._is_lasting = False
        self._changed = anyio.Event()

    @property
    def runtime(self) -> ContainerRuntime | None:
        """The runtime, also while there is a problem with it; None where there is none."""
        return self._runtime

    @property
    def problem(self) -> str:
        """Why plugins cannot be started or stopped; empty when they can."""
        return self._problem

    @property
    def longest_wait(self) -> float:
        """How many seconds a call waits for what needs containerd; 0 where only an operator can change that."""
        return 0.0 if self._is_lasting else self._timeouts.containerd_wait

    def set(self, runtime: ContainerRuntime | None, problem: str = "") -> None:
        """There is this runtime from now on, or none because of the problem."""
        self._runtime = runtime
        self.set_problem(problem)

    def set_problem(self, problem: str, *, is_lasting: bool = False) -> None:
        """Plugins cannot be started or stopped for this reason; empty when they can again.

        ``is_lasting``: it stays until an operator does something, so that no call waits for that.
        """
        self._problem, self._is_lasting = problem, is_lasting
        self._changed.set()
        self._changed = anyio.Event()

    def require(self) -> ContainerRuntime:
        """The runtime. Raises: Unavailable while there is none, or a problem with it."""
        if self._runtime is None or self._problem:
            raise errors.Unavailable(f"cannot do that now: {self._problem}")
        return self._runtime

    async def wait(self) -> ContainerRuntime:
        """The runtime, waited for at most ``containerd_wait``. Raises: Unavailable."""
        with anyio.move_on_after(self._timeouts.containerd_wait):
            while (self._runtime is None or self._problem) and not self._is_lasting:
                await self._changed.wait()
        return self.require()

    async def changed(self) -> None:
        """Return when the runtime, or the problem with it, has changed."""
        await self._changed.wait()


def _find_client() -> "tuple[Callable[..., AbstractAsyncContextManager[Client]], type[BundledContainers]]":
    """gRPC is imported beside the loop, which has an API to serve, where the supervisor has not done so before."""
    with collector_paused():
        from moorage.containerd import connect
        from moorage.containerd.containers import BundledContainers

        return connect, BundledContainers


@asynccontextmanager
async def open_runtime(
    address: str,
    directory: Path,
    namespace: str,
    handler: ExitHandler,
    keeper: KeeperClient,
    timeouts: Timeouts,
    ownership: Ownership,
    oci_runtime: OciRuntime,
    observer: "CallObserver | None" = None,
    *,
    systemd_cgroup: bool = False,
) -> AsyncIterator[ContainerRuntime]:
    """The runtime of the containerd at this socket, until the block ends.

    Bundles are below ``directory``; ``oci_runtime`` runs containers that are created from now on.

    ``observer`` is called after every call. With ``systemd_cgroup``, systemd creates the control groups of new runs.

    Raises: Unavailable where it cannot be reached.
    """
    connect, make_containers = await run_blocking(_find_client)
    options = oci_runtime.options(directory, systemd_cgroup=systemd_cgroup)
    async with connect(address, namespace, timeouts, observer) as client:
        await client.version()
        containers = make_containers(client, directory, runtime=options, timeouts=timeouts)
        # each run has a container id and a control group of its own, so that the next one need not wait for a removal
        async with open_executor(containers, handler, runtime=options, timeouts=timeouts, exits_early=True) as executor:
            creating = anyio.CapacityLimiter((os.cpu_count() or 1) + 1)
            yield ContainerRuntime(client, containers, executor, keeper, ownership, oci_runtime, creating)


class EngineContext:
    """Everything that the parts of one engine share."""

    def __init__(
        self,
        plugins: "PluginIndex[Supervisor]",
        store: "Store",
        events: "EventLog",
        meter: "EngineCounters",
        tasks: TaskGroup,
        timeouts: "Timeouts",
        consent: "GrantPolicy",
        defaults: "PlanOptions",
        publisher: "Publisher",
    ) -> None:
        """``tasks`` is the group of everything that the engine does in the background; it is cancelled at its exit."""
        self.store = store
        self.events = events
        self.tasks = tasks
        self.timeouts = timeouts
        self.consent = consent
        self.defaults = defaults
        """How plugins run whose records do not say otherwise."""
        self.publisher = publisher
        self.meter = meter
        self.plugins = plugins
        self.availability = RuntimeAvailability(timeouts)
        self.inboxes: Inboxes[str] = Inboxes(tasks)
        """One for each plugin, by its id. A plugin's supervisor is the only one that uses its inbox."""
        self.kill_now: anyio.Event | None = None
        """During a shutdown: when it is set, plugins are killed instead of waited for."""

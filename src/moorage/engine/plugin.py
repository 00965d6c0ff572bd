"""What is known of plugins: which one a text means, and the record, state, run and holders of each."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.consumers.holders import ConnectedHolders, mount_holders
from moorage.engine.consumers.names import is_kind
from moorage.engine.consumers.tables import find_mount_points
from moorage.engine.lifecycle import Event, LifecycleState, State, move
from moorage.engine.requests import StartControl
from moorage.engine.run.effective_values import EffectiveValues
from moorage.engine.run.plugin_run import PluginRun
from moorage.engine.run.ready_time import ReadyTime
from moorage.engine.run.standby import Standby
from moorage.engine.runner import Runner
from moorage.engine.store import Store
from moorage.engine.telemetry import EngineCounters, EventLog, PluginCounters, log_event
from moorage.engine.values import Holder, PluginRecord, PluginView
from moorage.health.supervision import HealthSupervision
from moorage.host.sockets import PluginSocket
from moorage.logs.reader import PluginLog
from moorage.plugins import (
    Config,
    Confinement,
    Settings,
    parse_config,
    parse_reference,
)
from moorage.proxy.protocol import VolumeMount
from moorage.runs.directories import PluginDirectories
from moorage.runs.plan import PlanOptions
from moorage.runs.removal import MountPoint

if TYPE_CHECKING:
    from moorage.engine.consumers.publisher import Publisher

__all__ = (
    "PluginIndex",
    "PluginState",
)

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{64}")
_BEGINNING = re.compile(r"[0-9a-f]{1,64}")


class PluginState:
    """The state of one plugin. What is public here only reads; the rest is for ``Supervisor``, which is a plugin."""

    health: HealthSupervision
    standby: Standby
    """Both are made by ``Supervisor``."""

    def __init__(
        self,
        record: PluginRecord,
        directories: PluginDirectories,
        log: PluginLog,
        store: Store,
        events: EventLog,
        meter: EngineCounters,
        defaults: PlanOptions,
        publisher: "Publisher | None" = None,
    ) -> None:
        """``defaults``: the engine's confinement, where the record has none, and whether runs share a shim.
        ``publisher`` is notified of each change; what it has is the same for all plugins of an engine.

        Raises: Invalid where the record's config is invalid.
        """
        self._record = record
        self._config = parse_config(record.config.encode(), is_stored=True).config
        self.directories = directories
        self.log = log
        self._store, self._events = store, events
        self._defaults = defaults
        self._effective = EffectiveValues(record, self._config, defaults.confinement)
        self._publisher = publisher
        self.counts = PluginCounters(meter)
        self.runner = Runner(self)
        self.connected = ConnectedHolders()
        self.starts = StartControl()
        self._life = LifecycleState(State.REMOVING) if record.removing else LifecycleState(failures=record.failures)
        self._problem = ""
        self._mounts: tuple[VolumeMount, ...] = ()
        self.removed = anyio.Event()
        """Set when it is being removed: it has stopped permanently, and all its output is in its log."""
        if record.removing:
            self.removed.set()
        self._ready = ReadyTime()

    @property
    def record(self) -> PluginRecord:
        """What is on disk."""
        return self._record

    @property
    def config(self) -> Config:
        """Its config.json, parsed."""
        return self._config

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its local name, always with a tag."""
        return self._record.name

    def is_called(self, name: str | None) -> bool:
        """Whether this local name is one of its names."""
        return name == self._record.name or name in self._record.tags

    @property
    def state(self) -> State:
        """Its actual state."""
        return self._life.state

    @property
    def problem(self) -> str:
        """Why it is in this state, where that needs an explanation."""
        return self._problem

    @property
    def run(self) -> PluginRun | None:
        """Its present run."""
        return self.runner.run

    @property
    def is_running(self) -> bool:
        """Whether it has a run that has not exited."""
        return self.run is not None and not self.run.finished.is_set()

    @property
    def is_enabled(self) -> bool:
        """The desired state, as far as it was reached once."""
        return self._record.enabled and not self.starts.is_requested

    @property
    def is_ready(self) -> bool:
        """Whether its socket accepts."""
        return self.state is State.READY

    def plugin_socket(self) -> PluginSocket:
        """The socket on which it listens."""
        return self.directories.socket(self._config)

    @property
    def settings(self) -> Settings:
        """The settings of its next run."""
        return self._effective.settings

    @property
    def confinement(self) -> Confinement:
        """The confinement of its next run: every field has a value."""
        return self._effective.confinement

    @property
    def id_base(self) -> int:
        """First host id of its user namespace; 0 where it has none of its own."""
        return self._record.id_base if self.confinement.userns == "auto" else 0

    @property
    def plan_options(self) -> PlanOptions:
        """How the run that the record names differs from one by ``moorage run``."""
        shows = self._record.published is not None and is_kind(self._config, "logdriver")
        defaults = replace(self._defaults, container=self._record.container, shows_log_directory=shows)
        return replace(defaults, confinement=self.confinement, id_base=self.id_base)

    def holders(self) -> tuple[Holder, ...]:
        """Every user, also consumers with mounts."""
        return (*self._record.holders, *self.connected.all(), *mount_holders(self._mounts))

    def check_unused(self, *, force: bool) -> None:
        """Raises: Conflict naming who uses it, unless forced."""
        if not force and (users := self.holders()):
            owners = ", ".join(sorted({user.owner for user in users}))
            raise errors.Conflict(f"plugin {self.name} is in use by {owners}")

    def take_mounts(self, mounts: tuple[VolumeMount, ...]) -> None:
        """The plugin proxy reports what consumers have mounted."""
        self._mounts = mounts

    def mount_points(self) -> tuple[MountPoint, ...]:
        """Where file systems of the plugin are that consumers have mounted, as far as the plugin proxy has said."""
        return find_mount_points(self, self._mounts)

    async def wait_mount_points(self) -> tuple[MountPoint, ...] | None:
        """The same, after a start of the engine when the plugin proxy has said it; None if it has not in time."""
        if self._publisher is not None and not await self._publisher.wait_news():
            return None
        return self.mount_points()

    def check_unmounted(self, *, force: bool) -> None:
        """Raises: Conflict naming the consumers that have mounted volumes, unless forced."""
        if not force and (users := mount_holders(self._mounts)):
            raise errors.Conflict(f"plugin {self.name} is in use by {'; '.join(user.owner for user in users)}")

    def view(self) -> PluginView:
        """The plugin at this instant."""
        record, run = self._record, self.run if self.is_running else None
        return PluginView(
            id=record.id,
            name=record.name,
            reference=record.reference,
            enabled=self.is_enabled,
            state=self.state,
            config=self._config,
            settings=self.settings,
            privileges=self._effective.shown_privileges,
            ungranted=self._effective.ungranted,
            restarts=record.restarts,
            last_exit=record.last_exit,
            next_try_at=record.next_try_at if self.state is State.RESTARTING else None,
            ready_at=self._ready.at,
            started_at=run.started_at if run is not None else None,
            pid=run.pid if run is not None else None,
            standby_pid=self.standby.pid,
            control_group=run.control_group if run is not None else "",
            runtime=run.runtime if run is not None else "",
            socket=str(self.directories.socket_directory / self._config.interface.socket),
            policy=record.policy,
            health_policy=record.health,
            health=self.health.state,
            confinement=self.confinement,
            widenings=self._effective.widenings,
            holders=self.holders(),
            problem=self._problem,
            warnings=record.warnings,
            digest=record.digest,
            tags=record.tags,
            published=record.published,
            mounts=self._mounts,
            applied_by=record.applied_by,
            labels=record.labels,
        )

    # for the supervisor

    async def save(self, **fields: object) -> None:
        """Change these fields of the record, on disk first. Raises: Unavailable, Invalid: then nothing is changed."""
        record = self._changed(**fields)
        await run_blocking(lambda: self._store.save(record))
        self._change(record)

    async def _save_or_log(self, **fields: object) -> None:
        """As ``save``; what is known in memory anyway must not prevent a restart where the disk is full."""
        try:
            await self.save(**fields)
        except errors.Unavailable as error:
            log.error("%s", error)
            self._change(self._changed(**fields))

    def set_problem(self, problem: str) -> None:
        """Why it is in its state, as text; empty where that needs no explanation."""
        self._problem = problem

    def report(self, action: str, /, *, name: str = "", **attributes: str) -> None:
        """Publish an event of the plugin, under the name that the caller used; its labels are attributes, too."""
        labels = {key: value for key, value in self._record.labels.items() if key != "name"}
        self._events.publish(action, self.id, name or self.name, **{**labels, **attributes})
        log_event(self.name, action, attributes)

    def _move(self, event: Event) -> None:
        """Take the step that the state table has. Raises: Conflict where it has none."""
        self._become(move(self._life, event), event)

    def _become(self, life: LifecycleState, event: Event | None = None) -> None:
        """Take this life, to which the event led, and note since when it is ready."""
        self.counts.stepped(self._life.state, event)
        self._life = life
        self._ready.leave()
        if life.state is State.REMOVING:
            self.removed.set()
        if life.state is State.READY:
            self._ready.begin()
        self.notify_publisher()

    def _change(self, record: PluginRecord) -> None:
        """Take this record, which has the same id. Raises: Invalid for its config, and then nothing is changed."""
        if record.config != self._record.config:
            self._config = parse_config(record.config.encode(), is_stored=True).config
        self._record = record
        self._effective = EffectiveValues(record, self._config, self._defaults.confinement)
        self.notify_publisher()

    def notify_publisher(self) -> None:
        """The plugin proxy is to know what has changed."""
        if self._publisher is not None:
            self._publisher.changed()

    def _changed(self, **fields: object) -> PluginRecord:
        """The record with these fields changed; nothing is saved, and nothing changes here."""
        return replace(self._record, **fields)


AnyPlugin = TypeVar("AnyPlugin", bound=PluginState)


class PluginIndex(Generic[AnyPlugin]):
    """The supervisors of one engine, by id and by name. A name is taken from the moment it is reserved.

    Which plugin a text means: full id, then name (default tag added), then unique beginning of an id.
    """

    def __init__(self) -> None:
        self._plugins: dict[str, AnyPlugin] = {}
        self._reserved: set[str] = set()

    def all(self) -> list[AnyPlugin]:
        """Every plugin, by name."""
        return sorted(self._plugins.values(), key=lambda plugin: plugin.name)

    def add(self, plugin: AnyPlugin) -> None:
        """Add a plugin."""
        self._plugins[plugin.id] = plugin

    def discard(self, plugin: AnyPlugin) -> None:
        """Remove a plugin."""
        del self._plugins[plugin.id]

    def find_id(self, id: str) -> AnyPlugin | None:
        """The plugin with exactly this id."""
        return self._plugins.get(id)

    def find_called(self, local: str) -> AnyPlugin | None:
        """The plugin with this local name, tag included, as one of its names."""
        return next((plugin for plugin in self.all() if plugin.is_called(local)), None)

    def get(self, text: str) -> AnyPlugin:
        """The plugin that is meant. Raises: NotFound; Invalid for the beginning of several ids.

        Source: the lookup of the Docker daemon, texts included.
        """
        if text in self._plugins:
            return self._plugins[text]
        if not _ID.fullmatch(text):
            name = _local_name(text)
            for plugin in self._plugins.values():
                if plugin.is_called(name):
                    return plugin
            if _BEGINNING.fullmatch(text):
                found = [plugin for id, plugin in self._plugins.items() if id.startswith(text)]
                if len(found) == 1:
                    return found[0]
                if found:
                    raise errors.Invalid(f'multiple plugins found for "{text}"')
        raise errors.NotFound(f'plugin "{text}" not found')

    @contextmanager
    def reserve(self, name: str) -> Iterator[None]:
        """Reserve a name for a plugin that is being created. Raises: Conflict where it is taken."""
        if name in self._reserved or any(plugin.is_called(name) for plugin in self._plugins.values()):
            raise errors.Conflict(f"plugin {name} already exists")
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)


def _local_name(text: str) -> str | None:
    try:
        reference = parse_reference(text)
    except errors.Invalid:
        return None
    return None if reference.digest else reference.local_name

"""Values of an engine, all frozen: what is on disk of each plugin, and what the API returns of it."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from msgspec import Struct, field

from moorage._lib.values import repr_without
from moorage.engine.lifecycle import DEFAULT_POLICY, RestartPolicy, State
from moorage.executor import Exit
from moorage.health.model import NO_HEALTH, HealthPolicy, HealthState
from moorage.packages.content import StoredPackage
from moorage.plugins import (
    BUILT_IN,
    NO_CONFINEMENT,
    NO_OVERRIDES,
    CgroupDriver,
    Config,
    Confinement,
    Overrides,
    Privilege,
    Settings,
)
from moorage.proxy.protocol import PublishOptions, VolumeMount
from moorage.registry.hosts import Options

__all__ = (
    "PUBLISH_DIRECTORY",
    "SCHEMA",
    "EngineIdentity",
    "EngineInfo",
    "Holder",
    "InstallOptions",
    "LastExit",
    "PluginEvent",
    "PluginRecord",
    "PluginTerms",
    "PluginVersion",
    "PluginView",
    "Publication",
)

SCHEMA = 1
"""Version of everything in the data directory."""


PUBLISH_DIRECTORY = Path("/run/docker/plugins")
"""Where dockerd looks for sockets of plugins."""


class LastExit(Struct, frozen=True):
    """How the last run of a plugin exited, or why it could not be started."""

    code: int | None = None
    """Exit status, 128 + n for signal n; None where it is unknown, or nothing ran."""
    signal: str | None = None
    oom: bool = False
    at: datetime | None = None
    error: str = ""
    """Why it did not start or become ready; empty for a plain end."""

    @classmethod
    def of(cls, exit: Exit, error: str = "") -> "LastExit":
        """An exit as the record has it."""
        return cls(exit.code, exit.signal, exit.oom, exit.exited_at, error)


class Holder(Struct, frozen=True):
    """A user of a plugin. As long as there is one, disable and remove are refused."""

    token: str
    owner: str
    since: datetime


class Publication(Struct, frozen=True):
    """How a plugin is published to consumers. The directory of its sockets is the engine's."""

    names: tuple[str, ...]
    """Names of its sockets, without ``.sock``: unique among the plugins of an engine."""
    group: str = ""
    """Whose members may connect, besides root; empty for none."""
    mode: int = 0o600
    """Of the sockets."""
    options: PublishOptions = PublishOptions()
    podman: bool | None = None
    """Whether it is written into podman's configuration; None where podman is installed."""


class PluginView(Struct, frozen=True):
    """One plugin at one instant. Secret settings are in here: only ``settings_to_api`` may show ``settings``."""

    id: str
    name: str
    reference: str
    """Where it came from, in full; the local name for one made here."""
    enabled: bool
    """The desired state."""
    state: State
    config: Config
    settings: Settings
    privileges: tuple[Privilege, ...] = ()
    """What it requests with its settings; secrets are masked."""
    ungranted: tuple[Privilege, ...] = ()
    """What of it was never granted, so that it cannot be enabled."""
    restarts: int = 0
    """Automatic restarts since the user's last enable."""
    last_exit: LastExit | None = None
    next_try_at: datetime | None = None
    ready_at: datetime | None = None
    """Since when its socket accepts, as this engine saw it; None unless ready."""
    started_at: datetime | None = None
    """When its present process began, whichever engine started it; None where none runs."""
    pid: int | None = None
    control_group: str = ""
    """Path of the control group of its present run, the same in every hierarchy; empty where none runs."""
    runtime: str = ""
    """The OCI runtime that its present run was created with, by name or path; empty where none runs."""
    standby_pid: int | None = None
    """The process that is to become its next run; None without a standby."""
    socket: str = ""
    """The host's path of its socket, there or not."""
    policy: RestartPolicy = DEFAULT_POLICY
    health_policy: HealthPolicy = NO_HEALTH
    health: HealthState | None = None
    """What its checks say; None where it has none, or is not ready."""
    confinement: Confinement = BUILT_IN
    """Resolved: every field has a value."""
    widenings: tuple[Privilege, ...] = ()
    """What its confinement grants it beyond the default."""
    holders: tuple[Holder, ...] = ()
    problem: str = ""
    """Why it is as it is, where that needs words: what a removal waits for, why a record cannot be used."""
    warnings: tuple[str, ...] = ()
    """What was odd about its config when it was created."""
    digest: str = ""
    """Of the manifest of its package."""
    tags: tuple[str, ...] = ()
    """Its further names."""
    published: Publication | None = None
    """How consumers reach it; None where it is not published."""
    mounts: tuple[VolumeMount, ...] = ()
    """What consumers have mounted through the plugin proxy and not given back."""
    applied_by: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    __repr__ = repr_without("settings")


class PluginEvent(Struct, frozen=True):
    """One event, as GET /events returns it: create, pull, enable, disable, upgrade, remove, ready, die, restart, ..."""

    action: str
    id: str
    name: str
    at: datetime
    attributes: dict[str, str] = field(default_factory=dict)
    """More than the name: ``code``, ``oom``, ``signal``, ``seconds``, ..."""
    nanoseconds: int = 0
    """The instant once more, since 1970."""


class EngineInfo(Struct, frozen=True):
    """The engine as a whole."""

    root: str
    namespace: str
    containerd: str
    """``private``, ``system`` or an address, as it was chosen at the first start."""
    containerd_address: str
    containerd_version: str
    """Empty while containerd is unavailable."""
    problem: str
    """Why plugins cannot be started or stopped right now; empty when they can."""
    snapshotter: str
    started_at: datetime
    engine_id: str
    """Stays over restarts."""
    live_restore: bool = True
    """Whether plugins continue to run when the engine exits, and are taken over by the next one."""
    exec_root: str = ""
    """The directory of its run-time files."""
    cgroup_driver: CgroupDriver = "cgroupfs"
    """Who creates the control groups of new runs."""
    notices: tuple[str, ...] = ()
    """What it found at its start and left alone: damaged records, objects in its namespace that are not its own."""
    registries: Options = field(default_factory=Options)
    runtime: str = ""
    """The OCI runtime of plugins that are started now, by name or path; empty while containerd is unavailable."""
    runtime_version: str = ""
    """The first line of its --version."""
    runtime_reason: str = ""
    """Why this one."""
    listeners: int = 0
    """Clients that receive events now."""


class InstallOptions(Struct, frozen=True):
    """On what a user agrees to a package, and how he wants it."""

    granted: tuple[Privilege, ...] | None = ()
    """Exactly what it may ask for; None for whatever it asks."""
    is_attended: bool = False
    """A person saw what is requested and agreed, so the policy for unattended installs does not apply."""
    assignments: tuple[str, ...] = ()
    """Settings for a new plugin, all or none."""
    secrets: tuple[str, ...] = ()
    once: bool = False
    """A plugin of this name that is from there and has these settings is as good as a new one."""
    applied_by: str = ""
    """Identity of the file of apply that a new plugin is made for."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of a new plugin."""

    __repr__ = repr_without("assignments", "secrets")


class PluginVersion(Struct, frozen=True):
    """What an upgrade changes of a plugin; each field as the record has it."""

    reference: str
    config: str
    image: str
    digest: str
    snapshotter: str
    snapshot: str
    overrides: Overrides
    warnings: tuple[str, ...]
    granted: tuple[Privilege, ...] | None = None
    """What was granted to it; None in a record of a version that did not note that."""
    attended: tuple[Privilege, ...] = ()
    """What of it a person granted after it was shown."""

    __repr__ = repr_without("config", "overrides", "granted", "attended")

    @classmethod
    def of(cls, record: "PluginRecord") -> "PluginVersion":
        """The one that a record has."""
        return cls(**{name: getattr(record, name) for name in cls.__struct_fields__})

    def as_fields(self) -> dict[str, object]:
        """The fields of a record that has this version."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class PluginTerms(Struct, frozen=True):
    """What an apply changes of a plugin beside its version; each field as the record has it."""

    enabled: bool
    policy: RestartPolicy
    health: HealthPolicy
    confinement: Confinement
    attended_widenings: tuple[Privilege, ...]
    id_base: int
    published: Publication | None
    labels: Mapping[str, str] | None = None
    """None, as ``applied_by``, in a record of a version that did not change them."""
    applied_by: str | None = None

    @classmethod
    def of(cls, record: "PluginRecord") -> "PluginTerms":
        """Those that a record has."""
        return cls(**{name: getattr(record, name) for name in cls.__struct_fields__})

    def as_fields(self) -> dict[str, object]:
        """The fields of a record that has these terms."""
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        later = ("labels", "applied_by")
        return {name: value for name, value in found.items() if value is not None or name not in later}


class PluginRecord(Struct, frozen=True):
    """One plugin as it is on disk. Values that a user set stay out of ``repr``, and so of logs."""

    id: str
    name: str
    reference: str
    config: str
    """The text of its config.json."""
    image: str
    """Name of the image record that references its content and its root in containerd."""
    digest: str
    snapshotter: str
    snapshot: str
    """Key of the active snapshot that is its root."""
    created_at: datetime
    enabled: bool = False
    overrides: Overrides = NO_OVERRIDES
    policy: RestartPolicy = DEFAULT_POLICY
    health: HealthPolicy = NO_HEALTH
    confinement: Confinement = NO_CONFINEMENT
    """What the user said of its confinement; the rest is the engine's default."""
    attended_widenings: tuple[Privilege, ...] = ()
    """What of it gives more than the default and was granted by a person."""
    id_base: int = 0
    """First host id of its user namespace, from when it first had one; 0 before."""
    run: int = 0
    """Number of its last run; the run's container is ``<id>.<run>``."""
    restarts: int = 0
    failures: int = 0
    """Ends in a row, for the next pause."""
    last_exit: LastExit | None = None
    next_try_at: datetime | None = None
    holders: tuple[Holder, ...] = ()
    warnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Further names, by which it is found, too."""
    removing: bool = False
    """A removal was begun, and is to be finished."""
    granted: tuple[Privilege, ...] | None = None
    attended: tuple[Privilege, ...] = ()
    published: Publication | None = None
    """How consumers reach it; None where it is not published."""
    previous: PluginVersion | None = None
    """The version to go back to unless the present one, which an upgrade is trying out, becomes ready."""
    previous_terms: PluginTerms | None = None
    """The same beside the version, where an apply is trying out more than an upgrade does."""
    applied_by: str = ""
    """Identity of the file of apply that it belongs to; empty where it was made otherwise."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Texts of its users, by key."""
    schema: int = SCHEMA

    __repr__ = repr_without("config", "overrides", "granted", "attended")

    @property
    def container(self) -> str:
        """Id of the container of its last run."""
        return f"{self.id}.{self.run}"

    @property
    def next_container(self) -> str:
        """Id of the container of its next run."""
        return f"{self.id}.{self.run + 1}"

    @property
    def stored_package(self) -> StoredPackage:
        """Where its package is in containerd."""
        return StoredPackage(self.name, self.reference, self.digest, self.image, self.snapshotter, self.snapshot)


class EngineIdentity(Struct, frozen=True):
    """What was settled at the first start on a data directory, and never changes."""

    engine_id: str
    containerd: str
    """``private``, ``system`` or an address."""
    namespace: str
    is_claimed: bool = True
    """Whether the namespace was ever claimed for this engine; another choice is possible before."""
    exec_root: str = ""
    """The run-time directory of the last start, which commands use where none is given; empty before the first."""
    schema: int = SCHEMA

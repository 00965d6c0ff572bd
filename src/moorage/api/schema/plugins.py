"""Plugins: Docker's object, what Moorage adds to it, and what is sent to change one."""

from collections.abc import Mapping
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from moorage.api.schema.base import ApiObject
from moorage.api.schema.consumers import PluginMountUse, PluginPublication

__all__ = (
    "HolderLine",
    "HolderRequest",
    "HostPath",
    "LabelsRequest",
    "PackageReplacement",
    "PluginArgs",
    "PluginConfig",
    "PluginDetails",
    "PluginDevice",
    "PluginEnv",
    "PluginExtension",
    "PluginHolder",
    "PluginInterface",
    "PluginLastExit",
    "PluginLinux",
    "PluginMount",
    "PluginNetwork",
    "PluginPolicy",
    "PluginPrivilege",
    "PluginProcess",
    "PluginRootfs",
    "PluginSettings",
    "PluginUser",
    "PolicyRequest",
    "SetRequest",
)


class PluginPrivilege(ApiObject, frozen=True):
    """One privilege that a plugin requests; a description is for people only."""

    name: str
    description: str = ""
    value: list[str] = field(default_factory=list)


class PluginArgs(ApiObject, frozen=True):
    """The arguments of a config."""

    name: str
    description: str
    settable: list[str]
    value: list[str]


class PluginEnv(ApiObject, frozen=True):
    """An environment variable of a config; ``value`` is None where it has no default."""

    name: str
    description: str
    settable: list[str]
    value: str | None


class PluginMount(ApiObject, frozen=True):
    """A mount of a config or of settings; ``source`` is None where it is not set."""

    name: str
    description: str
    settable: list[str]
    source: str | None
    destination: str
    type: str
    options: list[str]


class PluginDevice(ApiObject, frozen=True):
    """A device of a config or of settings; ``path`` is None where it is not set."""

    name: str
    description: str
    settable: list[str]
    path: str | None


class PluginInterface(ApiObject, frozen=True, kw_only=True):
    """The socket of a plugin and the protocols that it implements there."""

    socket: str
    protocol_scheme: str | UnsetType = UNSET
    types: list[str]


class PluginLinux(ApiObject, frozen=True):
    """Capabilities and devices that a config requests."""

    allow_all_devices: bool
    capabilities: list[str]
    devices: list[PluginDevice]


class PluginNetwork(ApiObject, frozen=True):
    """The kind of network of a plugin."""

    type: str


class PluginUser(ApiObject, frozen=True):
    """User and group of the process; absent for 0."""

    uid: int | UnsetType = field(default=UNSET, name="UID")
    gid: int | UnsetType = field(default=UNSET, name="GID")


class PluginRootfs(Struct, frozen=True):
    """The layers of the root file system."""

    type: str
    diff_ids: list[str]


class PluginConfig(ApiObject, frozen=True, kw_only=True):
    """The config.json of a plugin."""

    args: PluginArgs
    description: str
    docker_version: str | UnsetType = UNSET
    documentation: str
    entrypoint: list[str]
    env: list[PluginEnv]
    interface: PluginInterface
    ipc_host: bool
    linux: PluginLinux
    mounts: list[PluginMount]
    network: PluginNetwork
    pid_host: bool
    propagated_mount: str
    user: PluginUser
    work_dir: str
    rootfs: PluginRootfs | UnsetType = field(default=UNSET, name="rootfs")


class PluginSettings(ApiObject, frozen=True):
    """What a user may change of a config, with present values; secrets are masked."""

    args: list[str]
    devices: list[PluginDevice]
    env: list[str]
    mounts: list[PluginMount]


class PluginLastExit(ApiObject, frozen=True):
    """How the last run ended, or why it did not start."""

    code: int | None
    """Exit status, 128 + n for signal n; None where it is unknown, or nothing ran."""
    signal: str | None
    oom: bool = field(name="OOM")
    at: str | None
    error: str
    """Why the plugin did not start or become ready; empty for a plain exit."""


class PluginHealthCheck(ApiObject, frozen=True, kw_only=True):
    """One health check: a connection, a call to the plugin, or a command inside it."""

    kind: Literal["connect", "call", "command"]
    method: str = ""
    """Of a call: VolumeDriver.List."""
    command: list[str] = field(default_factory=list)


class PluginHealthPolicy(ApiObject, frozen=True):
    """The health checks of a plugin; all times are seconds."""

    checks: list[PluginHealthCheck]
    """All of them must pass; none for a plugin without health checks."""
    interval: int | float
    timeout: int | float
    start_period: int | float
    """From ready; failures in it do not count."""
    failures: int
    """In a row, until the plugin is unhealthy."""
    on_failure: Literal["none", "kill", "restart"]


class HealthRequest(ApiObject, frozen=True, kw_only=True):
    """A change of the health checks; a field that is absent does not change."""

    checks: list[PluginHealthCheck] | UnsetType = UNSET
    interval: int | float | UnsetType = UNSET
    timeout: int | float | UnsetType = UNSET
    start_period: int | float | UnsetType = UNSET
    failures: int | UnsetType = UNSET
    on_failure: Literal["none", "kill", "restart"] | UnsetType = UNSET


class PluginHealthResult(ApiObject, frozen=True):
    """One check that was made."""

    start: str
    end: str
    exit_code: int
    """0 for a check that passed, else 1."""
    output: str


class HealthReport(ApiObject, frozen=True):
    """The health of a plugin, with Docker's names."""

    status: Literal["starting", "healthy", "unhealthy"]
    failing_streak: int
    log: list[PluginHealthResult]
    """The last five, the newest last."""


class PluginPolicy(ApiObject, frozen=True):
    """When a plugin is restarted, and what confines it; 0 is no limit."""

    restarts: str
    """always, on-failure or never."""
    most: int | None
    """Most restarts in a row; None for no limit."""
    stop_timeout: int | float | None
    """Seconds from SIGTERM to SIGKILL; None for the engine's default."""
    seccomp: str
    new_privileges: bool
    capabilities: str
    memory_bytes: int
    cpus: int | float
    pids: int
    init: bool
    apparmor: str = field(name="AppArmor")
    selinux_label: str
    read_only: bool
    userns: str
    oom_score_adj: int
    nice: int
    rlimits: dict[str, tuple[int, int]]
    """Soft and hard limit by name; -1 is unlimited."""
    health: PluginHealthPolicy | None = None
    """None from an engine of an earlier version."""
    log: str = "file"
    """Where its output goes besides its files: journald, syslog, or file for nowhere else."""
    standby: bool = False
    """Whether its next run is prepared while the present one runs."""


class PluginHolder(ApiObject, frozen=True):
    """A user of a plugin; while there is one, disable and remove are refused."""

    token: str
    """What releases the plugin."""
    owner: str
    since: str


class HolderLine(ApiObject, frozen=True, kw_only=True):
    """A line to an attached holder: first the holder, later an event that asks it to release the plugin."""

    token: str | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    since: str | UnsetType = UNSET
    event: Literal["stopping"] | UnsetType = UNSET


class PluginProcess(ApiObject, frozen=True):
    """A process of a plugin, by the pids of the host."""

    pid: int
    parent: int
    state: str
    command: str
    memory_bytes: int | None
    cpu_seconds: int | float | None
    threads: int | None
    started_at: str | None
    apparmor: str = field(name="AppArmor", default="")
    """The kernel's text: the profile that confines it and the mode, or unconfined; empty without AppArmor."""


class PluginExtension(ApiObject, frozen=True):
    """What Moorage adds to Docker's object. An engine of an earlier version may lack all but ``State``."""

    state: str
    restarts: int = 0
    last_exit: PluginLastExit | None = None
    next_try_at: str | None = None
    ready_at: str | None = None
    started_at: str | None = None
    uptime_seconds: int | float | None = None
    pid: int | None = None
    control_group: str = ""
    """Path of the control group of its present run, the same in every hierarchy; empty where none runs."""
    runtime: str = ""
    """The OCI runtime of the present run, by name or path; empty where none runs."""
    standby_pid: int | None = None
    """The process that is to become the next run; None without a standby."""
    socket: str = ""
    policy: PluginPolicy | None = None
    health: HealthReport | None = None
    """None for a plugin without health checks, or one that is not ready."""
    holders: list[PluginHolder] = field(default_factory=list)
    privileges: list[PluginPrivilege] = field(default_factory=list)
    """Requested with the present settings."""
    widenings: list[PluginPrivilege] = field(default_factory=list)
    """What the policy grants beyond the default."""
    ungranted: list[PluginPrivilege] = field(default_factory=list)
    problem: str = ""
    warnings: list[str] = field(default_factory=list)
    digest: str = ""
    """Of the manifest of the package."""
    tags: list[str] = field(default_factory=list)
    """Further names."""
    processes: list[PluginProcess] | UnsetType = UNSET
    """Only where one plugin is inspected."""
    published: PluginPublication | None = None
    """How consumers reach it; None where it is not published."""
    log_directory: str = ""
    """The host's directory that a published log driver sees, because dockerd makes its FIFOs there; empty for others.
    """
    mounts: list[PluginMountUse] = field(default_factory=list)
    """Mounts of its volumes that consumers have not released."""
    applied_by: str = ""
    """Identity of the file of apply that it belongs to; empty where it was made otherwise."""
    labels: dict[str, str] = field(default_factory=dict)


class PluginDetails(ApiObject, frozen=True, kw_only=True):
    """A plugin, as GET /plugins/{name}/json shows it."""

    config: PluginConfig
    enabled: bool
    id: str
    name: str
    plugin_reference: str | UnsetType = UNSET
    settings: PluginSettings
    moorage: PluginExtension


class HostPath(ApiObject, frozen=True):
    """A path of the host."""

    path: str


class PackageReplacement(ApiObject, frozen=True):
    """What became of the settings when a plugin was given another package."""

    dropped_settings: list[str]
    """Names of those that no longer apply."""


class HolderRequest(Struct, frozen=True):
    """The owner of a new holder, as text, as in ``volume v1``."""

    owner: str | UnsetType = UNSET


class SetRequest(Struct, frozen=True):
    """Settings as NAME=VALUE, all or none; values of ``secrets`` are never shown again."""

    assignments: list[str] | UnsetType = UNSET
    secrets: list[str] | UnsetType = UNSET


class LabelsRequest(Struct, frozen=True):
    """Labels to add, or to give another value, and keys of those to remove."""

    add: dict[str, str] | UnsetType = UNSET
    remove: list[str] | UnsetType = UNSET


class PolicyRequest(Struct, frozen=True):
    """A change of a policy; a field that is absent does not change."""

    restarts: str | UnsetType = UNSET
    most: int | UnsetType = UNSET
    stop_timeout: int | float | UnsetType = UNSET
    health: HealthRequest | UnsetType = UNSET
    attended: bool | UnsetType = UNSET
    """A person agreed to what the change widens."""
    seccomp: Literal["default", "unconfined"] | UnsetType = UNSET
    new_privileges: bool | UnsetType = UNSET
    capabilities: Literal["docker", "minimal"] | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    cpus: int | float | UnsetType = UNSET
    pids: int | UnsetType = UNSET
    init: bool | UnsetType = UNSET
    apparmor: str | UnsetType = UNSET
    selinux_label: str | UnsetType = UNSET
    read_only: bool | UnsetType = UNSET
    userns: Literal["host", "auto"] | UnsetType = UNSET
    oom_score_adj: int | UnsetType = UNSET
    nice: int | UnsetType = UNSET
    log: Literal["file", "journald", "syslog"] | UnsetType = UNSET
    standby: bool | UnsetType = UNSET
    rlimits: Mapping[str, tuple[int, int]] | UnsetType = UNSET

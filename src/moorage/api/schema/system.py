"""The engine as a whole: versions, information, events, logins to registries, disk usage."""

from msgspec import UNSET, Struct, UnsetType, field

from moorage.api.schema.base import ApiObject

__all__ = (
    "AuthRequest",
    "AuthStatus",
    "ComponentDetails",
    "ComponentVersion",
    "ContainerdInfo",
    "ContainerdNamespaces",
    "DiskUsageReport",
    "EngineDetails",
    "EventActor",
    "EventMessage",
    "IndexInfo",
    "InfoCommit",
    "InfoPlugins",
    "InfoRuntime",
    "InfoSwarm",
    "NamedPlatform",
    "PluginDiskUsage",
    "PruneReport",
    "RegistryConfig",
    "SystemInfo",
    "SystemVersion",
)


class NamedPlatform(ApiObject, frozen=True):
    """The name of the product."""

    name: str


class ComponentDetails(ApiObject, frozen=True, kw_only=True):
    """Details of a component; all absent for containerd."""

    api_version: str | UnsetType = UNSET
    min_api_version: str | UnsetType = field(default=UNSET, name="MinAPIVersion")
    os: str | UnsetType = UNSET
    arch: str | UnsetType = UNSET
    kernel_version: str | UnsetType = UNSET
    experimental: str | UnsetType = UNSET


class ComponentVersion(ApiObject, frozen=True):
    """The version of one component of the engine."""

    name: str
    version: str
    details: ComponentDetails


class SystemVersion(ApiObject, frozen=True):
    """The answer to GET /version."""

    platform: NamedPlatform
    components: list[ComponentVersion]
    version: str
    api_version: str
    min_api_version: str = field(name="MinAPIVersion")
    os: str
    arch: str
    kernel_version: str
    git_commit: str
    go_version: str
    build_time: str


class InfoPlugins(ApiObject, frozen=True):
    """Names of enabled plugins by capability."""

    volume: list[str]
    network: list[str]
    authorization: list[str]
    log: list[str]


class IndexInfo(ApiObject, frozen=True):
    """A registry."""

    name: str
    mirrors: list[str]
    secure: bool
    official: bool


class RegistryConfig(ApiObject, frozen=True):
    """Registries without TLS, and mirrors of Docker Hub."""

    insecure_registry_cidrs: list[str] = field(name="InsecureRegistryCIDRs")
    index_configs: dict[str, IndexInfo]
    mirrors: list[str]


class InfoRuntime(Struct, frozen=True):
    """A runtime of containers."""

    path: str


class InfoSwarm(ApiObject, frozen=True):
    """The state of Swarm, which does not exist here."""

    node_id: str = field(name="NodeID", default="")
    node_addr: str = ""
    local_node_state: str = "inactive"
    control_available: bool = False
    error: str = ""
    remote_managers: None = None


class InfoCommit(ApiObject, frozen=True):
    """The version of a program, where Docker shows its commit."""

    id: str = field(name="ID")


class ContainerdNamespaces(ApiObject, frozen=True):
    """Namespaces in containerd."""

    containers: str
    plugins: str


class ContainerdInfo(ApiObject, frozen=True):
    """The containerd that the engine uses."""

    address: str
    namespaces: ContainerdNamespaces


class EngineDetails(ApiObject, frozen=True):
    """What Moorage adds to Docker's information."""

    containerd: str
    """private, system, or an address, as chosen at the first start."""
    containerd_address: str
    containerd_version: str
    """Empty while containerd is unavailable."""
    namespace: str
    problem: str
    """Why plugins cannot be started or stopped now; empty when they can."""
    notices: list[str]
    """What the engine found at its start and did not touch."""
    exec_root: str = ""
    started_at: str = ""
    runtime: str = ""
    """The OCI runtime of plugins that are started now, by name or path; empty while containerd is unavailable."""
    runtime_version: str = ""
    """The first line of its --version."""
    runtime_reason: str = ""
    """Why it was chosen."""


class SystemInfo(ApiObject, frozen=True):
    """The answer to GET /info, in Docker's order. Source: moby api/types/system/info.go."""

    id: str = field(name="ID")
    containers: int
    containers_running: int
    containers_paused: int
    containers_stopped: int
    images: int
    driver: str
    driver_status: list[list[str]]
    plugins: InfoPlugins
    memory_limit: bool
    swap_limit: bool
    cpu_cfs_period: bool
    cpu_cfs_quota: bool
    cpu_shares: bool = field(name="CPUShares")
    cpu_set: bool = field(name="CPUSet")
    pids_limit: bool
    oom_kill_disable: bool
    bridge_nf_iptables: bool
    bridge_nf_ip6tables: bool = field(name="BridgeNfIp6tables")
    ipv4_forwarding: bool = field(name="IPv4Forwarding")
    debug: bool
    n_fd: int = field(name="NFd")
    n_goroutines: int = field(name="NGoroutines")
    system_time: str
    logging_driver: str
    cgroup_driver: str
    cgroup_version: str
    n_events_listener: int = field(name="NEventsListener")
    kernel_version: str
    operating_system: str
    os_type: str = field(name="OSType")
    os_version: str = field(name="OSVersion")
    architecture: str
    n_cpu: int = field(name="NCPU")
    mem_total: int
    name: str
    index_server_address: str
    registry_config: RegistryConfig
    generic_resources: None
    docker_root_dir: str
    http_proxy: str
    https_proxy: str
    no_proxy: str
    labels: list[str]
    experimental_build: bool
    server_version: str
    runtimes: dict[str, InfoRuntime]
    default_runtime: str
    swarm: InfoSwarm
    live_restore_enabled: bool
    isolation: str
    init_binary: str
    containerd_commit: InfoCommit
    runc_commit: InfoCommit
    init_commit: InfoCommit
    security_options: list[str]
    cdi_spec_dirs: list[str] = field(name="CDISpecDirs")
    containerd: ContainerdInfo
    warnings: list[str]
    moorage: EngineDetails


class EventActor(ApiObject, frozen=True):
    """The plugin of an event."""

    id: str = field(name="ID")
    attributes: dict[str, str]


class EventMessage(Struct, frozen=True):
    """An event, as GET /events reports it."""

    type: str = field(name="Type")
    action: str = field(name="Action")
    actor: EventActor = field(name="Actor")
    scope: str
    time: int
    """Seconds since 1970."""
    time_nano: int = field(name="timeNano")
    """Nanoseconds since 1970."""


class AuthRequest(Struct, frozen=True):
    """Credentials for a registry, as ``docker login`` sends them."""

    username: str | UnsetType = UNSET
    password: str | UnsetType = UNSET
    identitytoken: str | UnsetType = UNSET
    serveraddress: str | UnsetType = UNSET


class AuthStatus(ApiObject, frozen=True):
    """The answer to POST /auth; the token is empty where the registry issues none."""

    identity_token: str
    status: str


class PluginDiskUsage(ApiObject, frozen=True):
    """What one plugin occupies; ``Shared...`` is the part that other plugins use, too."""

    id: str
    name: str
    package_bytes: int
    shared_package_bytes: int
    layers_bytes: int
    shared_layers_bytes: int
    written_bytes: int
    data_bytes: int
    logs_bytes: int


class DiskUsageReport(ApiObject, frozen=True):
    """What all plugins occupy, each blob and each layer once."""

    plugins: list[PluginDiskUsage]
    content_bytes: int
    layers_bytes: int
    written_bytes: int
    uploads: int
    uploads_bytes: int
    unreferenced_bytes: int


class PruneReport(ApiObject, frozen=True):
    """What a prune removed; uploads remain where operations are under way."""

    freed_bytes: int
    uploads: int
    under_way: int

"""The confinement of a plugin beyond namespaces: defaults, an operator's changes, and the OCI spec of both. Pure.

A value that is None is the engine's default (``moorage serve --default-...``), and without one that of ``BUILT_IN``.
Defaults are never inherited from whatever started the engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from moorage import errors
from moorage.plugins import _base
from moorage.plugins.model import ISOLATED_NETWORKS, Config
from moorage.plugins.privileges import Privilege
from moorage.plugins.seccomp import Caller, Profile, build_filter
from moorage.plugins.settings import Settings
from moorage.plugins.spec import HostPaths, build_spec

__all__ = (
    "BUILT_IN",
    "INIT_PATH",
    "NO_CONFINEMENT",
    "RLIMITS",
    "Confinement",
    "HostFeatures",
    "check_confinement",
    "check_user_namespace",
    "confine",
    "confined_spec",
    "requested_capabilities",
    "resolve_confinement",
    "resources_of",
    "widenings",
    "without_init",
)

UNLIMITED = -1
INIT_PATH = "/.moorage-init"
"""Where the init program is bound inside a plugin."""

RLIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip
"""Names as ``ulimit`` and systemd have them, in lower case."""

_MINIMAL = frozenset(_base.DEFAULT_CAPABILITIES) - {"CAP_MKNOD", "CAP_NET_RAW", "CAP_AUDIT_WRITE"}
_LEAST_MEMORY = 6 << 20
_LEAST_PIDS = 16  # the runtime's own process, which becomes the plugin, has about ten threads
_CPU_PERIOD = 100_000  # microseconds, the kernel's default
_IDS = 65536


class Confinement(Struct, frozen=True):
    """An operator's confinement settings for one plugin, or the defaults for all; None changes nothing.

    ``seccomp`` is the default profile or none; ``oom_score_adj`` (-1000 to 1000) and ``nice`` (-20 to 19) are those of
    the first process.
    """

    seccomp: Literal["default", "unconfined"] | None = None
    new_privileges: bool | None = None
    """Whether set-uid programs and file capabilities take effect."""
    capabilities: Literal["docker", "minimal"] | None = None
    """Capabilities besides those that the config requests: Docker's 14, or fewer (``_MINIMAL``)."""
    memory_bytes: int | None = None
    """0 is no limit."""
    cpus: float | None = None
    """CPUs; 0 is no limit."""
    pids: int | None = None
    """Processes and threads; 0 is no limit."""
    init: bool | None = None
    """Whether a small init program is its first process, which reaps orphans."""
    apparmor: str | None = None
    """``default``, ``unconfined``, or the name of a profile that is loaded on the host."""
    selinux_label: str | None = None
    """Passed to the runtime unchanged; empty is none."""
    read_only: bool | None = None
    """Whether its root file system is read-only, with a tmpfs on each of ``/run``, ``/tmp`` and ``/var/tmp``."""
    userns: Literal["host", "auto"] | None = None
    """``auto``: a user namespace of its own, in which no id is an id of the host."""
    oom_score_adj: int | None = None
    nice: int | None = None
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Soft and hard limit by name; -1 is unlimited. Other names have the default's limits."""

    def updated(self, change: "Confinement") -> "Confinement":
        """This confinement with a change applied."""
        said = {name: value for name, value in asdict(change).items() if value is not None and name != "rlimits"}
        return replace(self, **said, rlimits={**self.rlimits, **change.rlimits})


NO_CONFINEMENT = Confinement()
"""Says nothing."""

BUILT_IN = Confinement(
    seccomp="default",
    new_privileges=False,
    capabilities="docker",
    memory_bytes=0,
    cpus=0.0,
    pids=2048,
    init=False,
    apparmor="default",
    selinux_label="",
    read_only=False,
    userns="host",
    oom_score_adj=0,
    nice=0,
    rlimits={
        "as": (UNLIMITED, UNLIMITED),
        "core": (0, UNLIMITED),
        "cpu": (UNLIMITED, UNLIMITED),
        "data": (UNLIMITED, UNLIMITED),
        "fsize": (UNLIMITED, UNLIMITED),
        "locks": (UNLIMITED, UNLIMITED),
        "memlock": (8 << 20, 8 << 20),
        "msgqueue": (819200, 819200),
        "nice": (0, 0),
        "nofile": (1 << 20, 1 << 20),
        "nproc": (UNLIMITED, UNLIMITED),  # counts a user's processes on the whole host; pids is the limit that is meant
        "rss": (UNLIMITED, UNLIMITED),
        "rtprio": (0, 0),
        "rttime": (UNLIMITED, UNLIMITED),
        "sigpending": (65536, 65536),
        "stack": (8 << 20, UNLIMITED),
    },
)
"""Every value, as docs/reference/oci-spec.md has it."""


class HostFeatures(Struct, frozen=True):
    """The security features of this host, determined by the caller, who may do I/O.

    ``architecture`` is Go's name, ``kernel`` the version (major, minor); ``has_seccomp`` says whether the kernel
    filters system calls.
    """

    architecture: str = "amd64"
    kernel: tuple[int, int] = (6, 1)
    has_seccomp: bool = True
    seccomp_profile: Profile | None = None
    """The host's profile in the format of containers-common."""
    has_apparmor: bool = False
    """Whether the kernel has AppArmor and it is active."""
    apparmor_profile: str = ""
    """The loaded profile that ``default`` means for this plugin; empty for none."""
    apparmor_profiles: frozenset[str] = frozenset()
    """All that are loaded; empty where that is unknown."""
    init_program: str = ""
    """Path of a static init program; empty if there is none."""
    open_files: int = 1 << 20
    """The kernel's bound for RLIMIT_NOFILE (fs.nr_open)."""
    rlimit_bounds: Mapping[str, int] = field(default_factory=dict)
    """Hard limits that cannot be raised here, by name: those of a process without CAP_SYS_RESOURCE. -1 is unlimited."""
    id_base: int = 0
    """First host id of this plugin's user namespace."""
    in_user_namespace: bool = False
    """Whether the runtime has no rights in the first user namespace: it may raise nothing then."""


def resolve_confinement(own: Confinement, defaults: Confinement = NO_CONFINEMENT) -> Confinement:
    """The confinement that applies to a plugin: every field has a value."""
    return BUILT_IN.updated(defaults).updated(own)


def check_confinement(change: Confinement) -> None:
    """Raises: Invalid for a value that no plugin can have, naming the bounds."""
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("memory", change.memory_bytes, _LEAST_MEMORY, 1 << 62),
        ("cpus", change.cpus, 0.01, 4096),
        ("pids", change.pids, _LEAST_PIDS, 4_194_304),
    )
    for name, value, least, most in bounds:
        if value and not least <= value <= most:
            raise errors.Invalid(f"cannot limit {name} to {value:g}: it must be 0 (no limit) or {least:g} to {most:g}")
    for name, value, least, most in (
        ("nice", change.nice, -20, 19),
        ("oom_score_adj", change.oom_score_adj, -1000, 1000),
    ):
        if value is not None and not least <= value <= most:
            raise errors.Invalid(f"cannot set {name} to {value}: it must be {least:g} to {most:g}")
    for name, (soft, hard) in change.rlimits.items():
        if name not in RLIMITS:
            raise errors.Invalid(f"cannot set rlimit {name!r}: it must be one of {', '.join(RLIMITS)}")
        if soft < UNLIMITED or hard < UNLIMITED or (hard != UNLIMITED and not 0 <= soft <= hard):
            raise errors.Invalid(
                f"cannot set rlimit {name} to {soft}:{hard}: soft must be at most hard; -1 is unlimited"
            )


def widenings(confinement: Confinement) -> tuple[Privilege, ...]:
    """The settings that give a plugin more than the default: privileges to be granted like those of a config."""
    found = []
    if confinement.seccomp == "unconfined":
        found.append(Privilege("seccomp", "run without a system call filter", ("unconfined",)))
    if confinement.new_privileges:
        found.append(Privilege("new privileges", "gain privileges by set-uid programs", ("true",)))
    if confinement.apparmor not in (None, "default"):
        found.append(Privilege("apparmor", "run under another AppArmor profile", (str(confinement.apparmor),)))
    return tuple(found)


def check_user_namespace(config: Config, settings: Settings) -> None:
    """Raises: Invalid for a plugin that cannot run in a user namespace of its own, with the reason."""
    reasons = []
    if config.propagated_mount:
        reasons.append(f"what it mounts below {config.propagated_mount} would not reach the host")
    reasons += [f"it mounts {each.source} of the host" for each in settings.mounts if each.source and each.is_bind]
    reasons += [
        f"it mounts a file system of type {each.type}"
        for each in settings.mounts
        if each.source and not each.is_bind and each.type != "tmpfs"
    ]
    reasons += [f"it uses device {each.path}" for each in settings.devices if each.path]
    if config.linux.allow_all_devices:
        reasons.append("it uses all devices")
    if config.network.type not in ISOLATED_NETWORKS:
        reasons.append(f"it shares the network of the host ({config.network.type})")
    if config.pid_host or config.ipc_host:
        reasons.append("it shares the PID or IPC namespace of the host")
    if reasons:
        raise errors.Invalid(f"cannot give the plugin a user namespace of its own: {'; '.join(reasons)}")


def requested_capabilities(config: Config) -> frozenset[str]:
    """What a config requests, in the kernel's spelling."""
    return frozenset(f"CAP_{each.strip().upper().removeprefix('CAP_')}" for each in config.linux.capabilities)


def resources_of(confinement: Confinement, changed: Confinement) -> dict[str, object]:
    """``linux.resources`` of a resolved confinement for its changed fields; unlimited is written explicitly.

    Empty where nothing that can be changed while a plugin runs is changed.
    """
    every = _every_resource(confinement)
    requested = (("memory", changed.memory_bytes), ("cpu", changed.cpus), ("pids", changed.pids))
    return {name: every[name] for name, value in requested if value is not None}


def _every_resource(confinement: Confinement) -> dict[str, object]:
    memory, pids = confinement.memory_bytes or UNLIMITED, confinement.pids or UNLIMITED
    quota = round((confinement.cpus or 0) * _CPU_PERIOD) or UNLIMITED
    return {
        "memory": {"limit": memory},
        "cpu": {"quota": quota, "period": _CPU_PERIOD},
        "pids": {"limit": pids},
    }


def confined_spec(
    config: Config, settings: Settings, paths: HostPaths, confinement: Confinement, host: HostFeatures
) -> dict[str, object]:
    """The OCI runtime spec of a plugin under a resolved confinement, ready for JSON.

    Raises: Invalid as ``build_spec``, and for a setting that the host or the config does not support.
    """
    if confinement.userns == "auto":
        check_user_namespace(config, settings)
    host = replace(host, in_user_namespace=host.in_user_namespace or paths.in_user_namespace)
    return confine(build_spec(config, settings, paths), config, confinement, host)


def confine(spec: Mapping[str, Any], config: Config, confinement: Confinement, host: HostFeatures) -> dict[str, Any]:
    """A spec with a resolved confinement applied.

    Raises: Invalid where the host or the config cannot have it.
    """
    made: dict[str, Any] = {**spec, "process": {**spec["process"]}, "linux": {**spec["linux"]}}
    process, linux = made["process"], made["linux"]
    process["noNewPrivileges"] = not confinement.new_privileges
    if confinement.capabilities == "minimal":
        _drop_capabilities(process, config)
    if confinement.seccomp == "default" and host.has_seccomp:
        bounding = frozenset(process["capabilities"]["bounding"])
        linux["seccomp"] = build_filter(
            Caller(bounding, host.architecture, host.kernel, config.pid_host), host.seccomp_profile
        )
    _label(process, linux, confinement, host)
    if not host.in_user_namespace:
        process["rlimits"] = _rlimits(confinement, host)
        process["oomScoreAdj"] = confinement.oom_score_adj
        # Source: OCI runtime specification 1.1; runtimes before it ignore this, and the nice value is set for them
        process["scheduler"] = {"policy": "SCHED_OTHER", "nice": confinement.nice}
        linux["resources"] = {**linux["resources"], **_limits(confinement)}
    if confinement.read_only:
        made["root"] = {**made["root"], "readonly": True}
        made["mounts"] = _with_writable_directories(made["mounts"])
    if confinement.init:
        _add_init(made, config, host)
    if confinement.userns == "auto":
        _add_user_namespace(linux, host)
    return made


def _limits(confinement: Confinement) -> dict[str, object]:
    """Only limits that are set, so that a missing controller is no obstacle."""
    requested = (("memory", confinement.memory_bytes), ("cpu", confinement.cpus), ("pids", confinement.pids))
    every = _every_resource(confinement)
    return {name: every[name] for name, value in requested if value}


def _drop_capabilities(process: dict[str, Any], config: Config) -> None:
    requested = requested_capabilities(config)
    process["capabilities"] = {
        kind: [each for each in bounding if each in _MINIMAL or each in requested]
        for kind, bounding in process["capabilities"].items()
    }


def _label(process: dict[str, Any], linux: dict[str, Any], confinement: Confinement, host: HostFeatures) -> None:
    """AppArmor and SELinux. Raises: Invalid for a profile that this host does not have."""
    if profile := _apparmor_profile(confinement.apparmor or "default", host):
        process["apparmorProfile"] = profile
    if confinement.selinux_label:
        process["selinuxLabel"] = confinement.selinux_label
        linux["mountLabel"] = confinement.selinux_label


def _apparmor_profile(setting: str, host: HostFeatures) -> str:
    if setting == "default":
        # There profiles cannot be seen, and a /proc of the host is read-only, where a runtime would set one.
        return "" if host.in_user_namespace else host.apparmor_profile
    if not host.has_apparmor:
        if setting == "unconfined":
            return ""  # runtimes fail on any name, this one included
        raise errors.Invalid(f"cannot use AppArmor profile {setting}: AppArmor is not active on this host")
    if setting != "unconfined" and host.apparmor_profiles and setting not in host.apparmor_profiles:
        raise errors.Invalid(f"cannot use AppArmor profile {setting}: it is not loaded on this host")
    return setting


def _rlimits(confinement: Confinement, host: HostFeatures) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for name in RLIMITS:
        soft, hard = confinement.rlimits[name]
        if name == "nofile":  # the kernel takes no more, and no "unlimited" either
            soft, hard = (host.open_files if each == UNLIMITED else min(each, host.open_files) for each in (soft, hard))
        if name in host.rlimit_bounds:
            soft, hard = (_at_most(each, host.rlimit_bounds[name]) for each in (soft, hard))
        made.append({"type": f"RLIMIT_{name.upper()}", "soft": _unsigned(soft), "hard": _unsigned(hard)})
    return made


def _at_most(value: int, bound: int) -> int:
    if bound == UNLIMITED:
        return value
    return bound if value == UNLIMITED else min(value, bound)


def _unsigned(value: int) -> int:
    return (1 << 64) - 1 if value == UNLIMITED else value


def _with_writable_directories(mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A tmpfs with a copy of the root's content, on each directory that programs expect to be writable."""
    taken = {each["destination"].rstrip("/") for each in mounts}
    modes = {"/run": "mode=755", "/tmp": "mode=1777", "/var/tmp": "mode=1777"}
    options = ["nosuid", "nodev", "tmpcopyup", "size=65536k"]
    added = [
        {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": [*options, mode]}
        for path, mode in modes.items()
        if path not in taken
    ]
    base = [each.to_json() for each in _base.MOUNTS]
    after = next((index for index, each in enumerate(mounts) if each not in base), len(mounts))
    return [*mounts[:after], *added, *mounts[after:]]


def _add_init(spec: dict[str, Any], config: Config, host: HostFeatures) -> None:
    if config.pid_host:
        raise errors.Invalid(
            "cannot add an init program: the plugin shares the PID namespace of the host, which has one"
        )
    if not host.init_program:
        raise errors.Invalid("cannot add an init program: there is none on this host; install tini or catatonit")
    spec["process"]["args"] = [INIT_PATH, "--", *spec["process"]["args"]]
    bound = {
        "destination": INIT_PATH,
        "type": "bind",
        "source": host.init_program,
        "options": ["bind", "ro", "nosuid", "nodev"],
    }
    spec["mounts"] = [*spec["mounts"], bound]


def without_init(arguments: Sequence[str]) -> Sequence[str]:
    """A process's arguments without the init program that was put before them."""
    return arguments[2:] if arguments[:1] == [INIT_PATH] else arguments


def _add_user_namespace(linux: dict[str, Any], host: HostFeatures) -> None:
    mapping = [{"containerID": 0, "hostID": host.id_base, "size": _IDS}]
    linux["uidMappings"], linux["gidMappings"] = mapping, mapping
    linux["namespaces"] = [*linux["namespaces"], {"type": "user"}]

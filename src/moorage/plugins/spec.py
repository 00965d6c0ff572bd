"""The OCI runtime spec of a plugin from config and settings. Pure: facts about the host come as ``HostPaths``.

Source: moby daemon/pkg/plugin/v2/plugin_linux.go@b985e21. Where we differ on purpose is one table in
docs/reference/oci-spec.md.
"""

import posixpath
from collections.abc import Iterable, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from moorage import errors
from moorage._lib.escapes import quote
from moorage._lib.values import CgroupDriver
from moorage.plugins import _base
from moorage.plugins._base import OciMount
from moorage.plugins.linux_names import capability_problem, normal_capability
from moorage.plugins.model import ISOLATED_NETWORKS, MISSING, SOCKET_DIRECTORY, Config, DeviceEntry, MountEntry
from moorage.plugins.settings import Settings

__all__ = (
    "GROUP_PARENTS",
    "MAX_SOCKET_PATH_BYTES",
    "DeviceNode",
    "HostPaths",
    "Need",
    "Needs",
    "build_spec",
    "cgroup_path",
    "check_runnable",
    "container_of_group",
    "control_group",
    "needs",
    "socket_path",
)

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of sockaddr_un has 108 bytes, and the last is a NUL (unix(7))."""

_ALL_DEVICES: tuple[dict[str, object], ...] = ({"allow": True, "access": "rwm"},)


class DeviceNode(Struct, frozen=True):
    """A device of the host as it shall appear in the plugin: ``type`` is c or b, ``file_mode`` only permission bits.

    ``path`` is the one in the plugin; ``major`` and ``minor`` are its numbers, ``uid`` and ``gid`` its owner's.
    """

    path: str
    type: str
    major: int
    minor: int
    file_mode: int
    uid: int = 0
    gid: int = 0


class HostPaths(Struct, frozen=True):
    """The paths of one plugin on this host, determined by the caller, who may do I/O. All are absolute.

    ``cgroup_path`` is linux.cgroupsPath; ``resolv_conf`` is treated as ``hosts``.
    """

    rootfs: str
    """Becomes root.path unchanged."""
    socket_directory: str
    """Mounted at SOCKET_DIRECTORY."""
    cgroup_path: str
    propagated_mount: str | None = None
    """Source of the propagated mount, outside the rootfs; needed if the config has one."""
    hosts: str | None = "/etc/hosts"
    """Source of /etc/hosts for plugins on the host's network; None binds nothing."""
    resolv_conf: str | None = "/etc/resolv.conf"
    devices: Mapping[str, tuple[DeviceNode, ...]] = field(default_factory=dict)
    """The device nodes at each path of ``Needs.devices``; missing paths do not exist on this host."""
    in_user_namespace: bool = False
    """Whether the runtime has no rights in the first user namespace (rootless, or ``unshare -Ur``)."""
    locked_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """In a user namespace: by mount source, the options (nosuid, nodev, noexec, ro, ...) it must keep."""
    has_cgroup_v2: bool = False
    """Whether the host has control groups version 2 only (not hybrid)."""


class Need(Struct, frozen=True):
    """A path that must exist on the host, and the entry of the config that needs it.

    ``path`` is on the host, ``entry`` names the field of the config, ``advice`` the next step for the user.
    """

    path: str
    entry: str
    advice: str

    def missing(self) -> errors.Invalid:
        """The error to raise if it does not exist."""
        return errors.Invalid(f"cannot enable the plugin: {self.entry}: there is no {self.path} here; {self.advice}")


class Needs(Struct, frozen=True):
    """The host's paths to resolve before a spec can be built."""

    devices: tuple[Need, ...] = ()
    """Paths of devices, or of directories of devices."""
    sources: tuple[Need, ...] = ()
    """Sources of bind mounts."""


GROUP_PARENTS = ("/moorage", "/moorage.slice")
"""Paths of the control groups that have those of plugins directly below them: of either driver."""


def cgroup_path(container: str, driver: CgroupDriver = "cgroupfs") -> str:
    """The cgroup of a container, in the runtime's format: a path, or slice, prefix and name of its scope."""
    return f"moorage.slice:moorage:{container}" if driver == "systemd" else f"/moorage/{container}"


def control_group(container: str, driver: CgroupDriver = "cgroupfs") -> str:
    """The same as the kernel has it: its path in every hierarchy."""
    return f"/moorage.slice/moorage-{container}.scope" if driver == "systemd" else f"/moorage/{container}"


def container_of_group(path: str) -> str:
    """The container whose control group has this path in the hierarchies; empty for the path of another group."""
    parent, _, name = path.rpartition("/")
    if parent == "/moorage.slice":
        prefix, _, name = name.removesuffix(".scope").partition("-")
        name = name if prefix == "moorage" and path.endswith(".scope") else ""
    return name if parent in GROUP_PARENTS else ""


def socket_path(config: Config, paths: HostPaths) -> str:
    """The path of the plugin's socket on the host.

    Raises: Invalid if the path is longer than a unix socket's may be, there or inside the plugin.
    """
    for directory in (paths.socket_directory, SOCKET_DIRECTORY):
        path = posixpath.join(directory, config.interface.socket)
        size = len(path.encode())
        if size > MAX_SOCKET_PATH_BYTES:
            raise errors.Invalid(
                f"cannot use the socket {config.interface.socket}: the path {path} has {size} bytes, "
                f"and a unix socket's path may have {MAX_SOCKET_PATH_BYTES}"
            )
    return posixpath.join(paths.socket_directory, config.interface.socket)


def needs(settings: Settings) -> Needs:
    """The device paths to resolve, and the mount sources that must exist, before ``build_spec``.

    Raises: Invalid naming an entry without a source or path, and the ``set`` that would fill it.
    """
    mounts = _on_mounts(settings)
    devices = _on_devices(settings)
    return Needs(
        devices=tuple(Need(each.path or "", _device_title(each), _device_advice(each)) for each in devices),
        sources=tuple(
            Need(each.source or "", _mount_title(each), _mount_advice(each)) for each in mounts if each.is_bind
        ),
    )


def check_runnable(config: Config) -> None:
    """Return if a config has everything that a start needs: dockerd creates plugins without it, but cannot enable them.

    Raises: Invalid naming the path of each value that is missing.
    """
    missing = [] if config.entrypoint else [f"entrypoint: {MISSING['entrypoint']}"]
    if not config.interface.socket:
        missing.append(f"interface.socket: {MISSING['socket']}")
    for at, each in enumerate(config.mounts):
        if not each.destination:
            missing.append(f"mounts[{at}].destination: {MISSING['destination']}")
    if missing:
        raise errors.Invalid(f"config.json is not complete: {'; '.join(missing)}")


def build_spec(config: Config, settings: Settings, paths: HostPaths) -> dict[str, object]:
    """The OCI runtime spec of a plugin, ready for JSON.

    Raises: Invalid for an entry without a source or path, a device that does not exist, an unknown capability or
    network type, or a socket path that is too long.
    """
    check_runnable(config)
    socket_path(config, paths)
    if not config.network.is_host and config.network.type not in ISOLATED_NETWORKS:
        raise errors.Invalid(
            f"cannot set up network {quote(config.network.type)}: it must be host, none, null or bridge"
        )
    nodes = _nodes(settings, paths)
    linux: dict[str, object] = {
        "resources": {"devices": _device_rules(config, nodes, in_scope=":" in paths.cgroup_path)},
        "cgroupsPath": paths.cgroup_path,
        "namespaces": [{"type": each} for each in _namespaces(config)],
        "maskedPaths": list(_base.MASKED_PATHS),
        "readonlyPaths": list(_base.READONLY_PATHS),
    }
    if nodes:
        linux["devices"] = [_node_to_json(each) for each in nodes]
    if config.propagated_mount:
        linux["rootfsPropagation"] = "rshared"
    return {
        "ociVersion": "1.0.2",
        "process": _process(config, settings),
        "root": {"path": paths.rootfs},
        "mounts": [each.to_json() for each in _mounts(config, settings, paths)],
        "linux": linux,
    }


def _process(config: Config, settings: Settings) -> dict[str, object]:
    env = {"PATH": _base.DEFAULT_PATH} | dict(settings.env)
    return {
        "user": {"uid": config.user.uid, "gid": config.user.gid},
        "args": [*config.entrypoint, *settings.args],
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": _absolute(config.workdir or "/"),
        "capabilities": _capabilities(config),
    }


def _capabilities(config: Config) -> dict[str, object]:
    """Docker's sets, and ambient for a user that is not root: without it the kernel drops capabilities at exec."""
    requested = list(dict.fromkeys(_capability(each) for each in config.linux.capabilities))
    granted = list(dict.fromkeys([*_base.DEFAULT_CAPABILITIES, *requested]))
    made: dict[str, object] = {
        "bounding": granted,
        "effective": granted,
        "permitted": granted,
        "inheritable": requested,
    }
    if config.user.uid != 0:
        made["ambient"] = requested
    return made


def _capability(spelling: str) -> str:
    if problem := capability_problem(spelling):
        raise errors.Invalid(f"cannot grant capability {quote(spelling)}: {problem}")
    return normal_capability(spelling)


def _namespaces(config: Config) -> list[str]:
    shared = {"pid": config.pid_host, "ipc": config.ipc_host, "network": config.network.is_host}
    return [each for each in ("mount", "network", "uts", "pid", "ipc") if not shared.get(each, False)]


def _mounts(config: Config, settings: Settings, paths: HostPaths) -> list[OciMount]:
    """Base, propagated mount, the config's in order, socket directory, network files: real plugins depend on it."""
    requested = _propagated(config, paths) + [_as_requested(each) for each in _on_mounts(settings)]
    taken = {_clean(each.destination) for each in requested}
    base = [each for each in _base.MOUNTS if not each.destination.startswith("/dev/") or each.destination not in taken]
    made = [*base, *requested, OciMount(SOCKET_DIRECTORY, "bind", paths.socket_directory, ("rbind", "rshared"))]
    if config.network.is_host:
        files = (("/etc/hosts", paths.hosts), ("/etc/resolv.conf", paths.resolv_conf))
        made += [OciMount(inside, "bind", source, ("rbind", "ro")) for inside, source in files if source is not None]
    if paths.has_cgroup_v2:
        made = _base.with_host_cgroups(made)
    return _for_user_namespace(made, config, paths) if paths.in_user_namespace else made


def _propagated(config: Config, paths: HostPaths) -> list[OciMount]:
    if not config.propagated_mount:
        return []
    if paths.propagated_mount is None:
        raise errors.MoorageError(
            "cannot build the spec: the config has a propagated mount, and no directory is given for it"
        )
    return [OciMount(_absolute(config.propagated_mount), "bind", paths.propagated_mount, ("rbind", "rw", "rshared"))]


def _as_requested(entry: MountEntry) -> OciMount:
    """As requested; a bind without its option gets it, because runc would search a file system called bind."""
    options = entry.bind_options if entry.is_bind else entry.options
    return OciMount(_absolute(entry.destination), entry.type, entry.source or "", options)


def _for_user_namespace(mounts: Iterable[OciMount], config: Config, paths: HostPaths) -> list[OciMount]:
    """What the kernel lets a user namespace mount: no locked flag may be lost by a remount, a file system that belongs
    to a namespace of the host (sysfs: network, proc: pid, mqueue: ipc) can only be bound, and gid 5 may not be mapped.
    """
    bound = {("sysfs", "/sys")} if config.network.is_host else set()
    bound |= {("proc", "/proc")} if config.pid_host else set()
    made = []
    for mount in mounts:
        if mount.is_bind:
            locked = paths.locked_flags.get(mount.source, ())
            mount = replace(mount, options=tuple(dict.fromkeys([*mount.options, *locked])))
        elif mount.type == "devpts":
            mount = replace(mount, options=tuple(each for each in mount.options if not each.startswith("gid=")))
        elif (mount.type, mount.destination) in bound:
            mount = OciMount(mount.destination, "bind", mount.destination, ("rbind", "nosuid", "noexec", "nodev", "ro"))
        elif mount.type == "mqueue" and config.ipc_host:
            continue
        made.append(mount)
    return made


def _on_mounts(settings: Settings) -> list[MountEntry]:
    """The mounts that are not disabled. Raises: Invalid for one without a source."""
    for each in settings.mounts:
        if each.source is None:
            raise errors.Invalid(f"cannot enable the plugin: {_mount_title(each)} has no source; {_mount_advice(each)}")
        if each.is_bind and each.source and not each.source.startswith("/"):  # of a record of an earlier version
            raise errors.Invalid(
                f"cannot enable the plugin: {_mount_title(each)} has the source {quote(each.source)}, which is not an "
                f"absolute path; {_mount_advice(each)}"
            )
    return [each for each in settings.mounts if each.source]


def _on_devices(settings: Settings) -> list[DeviceEntry]:
    """The devices that are not disabled. Raises: Invalid for one without a path."""
    for each in settings.devices:
        if each.path is None:
            raise errors.Invalid(f"cannot enable the plugin: {_device_title(each)} has no path; {_device_advice(each)}")
    return [each for each in settings.devices if each.path]


def _mount_title(entry: MountEntry) -> str:
    name = f"mount {quote(entry.name)}" if entry.name else "a mount without a name"
    return f"{name} (on {quote(entry.destination)})"


def _device_title(entry: DeviceEntry) -> str:
    return f"device {quote(entry.name)}" if entry.name else "a device without a name"


def _mount_advice(entry: MountEntry) -> str:
    if entry.name and "source" in entry.settable:
        return f"set {entry.name}.source=<path on this host>"
    return "this version of the plugin does not let you set it"


def _device_advice(entry: DeviceEntry) -> str:
    if entry.name and "path" in entry.settable:
        return f"set {entry.name}.path=<device on this host>"
    return "this version of the plugin does not let you set it"


def _nodes(settings: Settings, paths: HostPaths) -> list[DeviceNode]:
    found: dict[str, DeviceNode] = {}
    for need in needs(settings).devices:
        nodes = paths.devices.get(need.path, ())
        if not nodes:
            raise need.missing()
        for node in nodes:
            found.setdefault(node.path, node)
    return list(found.values())


def _device_rules(config: Config, nodes: Iterable[DeviceNode], *, in_scope: bool) -> list[dict[str, object]]:
    base = _ALL_DEVICES if config.linux.allow_all_devices else tuple(_rule(*each) for each in _base.DEVICE_RULES)
    if in_scope:
        # systemd has a list of what is allowed and nothing else, and crun refuses a rule that denies once more
        base = (*base[:1], *(each for each in base[1:] if each["allow"]))
    return [*base, *(_rule(True, each.type, each.major, each.minor) for each in nodes)]


def _rule(is_allowed: bool, kind: str, major: int | None, minor: int | None) -> dict[str, object]:
    made: dict[str, object] = {
        "allow": is_allowed,
        "type": kind or None,
        "major": major,
        "minor": minor,
        "access": "rwm",
    }
    return {key: value for key, value in made.items() if value is not None}


def _node_to_json(node: DeviceNode) -> dict[str, object]:
    return {
        "path": node.path,
        "type": node.type,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.file_mode,
        "uid": node.uid,
        "gid": node.gid,
    }


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def _clean(path: str) -> str:
    """An absolute path without dots and doubled slashes; .. stops at the root."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")

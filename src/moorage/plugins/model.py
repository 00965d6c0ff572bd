"""What a plugin's config.json says: Docker's plugin config, version 1, as frozen values."""

from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from moorage._lib.values import repr_without
from moorage.plugins._reader import Fields, decode, encode, quote, read_object

__all__ = (
    "ISOLATED_NETWORKS",
    "SOCKET_DIRECTORY",
    "ArgsEntry",
    "Config",
    "DeviceEntry",
    "EnvEntry",
    "Interface",
    "InterfaceType",
    "LinuxConfig",
    "MountEntry",
    "Network",
    "ParsedConfig",
    "RootfsConfig",
    "UserConfig",
    "as_it_came",
    "config_to_api",
    "device_to_api",
    "mount_to_api",
    "parse_config",
    "with_rootfs",
)

SOCKET_DIRECTORY = "/run/docker/plugins"
"""Where a plugin finds the directory for its socket."""

ISOLATED_NETWORKS = frozenset({"", "none", "null", "bridge"})
"""Network types that give a network namespace with nothing but a loopback, and ask no privilege."""

_MAX_ID = 2**32 - 2
_TOP = (
    "args", "description", "dockerVersion", "documentation", "entrypoint", "env", "interface", "ipchost", "linux",
    "mounts", "network", "pidhost", "propagatedMount", "rootfs", "user", "workdir",
)  # fmt: skip
_ENTRY = ("name", "description", "settable")


class InterfaceType(Struct, frozen=True):
    """One thing that a plugin says it implements, as ``prefix.capability/version``; any part may be missing."""

    text: str

    @property
    def prefix(self) -> str:
        """Before the last dot of what stands before the first slash."""
        return self.text.partition("/")[0].rpartition(".")[0]

    @property
    def capability(self) -> str:
        """After that dot, as in ``volumedriver``; in the letter case it was given."""
        return self.text.partition("/")[0].rpartition(".")[2]

    @property
    def version(self) -> str:
        """After the first slash."""
        return self.text.partition("/")[2]


class Interface(Struct, frozen=True):
    """Where a plugin listens (``socket`` is a path below SOCKET_DIRECTORY) and what it speaks there."""

    socket: str
    types: tuple[InterfaceType, ...] = ()
    protocol_scheme: str = ""

    @property
    def is_http(self) -> bool:
        """Whether plugin calls over HTTP make sense; nothing given means that they do."""
        return self.protocol_scheme in ("", "moby.plugins.http/v1")


class Network(Struct, frozen=True):
    """Which network a plugin has."""

    type: str = ""

    @property
    def is_host(self) -> bool:
        """Whether it shares the host's network."""
        return self.type == "host"


class MountEntry(Struct, frozen=True):
    """A mount from the host; source None must be set before the plugin can run, "" means off until it is set."""

    name: str = ""
    description: str = ""
    settable: tuple[str, ...] = ()
    source: str | None = None
    destination: str = ""
    type: str = ""
    options: tuple[str, ...] = ()

    @property
    def is_bind(self) -> bool:
        """Whether the source is a path on the host. With a bind option the type says nothing (to runc, too)."""
        return self.type == "bind" or "bind" in self.options or "rbind" in self.options


class EnvEntry(Struct, frozen=True):
    """An environment variable; value None means that it is not there until somebody sets it."""

    name: str
    description: str = ""
    settable: tuple[str, ...] = ()
    value: str | None = None


class ArgsEntry(Struct, frozen=True):
    """Arguments after the entrypoint."""

    name: str = ""
    description: str = ""
    settable: tuple[str, ...] = ()
    value: tuple[str, ...] = ()


class DeviceEntry(Struct, frozen=True):
    """A device of the host, or a directory of them; path None and "" mean what they mean for a mount's source."""

    name: str = ""
    description: str = ""
    settable: tuple[str, ...] = ()
    path: str | None = None


class LinuxConfig(Struct, frozen=True):
    """What a plugin asks of the kernel, beyond what every container has."""

    capabilities: tuple[str, ...] = ()
    allow_all_devices: bool = False
    devices: tuple[DeviceEntry, ...] = ()


class UserConfig(Struct, frozen=True):
    """Whom the entrypoint runs as."""

    uid: int = 0
    gid: int = 0


class RootfsConfig(Struct, frozen=True):
    """Which layers the package has; written when it is made, and only informative."""

    type: str = ""
    diff_ids: tuple[str, ...] = ()


class Config(Struct, frozen=True):
    """One config.json. ``document`` is the text that it was read from, unknown fields and all."""

    entrypoint: tuple[str, ...]
    interface: Interface
    description: str = ""
    documentation: str = ""
    docker_version: str = ""
    workdir: str = ""
    network: Network = field(default_factory=Network)
    mounts: tuple[MountEntry, ...] = ()
    propagated_mount: str = ""
    ipc_host: bool = False
    pid_host: bool = False
    env: tuple[EnvEntry, ...] = ()
    args: ArgsEntry = field(default_factory=ArgsEntry)
    linux: LinuxConfig = field(default_factory=LinuxConfig)
    user: UserConfig = field(default_factory=UserConfig)
    rootfs: RootfsConfig | None = None
    document: bytes = b""

    __repr__ = repr_without("document")


class ParsedConfig(Struct, frozen=True):
    """A config, and what was odd about its text (typing errors, most of the time)."""

    config: Config
    warnings: tuple[str, ...] = ()


def parse_config(raw: bytes) -> ParsedConfig:
    """Read a config.json. Whatever ``raw`` is, this ends soon, with a config or with Invalid.

    Raises: Invalid naming the path of each value that is wrong (``linux.devices[1].path``).
    Source: Docker's documentation of the plugin config; what is lenient here is what published plugins need.
    """
    top = read_object(raw, _TOP, "config.json")
    config = Config(
        entrypoint=_entrypoint(top),
        interface=_interface(top.section("interface", ("types", "socket", "protocolScheme"))),
        description=top.text("description"),
        documentation=top.text("documentation"),
        docker_version=top.text("dockerVersion"),
        workdir=_inner_path(top, "workdir"),
        network=_network(top.section("network", ("type",))),
        mounts=tuple(
            _mount(entry) for entry in top.entries("mounts", (*_ENTRY, "source", "destination", "type", "options"))
        ),
        propagated_mount=_inner_path(top, "propagatedMount"),
        ipc_host=top.flag("ipchost"),
        pid_host=top.flag("pidhost"),
        env=tuple(_env(entry) for entry in top.entries("env", (*_ENTRY, "value"))),
        args=_args(top.section("args", (*_ENTRY, "value"))),
        linux=_linux(top.section("linux", ("capabilities", "allowAllDevices", "devices"))),
        user=_user(top.section("user", ("uid", "gid"))),
        rootfs=_rootfs(top.section("rootfs", ("type", "diff_ids"))) if top.has("rootfs") else None,
        document=raw,
    )
    return ParsedConfig(config, top.notes.finish())


def as_it_came(config: Config) -> bytes:
    """The text that the config was read from, byte for byte."""
    return config.document or encode(config_to_api(config))


def with_rootfs(config: Config, diff_ids: Sequence[str]) -> Config:
    """The config of a package with these layers; all other fields of the document stay as they are."""
    document = decode(as_it_came(config), "config.json")
    fields = document if isinstance(document, dict) else {}
    made = {key: value for key, value in fields.items() if key.casefold() != "rootfs"}
    made["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    return replace(config, rootfs=RootfsConfig("layers", tuple(diff_ids)), document=encode(made))


def config_to_api(config: Config) -> dict[str, object]:
    """The config as the Engine API shows it: its spelling of the keys, every list a list, unknown fields left out."""
    interface: dict[str, object] = {"Socket": config.interface.socket}
    if config.interface.protocol_scheme:
        interface["ProtocolScheme"] = config.interface.protocol_scheme
    interface["Types"] = [each.text for each in config.interface.types]
    made: dict[str, object] = {
        "Args": _entry_to_api(config.args) | {"Value": list(config.args.value)},
        "Description": config.description,
        "DockerVersion": config.docker_version,
        "Documentation": config.documentation,
        "Entrypoint": list(config.entrypoint),
        "Env": [_entry_to_api(each) | {"Value": each.value} for each in config.env],
        "Interface": interface,
        "IpcHost": config.ipc_host,
        "Linux": {
            "AllowAllDevices": config.linux.allow_all_devices,
            "Capabilities": list(config.linux.capabilities),
            "Devices": [device_to_api(each) for each in config.linux.devices],
        },
        "Mounts": [mount_to_api(each) for each in config.mounts],
        "Network": {"Type": config.network.type},
        "PidHost": config.pid_host,
        "PropagatedMount": config.propagated_mount,
        "User": {key: value for key, value in (("UID", config.user.uid), ("GID", config.user.gid)) if value},
        "WorkDir": config.workdir,
    }
    if not config.docker_version:
        del made["DockerVersion"]
    if config.rootfs is not None:
        made["rootfs"] = {"type": config.rootfs.type, "diff_ids": list(config.rootfs.diff_ids)}
    return made


def mount_to_api(mount: MountEntry) -> dict[str, object]:
    """A mount as the Engine API shows it, in the config and in the settings."""
    return _entry_to_api(mount) | {
        "Source": mount.source,
        "Destination": mount.destination,
        "Type": mount.type,
        "Options": list(mount.options),
    }


def device_to_api(device: DeviceEntry) -> dict[str, object]:
    """A device as the Engine API shows it, in the config and in the settings."""
    return _entry_to_api(device) | {"Path": device.path}


def _entry_to_api(entry: MountEntry | EnvEntry | ArgsEntry | DeviceEntry) -> dict[str, object]:
    return {"Name": entry.name, "Description": entry.description, "Settable": list(entry.settable)}


def _entrypoint(top: Fields) -> tuple[str, ...]:
    entrypoint = top.texts("entrypoint")
    if not top.items("entrypoint"):
        top.wrong("entrypoint", "is missing; it is the list of the program's path and its first arguments")
    elif entrypoint and not entrypoint[0]:
        top.wrong("entrypoint[0]", "must not be empty")
    return entrypoint


def _interface(fields: Fields) -> Interface:
    socket = fields.text("socket")
    if not socket:
        fields.wrong("socket", f"is missing or empty; it is the name of the socket below {SOCKET_DIRECTORY}")
    elif socket.startswith("/") or socket.endswith("/") or {"..", "."} & set(socket.split("/")):
        fields.wrong("socket", f"must be the name of a socket below {SOCKET_DIRECTORY}, not {quote(socket)}")
    return Interface(
        socket, tuple(InterfaceType(each) for each in fields.texts("types")), fields.text("protocolScheme")
    )


def _network(fields: Fields) -> Network:
    network = Network(fields.text("type"))
    if network.type == "bridge":
        fields.odd("type", "bridge networks are not set up; the plugin has a loopback and nothing else, as with none")
    elif not network.is_host and network.type not in ISOLATED_NETWORKS:
        fields.wrong("type", f"must be host, none, null or bridge, not {quote(network.type)}")
    return network


def _inner_path(fields: Fields, key: str) -> str:
    path = fields.text(key)
    if path and not path.startswith("/"):
        fields.odd(key, f"is not an absolute path; taken as {quote('/' + path)}")
    return path


def _settable(fields: Fields, field_name: str) -> tuple[str, ...]:
    settable = fields.texts("settable")
    for other in settable:
        if other != field_name:
            fields.odd("settable", f"only {field_name} can be set, not {quote(other)}")
    if field_name in settable and not fields.text("name"):
        fields.odd("name", "is missing, so nobody can set it")
    return settable


def _mount(fields: Fields) -> MountEntry:
    destination = _inner_path(fields, "destination")
    if not destination:
        fields.wrong("destination", "is missing or empty")
    return MountEntry(
        name=fields.text("name"),
        description=fields.text("description"),
        settable=_settable(fields, "source"),
        source=fields.optional_text("source"),
        destination=destination,
        type=fields.text("type"),
        options=fields.texts("options"),
    )


def _env(fields: Fields) -> EnvEntry:
    name = fields.text("name")
    if not name or "=" in name:
        fields.wrong("name", "must be the name of an environment variable")
    return EnvEntry(name, fields.text("description"), _settable(fields, "value"), fields.optional_text("value"))


def _args(fields: Fields) -> ArgsEntry:
    return ArgsEntry(fields.text("name"), fields.text("description"), _settable(fields, "value"), fields.texts("value"))


def _linux(fields: Fields) -> LinuxConfig:
    return LinuxConfig(
        capabilities=fields.texts("capabilities"),
        allow_all_devices=fields.flag("allowAllDevices"),
        devices=tuple(_device(entry) for entry in fields.entries("devices", (*_ENTRY, "path"))),
    )


def _device(fields: Fields) -> DeviceEntry:
    path = fields.optional_text("path")
    if path and not path.startswith("/"):
        fields.wrong("path", f"must be an absolute path, not {quote(path)}")
    return DeviceEntry(fields.text("name"), fields.text("description"), _settable(fields, "path"), path)


def _user(fields: Fields) -> UserConfig:
    return UserConfig(fields.integer("uid", most=_MAX_ID), fields.integer("gid", most=_MAX_ID))


def _rootfs(fields: Fields) -> RootfsConfig:
    return RootfsConfig(fields.text("type"), fields.texts("diff_ids"))

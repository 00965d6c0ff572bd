"""What a plugin's config.json says: Docker's plugin config, version 1, as frozen values."""

import posixpath
import re

from msgspec import Struct, field

from moorage._lib.escapes import quote
from moorage._lib.values import repr_without
from moorage.plugins._reader import Fields, read_object
from moorage.plugins.linux_names import bind_option_warnings, capability_problem, option_words

__all__ = (
    "ISOLATED_NETWORKS",
    "MISSING",
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
    "parse_config",
)

SOCKET_DIRECTORY = "/run/docker/plugins"
"""Where a plugin finds the directory for its socket."""

ISOLATED_NETWORKS = frozenset({"", "none", "null", "bridge"})
"""Network types that give a network namespace with nothing but a loopback, and ask no privilege."""

_FILE_SYSTEM = re.compile(r"[A-Za-z0-9._-]{0,64}")
_OWN = frozenset({"/proc", "/sys", "/dev"})  # directories that the runtime fills itself
_MAX_ID = 2**32 - 2
_TOP = (
    "args", "description", "dockerVersion", "documentation", "entrypoint", "env", "interface", "ipchost", "linux",
    "mounts", "network", "pidhost", "propagatedMount", "rootfs", "user", "workdir",
)  # fmt: skip
_ENTRY = ("name", "description", "settable")

MISSING = {
    "entrypoint": "is missing; it is the list of the program's path and its first arguments",
    "socket": f"is missing or empty; it is the name of the socket below {SOCKET_DIRECTORY}",
    "destination": "is missing or empty",
}
"""What is said of a value that a plugin may lack when it is made, as in dockerd, and not when it is enabled."""

_NOT_YET = "the plugin cannot be enabled"


class InterfaceType(Struct, frozen=True):
    """One thing that a plugin says it implements, as ``prefix.capability/version``; any part may be missing."""

    text: str

    @property
    def prefix(self) -> str:
        """The part before the first slash, up to its last dot."""
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
    """The socket of a plugin (a path below SOCKET_DIRECTORY) and its protocols."""

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
    """A mount from the host; source None must be set before the plugin can run, "" means off until it is set.

    ``name``, ``description`` and ``settable`` (names of its fields) are for users; ``source``, ``destination``,
    ``type`` and ``options`` are those of mount(8).
    """

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
        return self.type == "bind" or not {"bind", "rbind"}.isdisjoint(option_words(self.options))

    @property
    def bind_options(self) -> tuple[str, ...]:
        """For the runtime, which drops joined options and, without "bind", searches a file system of that name."""
        words = option_words(self.options)
        return words if {"bind", "rbind"} & set(words) else ("rbind", *words)

    @property
    def is_recursive(self) -> bool:
        """Whether a bind includes mounts below its source."""
        return "rbind" in self.bind_options

    @property
    def is_read_only(self) -> bool:
        """Whether a bind is read-only at its top; the last of two options wins, as in the runtimes.

        They apply rrw after all others, wherever it stands, and it undoes ro. Source: runc 1.1, ``setRecAttr``.
        """
        access = [each for each in self.bind_options if each in ("ro", "rw")]
        return access[-1:] == ["ro"] and "rrw" not in self.bind_options


class EnvEntry(Struct, frozen=True):
    """An environment variable; with value None it is unset until a user sets it."""

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
    """The kernel features that a plugin requests beyond those of every container."""

    capabilities: tuple[str, ...] = ()
    allow_all_devices: bool = False
    devices: tuple[DeviceEntry, ...] = ()


class UserConfig(Struct, frozen=True):
    """The user and group of the entrypoint."""

    uid: int = 0
    gid: int = 0


class RootfsConfig(Struct, frozen=True):
    """Which layers the package has; written when it is made, and only informative."""

    type: str = ""
    diff_ids: tuple[str, ...] = ()


class Config(Struct, frozen=True):
    """One config.json. ``document`` is the text that it was read from, unknown fields and all.

    Fields are named as in config.json: ``entrypoint``, ``interface``, ``description``, ``documentation``,
    ``docker_version``, ``workdir``, ``network``, ``mounts``, ``propagated_mount``, ``ipc_host``, ``pid_host``, ``env``,
    ``args``, ``linux``, ``user``, ``rootfs`` (None before a package is built).
    """

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
    """A config, and the warnings about its text (mostly typing errors).

    ``config`` is valid whatever ``warnings`` says.
    """

    config: Config
    warnings: tuple[str, ...] = ()


def parse_config(raw: bytes, *, is_stored: bool = False) -> ParsedConfig:
    """Read a config.json. Bounded for any input: returns a config or raises Invalid.

    ``is_stored``: it is the config of an installed plugin, which an earlier version has accepted. What has become an
    error since is none then, so that an update of this program does not lose the plugin; output is escaped.

    Raises: Invalid naming the path of each value that is wrong (``linux.devices[1].path``).
    Source: Docker's documentation of the plugin config; what is lenient here is what published plugins need.
    """
    top = read_object(raw, _TOP, "config.json", refuses_controls=not is_stored)
    config = Config(
        entrypoint=_entrypoint(top),
        interface=_interface(top.section("interface", ("types", "socket", "protocolScheme"))),
        description=top.text("description", lines=True),
        documentation=top.text("documentation", lines=True),
        docker_version=top.text("dockerVersion"),
        workdir=_inner_path(top, "workdir"),
        network=_network(top.section("network", ("type",))),
        mounts=tuple(
            _mount(entry, is_stored=is_stored)
            for entry in top.entries("mounts", (*_ENTRY, "source", "destination", "type", "options"))
        ),
        propagated_mount=_propagated_mount(top, is_stored=is_stored),
        ipc_host=top.flag("ipchost"),
        pid_host=top.flag("pidhost"),
        env=tuple(_env(entry) for entry in top.entries("env", (*_ENTRY, "value"))),
        args=_args(top.section("args", (*_ENTRY, "value"))),
        linux=_linux(top.section("linux", ("capabilities", "allowAllDevices", "devices")), is_stored=is_stored),
        user=_user(top.section("user", ("uid", "gid"))),
        rootfs=_rootfs(top.section("rootfs", ("type", "diff_ids"))) if top.has("rootfs") else None,
        document=raw,
    )
    return ParsedConfig(config, top.notes.finish())


def _entrypoint(top: Fields) -> tuple[str, ...]:
    entrypoint = top.texts("entrypoint", lines=True)
    if not top.items("entrypoint"):
        top.odd("entrypoint", f"{MISSING['entrypoint']}; {_NOT_YET}")
    elif entrypoint and not entrypoint[0]:
        top.wrong("entrypoint[0]", "must not be empty")
    return entrypoint


def _interface(fields: Fields) -> Interface:
    socket = _socket_name(given := fields.text("socket"))
    if not given:
        fields.odd("socket", f"{MISSING['socket']}; {_NOT_YET}")
    elif not socket:
        fields.wrong("socket", f"must be the name of a socket below {SOCKET_DIRECTORY}, not {quote(given)}")
    return Interface(
        socket, tuple(InterfaceType(each) for each in fields.texts("types")), fields.text("protocolScheme")
    )


def _socket_name(given: str) -> str:
    """The path below SOCKET_DIRECTORY, to which dockerd joins what the config says; empty if it is none."""
    below = given.removeprefix(f"{SOCKET_DIRECTORY}/")
    parts = [each for each in below.split("/") if each not in ("", ".")]
    is_other = below.endswith("/") or "://" in below or (below.startswith("/") and len(parts) > 1)
    return "" if is_other or ".." in parts else "/".join(parts)


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
        fields.odd("name", "is missing, so that it cannot be set")
    return settable


def _mount(fields: Fields, *, is_stored: bool) -> MountEntry:
    destination = _inner_path(fields, "destination")
    if not destination:
        fields.odd("destination", f"{MISSING['destination']}; {_NOT_YET}")
    mount = MountEntry(
        name=fields.text("name"),
        description=fields.text("description", lines=True),
        settable=_settable(fields, "source"),
        source=fields.optional_text("source"),
        destination=destination,
        type=fields.text("type"),
        options=fields.texts("options"),
    )
    if not is_stored:
        _check_mount(fields, mount)
    return mount


def _check_mount(fields: Fields, mount: MountEntry) -> None:
    if mount.is_bind and mount.source and not mount.source.startswith("/"):
        fields.wrong("source", f"must be an absolute path on the host, not {quote(mount.source)}")
    if not _FILE_SYSTEM.fullmatch(mount.type):
        fields.wrong("type", f"must be bind or the name of a file system, not {quote(mount.type)}")
    if "remount" in option_words(mount.options):
        fields.wrong("options", "must not have remount: it would change another mount instead of making one")
    for warning in bind_option_warnings(mount.bind_options) if mount.is_bind else ():
        fields.odd("options", warning)
    if mount.destination and _normal(mount.destination) == "/":
        fields.wrong("destination", "must be below the plugin's root, not the root itself")


def _propagated_mount(top: Fields, *, is_stored: bool) -> str:
    path = _inner_path(top, "propagatedMount")
    if path and not is_stored and (_normal(path) in _OWN or _normal(path).startswith(("/proc/", "/sys/"))):
        top.wrong("propagatedMount", f"must be a directory of the plugin, not {quote(path)}")
    return path


def _normal(path: str) -> str:
    """A path inside the plugin without dots and doubled slashes."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def _env(fields: Fields) -> EnvEntry:
    name = fields.text("name")
    if not name or "=" in name:
        fields.wrong("name", "must be the name of an environment variable")
    value = fields.optional_text("value", lines=True)
    return EnvEntry(name, fields.text("description", lines=True), _settable(fields, "value"), value)


def _args(fields: Fields) -> ArgsEntry:
    description, value = fields.text("description", lines=True), fields.texts("value", lines=True)
    return ArgsEntry(fields.text("name"), description, _settable(fields, "value"), value)


def _linux(fields: Fields, *, is_stored: bool) -> LinuxConfig:
    capabilities = fields.texts("capabilities")
    for at, spelling in enumerate(capabilities if not is_stored else ()):
        if problem := capability_problem(spelling):
            fields.wrong(f"capabilities[{at}]", f"{quote(spelling)}: {problem}")
    return LinuxConfig(
        capabilities=capabilities,
        allow_all_devices=fields.flag("allowAllDevices"),
        devices=tuple(_device(entry) for entry in fields.entries("devices", (*_ENTRY, "path"))),
    )


def _device(fields: Fields) -> DeviceEntry:
    path = fields.optional_text("path")
    if path and not path.startswith("/"):
        fields.wrong("path", f"must be an absolute path, not {quote(path)}")
    return DeviceEntry(fields.text("name"), fields.text("description", lines=True), _settable(fields, "path"), path)


def _user(fields: Fields) -> UserConfig:
    return UserConfig(fields.integer("uid", most=_MAX_ID), fields.integer("gid", most=_MAX_ID))


def _rootfs(fields: Fields) -> RootfsConfig:
    return RootfsConfig(fields.text("type"), fields.texts("diff_ids"))

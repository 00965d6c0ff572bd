"""What a plugin requests of its host, as people and programs are shown it, and whether exactly that was granted."""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import escape, is_printable, quote
from moorage.plugins._reader import Fields, Notes, decode
from moorage.plugins.model import ISOLATED_NETWORKS, Config, MountEntry
from moorage.plugins.settings import Overrides, Settings, effective_settings

__all__ = (
    "Privilege",
    "check_granted",
    "compute_privileges",
    "describe_mount",
    "find_missing",
    "find_named",
    "parse_privileges",
    "privileges_to_api",
)

_DESCRIBED = ("bind mount", "file system")
"""Privileges whose value is a description, with quotes of its own."""
_PLAIN_WORD = re.compile(r"[^\s\"\\,()]+")
_FILE_SYSTEMS = {
    "overlay": "shows and changes the directories of this host that its options name",
    "proc": "shows and changes processes and settings of the kernel",
    "sysfs": "shows and changes devices and settings of the kernel",
    "cgroup": "shows and changes the control groups of this host",
    "cgroup2": "shows and changes the control groups of this host",
    "devpts": "terminals",
    "mqueue": "message queues",
    "tmpfs": "files in the memory of this host",
    "ramfs": "files in the memory of this host, without a limit",
}


class Privilege(Struct, frozen=True):
    """One privilege that a plugin requests; only name and values are compared, the description is for users.

    ``name`` is Docker's, as "network"; ``value`` are its values, as "host"; ``description`` is for users.
    """

    name: str
    description: str = ""
    value: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """What two privileges are compared by."""
        return self.name, tuple(sorted(self.value))

    def __str__(self) -> str:
        show = escape if self.name in _DESCRIBED else quote
        return f"{self.name} [{', '.join(map(show, self.value))}]"


def compute_privileges(config: Config, settings: Settings | None = None) -> tuple[Privilege, ...]:
    """What a plugin requests with these settings (None: the config's defaults): Docker's list in Docker's order, then
    what Docker leaves out of each mount. Entries that are off or not set request nothing.
    """
    linux = config.linux
    mounts = [each for each in (config.mounts if settings is None else settings.mounts) if each.source]
    devices = linux.devices if settings is None else settings.devices
    found = []
    if config.network.type not in ISOLATED_NETWORKS:
        found.append(Privilege("network", "permissions to access a network", (config.network.type,)))
    if config.ipc_host:
        found.append(Privilege("host ipc namespace", "allow access to host ipc namespace", ("true",)))
    if config.pid_host:
        found.append(Privilege("host pid namespace", "allow access to host pid namespace", ("true",)))
    found += [Privilege("mount", "host path to mount", (each.source or "",)) for each in mounts]
    found += [Privilege("device", "host device to access", (each.path,)) for each in devices if each.path]
    if linux.allow_all_devices:
        found.append(Privilege("allow-all-devices", "allow 'rwm' access to all devices", ("true",)))
    if linux.capabilities:
        text = "list of additional capabilities required"
        found.append(Privilege("capabilities", text, linux.capabilities))
    return (*found, *(describe_mount(each) for each in mounts))


def describe_mount(mount: MountEntry) -> Privilege:
    """What a mount is: ``bind mount`` with source, destination, access and options, or ``file system`` with type,
    source, destination and options. Two mounts that differ in any of these have different values.
    """
    return _describe_bind(mount) if mount.is_bind else _describe_file_system(mount)


def _describe_bind(mount: MountEntry) -> Privilege:
    if not mount.is_read_only:
        access, meaning = "read-write", "the plugin can change its content"
    elif mount.is_recursive:
        access, meaning = "read-only", "but what is mounted below it keeps its own access"
    else:
        access, meaning = "read-only", "the plugin can read its content"
    options = ",".join(map(_word, mount.bind_options))
    text = f"{_word(mount.source or '')} on {_word(_inside(mount.destination))}, {access} ({options})"
    return Privilege("bind mount", f"{access}: {meaning}", (text,))


def _describe_file_system(mount: MountEntry) -> Privilege:
    source = "" if mount.source == mount.type else f" from {_word(mount.source or '')}"
    options = f" with options {','.join(map(_word, mount.options))}" if mount.options else ""
    text = f"mount of type {_word(mount.type)}{source} on {_word(_inside(mount.destination))}{options}"
    meaning = _FILE_SYSTEMS.get(mount.type, "a file system that the kernel mounts; source and options say which")
    return Privilege("file system", meaning, (text,))


def check_granted(required: Iterable[Privilege], granted: Iterable[Privilege]) -> None:
    """Compare as multisets: the order of entries and of values says nothing, everything else does.

    Raises: Denied for any difference, with what is missing and what is too much.
    Source: the kind of check that moby got wrong until 99a095ecf0 (CVE-2026-33997); its text starts the same.
    """
    requested = list(required)
    given = list(granted)
    missing, surplus = find_missing(requested, given), find_missing(given, requested)
    parts = [
        f"{title}: {', '.join(map(str, each))}"
        for title, each in (("not granted", missing), ("not requested", surplus))
        if each
    ]
    if parts:
        raise errors.Denied(f"incorrect privileges: {'; '.join(parts)}")


def find_missing(required: Iterable[Privilege], granted: Iterable[Privilege]) -> list[Privilege]:
    """What is required and not granted, one grant for each time that it is required."""
    left = Counter(each.key for each in granted)
    missing = []
    for each in required:
        if left[each.key] > 0:
            left[each.key] -= 1
        else:
            missing.append(each)
    return missing


def find_named(config: Config, named: Overrides) -> list[Privilege]:
    """What naming a source or path in a ``set`` grants: that mount if it is a bind, or that device, as it is then.

    A file system is not granted by naming its source, which says nothing of what it shows.
    """
    settings, sources, paths = effective_settings(config, named), dict(named.mounts), dict(named.devices)
    mounts = [each for each in settings.mounts if each.source and sources.get(each.name) == each.source]
    devices = [each for each in settings.devices if each.path and paths.get(each.name) == each.path]
    return [
        *(Privilege("mount", "host path to mount", (each.source or "",)) for each in mounts),
        *(Privilege("device", "host device to access", (each.path or "",)) for each in devices),
        *(describe_mount(each) for each in mounts if each.is_bind),
    ]


def parse_privileges(raw: bytes) -> tuple[Privilege, ...]:
    """The grants in the body of a pull or upgrade; no body, ``null`` and ``[]`` are the same. Raises: Invalid."""
    if not raw.strip():
        return ()
    notes = Notes("the privileges")
    values = decode(raw, notes.document)
    if values is not None and not isinstance(values, list):
        raise errors.Invalid("cannot read the privileges: they must be a list")
    known = ("name", "description", "value")
    entries = [Fields(each, f"[{index}]", known, notes) for index, each in enumerate(values or [])]
    made = tuple(Privilege(each.text("name"), each.text("description"), each.texts("value")) for each in entries)
    notes.finish()
    return made


def privileges_to_api(privileges: Sequence[Privilege]) -> list[dict[str, object]]:
    """The list as the Engine API shows it."""
    return [{"Name": each.name, "Description": each.description, "Value": list(each.value)} for each in privileges]


def _word(text: str) -> str:
    """A part of a description, in quotes where it could be taken for more than one part."""
    if _PLAIN_WORD.fullmatch(text) and is_printable(text):
        return text
    return escape(json.dumps(text, ensure_ascii=False))


def _inside(path: str) -> str:
    """A path in the plugin without dots and doubled slashes: where it really is."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")

"""The policy file of a host: what it grants unattended, and whether a plugin complies with it."""

import posixpath
from collections.abc import Callable, Iterable

from msgspec import Struct, field

from moorage import errors
from moorage._lib.escapes import escape
from moorage.plugins._reader import Fields, decode, read_object
from moorage.plugins.model import Config, MountEntry
from moorage.plugins.privileges import Privilege, compute_privileges, describe_mount
from moorage.plugins.settings import Settings
from moorage.plugins.trust import TrustedKeys, parse_trusted_keys

__all__ = ("Policy", "check_policy", "find_refusals", "parse_policy")

_LISTS = ("network", "mounts", "readOnlyMounts", "fileSystems", "devices", "capabilities", "seccomp", "apparmor")
_FLAGS = {
    "hostIpc": "host ipc namespace",
    "hostPid": "host pid namespace",
    "allowAllDevices": "allow-all-devices",
    "newPrivileges": "new privileges",
}
_ANY = "*"
_WITHOUT_SOURCE = frozenset(
    {"tmpfs", "ramfs", "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "overlay", "debugfs", "tracefs", "bpf"}
)
"""File systems whose source is only a label, whatever it looks like."""


class Policy(Struct, frozen=True):
    """What a host grants unattended; anything else is never granted."""

    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Rules by key of the file; ``"*"`` allows anything, a path that ends in a slash everything below it."""
    flags: frozenset[str] = frozenset()
    """Names of the privileges that are allowed as a whole."""
    trusted_keys: TrustedKeys = field(default_factory=TrustedKeys)
    """The required signatures of packages; unlike privileges, also if a user is prompted."""

    def allows(self, key: str, value: str) -> bool:
        """Whether a list allows a value as it is written."""
        rules = self.lists.get(key, ())
        return _ANY in rules or value in rules

    def allows_bind(self, path: str, *, is_read_only: bool) -> bool:
        """Whether a path of the host, without symbolic links in it, may be bound so."""
        keys = ("mounts", "readOnlyMounts") if is_read_only else ("mounts",)
        return any(self._allows_path(key, path) for key in keys)

    def allows_device(self, path: str) -> bool:
        """Whether a device at this path, without symbolic links in it, may be used."""
        return self._allows_path("devices", path)

    def allows_file_system(self, mount: MountEntry, resolve: Callable[[str], str]) -> bool:
        """Whether a mount that is no bind is allowed: its type, and the device that it is on."""
        if _ANY in self.lists.get("mounts", ()):
            return True
        if not self.allows("fileSystems", mount.type):
            return False
        source = mount.source or ""
        is_label = mount.type in _WITHOUT_SOURCE or not source.startswith("/")
        return is_label or self.allows_device(resolve(source))

    def allows_capability(self, spelling: str) -> bool:
        """Whether a capability is allowed, in any spelling."""
        rules = self.lists.get("capabilities", ())
        return _ANY in rules or _plain(spelling) in {_plain(each) for each in rules}

    def allows_widening(self, name: str, value: str) -> bool:
        """Whether a plugin's confinement may be widened so (``confinement.widenings``)."""
        return name in self.flags or (name in ("seccomp", "apparmor") and self.allows(name, value))

    def _allows_path(self, key: str, path: str) -> bool:
        rules = self.lists.get(key, ())
        return _ANY in rules or any(_is_within(path, rule) for rule in rules)


def parse_policy(raw: bytes) -> Policy:
    """A host's policy file: JSON with any of the keys that docs/reference/config.md lists.

    Raises: Invalid, also for an unknown key: a typing error must not pass for a rule.
    """
    top = read_object(raw, (*_LISTS, *_FLAGS, "trusted_keys"), "the policy", refuses_unknown=True)
    policy = Policy(
        lists={key: top.texts(key) for key in _LISTS},
        flags=frozenset(name for key, name in _FLAGS.items() if top.flag(key)),
        trusted_keys=parse_trusted_keys(decode(raw, "the policy")),
    )
    _finish(top)
    return policy


def _finish(top: Fields) -> None:
    """Raises: Invalid for warnings, too."""
    for warning in top.notes.finish():
        raise errors.Invalid(f"cannot read the policy: {warning}")


def check_policy(
    policy: Policy,
    config: Config,
    settings: Settings | None = None,
    *,
    attended: Iterable[Privilege] = (),
    resolve: Callable[[str], str] = lambda path: path,
) -> None:
    """Whether the host grants everything that a plugin requests with these settings (None: the config's defaults).

    ``attended`` are privileges that a person granted; the policy says nothing about those. ``resolve`` gives the path
    that a path of the host really is.

    Raises: Denied naming all that it does not grant.
    """
    if refused := find_refusals(policy, config, settings, attended=attended, resolve=resolve):
        raise errors.Denied(f"cannot grant unattended: this host's policy does not allow {', '.join(refused)}")


def find_refusals(
    policy: Policy,
    config: Config,
    settings: Settings | None,
    *,
    attended: Iterable[Privilege],
    resolve: Callable[[str], str],
) -> list[str]:
    """What a policy does not grant, as text; see ``check_policy``."""
    mounts = config.mounts if settings is None else settings.mounts
    seen = {(each.name, value) for each in attended for value in each.value}
    refused = []
    for each in compute_privileges(config, settings):
        if each.name not in ("mount", "bind mount", "file system"):
            refused += [
                _shown(each.name, value, resolve)
                for value in each.value
                if (each.name, value) not in seen and not _allows(policy, each.name, value, resolve)
            ]
    for mount in mounts:
        if mount.source:
            described = describe_mount(mount)
            if (described.name, described.value[0]) not in seen and not _allows_mount(policy, mount, resolve):
                refused.append(
                    _shown(described.name, described.value[0], resolve, mount.source if mount.is_bind else "")
                )
    return refused


def _allows(policy: Policy, name: str, value: str, resolve: Callable[[str], str]) -> bool:
    match name:
        case "network":
            return policy.allows("network", value)
        case "device":
            return not _climbs(value) and policy.allows_device(resolve(value))
        case "capabilities":
            return policy.allows_capability(value)
        case _:
            return name in policy.flags


def _allows_mount(policy: Policy, mount: MountEntry, resolve: Callable[[str], str]) -> bool:
    source = mount.source or ""
    if not mount.is_bind:
        return policy.allows_file_system(mount, resolve)
    return not _climbs(source) and policy.allows_bind(resolve(source), is_read_only=mount.is_read_only)


def _shown(name: str, value: str, resolve: Callable[[str], str], path: str = "") -> str:
    path = path or (value if name == "device" else "")
    real = resolve(path) if path.startswith("/") else path
    is_other = bool(path) and posixpath.normpath(real) != posixpath.normpath(path)
    more = f", which is {escape(real)}" if is_other else ""
    return f"{Privilege(name, value=(value,))}{more}"


def _climbs(path: str) -> bool:
    return ".." in path.split("/")  # behind a link, .. leads anywhere


def _is_within(path: str, rule: str) -> bool:
    """Whether an absolute path is what a rule names, or below it if the rule ends in a slash."""
    if not path.startswith("/") or _climbs(path):
        return False
    clean, bound = posixpath.normpath(path), posixpath.normpath(rule)
    return clean == bound or (rule.endswith("/") and clean.startswith(bound.rstrip("/") + "/"))


def _plain(spelling: str) -> str:
    return spelling.strip().upper().removeprefix("CAP_")

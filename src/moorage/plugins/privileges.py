"""What a plugin asks of its host, whether exactly that was granted, and what a host grants with nobody there to ask."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from moorage import errors
from moorage.plugins._reader import Fields, Notes, decode, quote, read_object
from moorage.plugins.model import ISOLATED_NETWORKS, Config

__all__ = (
    "Policy",
    "Privilege",
    "check_granted",
    "check_policy",
    "compute_privileges",
    "parse_policy",
    "parse_privileges",
    "privileges_to_api",
)

_POLICY_KEYS = {
    "network": "network",
    "mounts": "mount",
    "devices": "device",
    "capabilities": "capabilities",
    "hostIpc": "host ipc namespace",
    "hostPid": "host pid namespace",
    "allowAllDevices": "allow-all-devices",
}
_FLAGS = ("hostIpc", "hostPid", "allowAllDevices")
_ANY = "*"


class Privilege(Struct, frozen=True):
    """One thing that a plugin asks for; only name and values count, the description is for people."""

    name: str
    description: str = ""
    value: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """What two privileges are compared by."""
        return self.name, tuple(sorted(self.value))

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(quote(each) for each in self.value)}]"


class Policy(Struct, frozen=True):
    """What a host grants unattended, by name of the privilege; a name that is not here is never granted."""

    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def allows(self, name: str, value: str) -> bool:
        """Whether one value may be granted."""
        rules = self.allowed.get(name, ())
        if _ANY in rules:
            return True
        if name in ("mount", "device"):
            return any(_is_within(value, rule) for rule in rules)
        if name == "capabilities":
            return _plain_capability(value) in {_plain_capability(each) for each in rules}
        return value in rules


def compute_privileges(config: Config) -> tuple[Privilege, ...]:
    """What a config asks for, in the order in which Docker lists it. Entries that are off or not set ask nothing."""
    linux = config.linux
    asked = []
    if config.network.type not in ISOLATED_NETWORKS:
        asked.append(Privilege("network", "permissions to access a network", (config.network.type,)))
    if config.ipc_host:
        asked.append(Privilege("host ipc namespace", "allow access to host ipc namespace", ("true",)))
    if config.pid_host:
        asked.append(Privilege("host pid namespace", "allow access to host pid namespace", ("true",)))
    asked += [Privilege("mount", "host path to mount", (each.source,)) for each in config.mounts if each.source]
    asked += [Privilege("device", "host device to access", (each.path,)) for each in linux.devices if each.path]
    if linux.allow_all_devices:
        asked.append(Privilege("allow-all-devices", "allow 'rwm' access to all devices", ("true",)))
    if linux.capabilities:
        text = "list of additional capabilities required"
        asked.append(Privilege("capabilities", text, linux.capabilities))
    return tuple(asked)


def check_granted(required: Iterable[Privilege], granted: Iterable[Privilege]) -> None:
    """Compare as multisets: the order of entries and of values says nothing, everything else does.

    Raises: Denied for any difference, with what is missing and what is too much.
    Source: the kind of check that moby got wrong until 99a095ecf0 (CVE-2026-33997); its text starts the same.
    """
    asked = list(required)
    given = list(granted)
    wanted, had = Counter(each.key for each in asked), Counter(each.key for each in given)
    if wanted == had:
        return
    missing = [str(Privilege(name, value=value)) for name, value in (wanted - had).elements()]
    surplus = [str(Privilege(name, value=value)) for name, value in (had - wanted).elements()]
    parts = [
        f"{title}: {', '.join(each)}" for title, each in (("not granted", missing), ("not asked for", surplus)) if each
    ]
    raise errors.Denied(f"incorrect privileges: {'; '.join(parts)}")


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


def parse_policy(raw: bytes) -> Policy:
    """A host's allow-list: JSON with any of ``network``, ``mounts``, ``devices`` and ``capabilities`` (lists, in which
    ``"*"`` is anything and a path that ends in ``/`` everything below it), and ``hostIpc``, ``hostPid`` and
    ``allowAllDevices`` (true).

    Raises: Invalid, also for a key it does not know: a typing error must not pass for a rule.
    """
    top = read_object(raw, tuple(_POLICY_KEYS), "the policy")
    allowed: dict[str, tuple[str, ...]] = {}
    for key, name in _POLICY_KEYS.items():
        if key not in _FLAGS:
            allowed[name] = top.texts(key)
        elif top.flag(key):
            allowed[name] = ("true",)
    for warning in top.notes.finish():
        raise errors.Invalid(f"cannot read the policy: {warning}")
    return Policy(allowed)


def check_policy(policy: Policy, config: Config) -> None:
    """Whether the host grants everything that a config asks for.

    A mount that is no bind is granted only by ``"*"``: its options can name paths that its source does not show.

    Raises: Denied naming all that it does not grant.
    """
    refused = [
        str(Privilege(each.name, value=(value,)))
        for each in compute_privileges(config)
        for value in each.value
        if not policy.allows(each.name, value)
    ]
    if _ANY not in policy.allowed.get("mount", ()):
        refused += [
            f"mount of type {quote(each.type)} on {quote(each.destination)}"
            for each in config.mounts
            if each.source and not each.is_bind
        ]
    if refused:
        raise errors.Denied(f"cannot grant unattended: this host's policy does not allow {', '.join(refused)}")


def _is_within(path: str, rule: str) -> bool:
    """Whether an absolute path is what a rule names, or below it if the rule ends in a slash."""
    if not path.startswith("/") or ".." in path.split("/"):  # behind a link, .. leads anywhere
        return False
    clean = posixpath.normpath(path)
    bound = posixpath.normpath(rule)
    return clean == bound or (rule.endswith("/") and clean.startswith(bound.rstrip("/") + "/"))


def _plain_capability(spelling: str) -> str:
    return spelling.strip().upper().removeprefix("CAP_")

"""What separates a machine from a file of ``moorage apply``, plugin by plugin. Pure: of documents, in steps."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from moorage.cli.wanted import POLICY_KEYS, Wanted, WantedFile
from moorage.plugins import parse_reference

__all__ = ("Difference", "find_differences")

_MASK = "********"  # what the engine shows of a secret

Plugin = Mapping[str, Any]
"""A plugin as the engine shows it."""


class Difference(Struct, frozen=True):
    """What is to be done to one plugin, in this order, and in words."""

    name: str
    wanted: Wanted | None
    """None for one that is to be removed."""
    is_there: bool = False
    stop: bool = False
    """It runs, and something is to be changed that can only be changed while it does not."""
    upgrade: bool = False
    settings: tuple[str, ...] = ()
    """NAME=VALUE."""
    secrets: tuple[str, ...] = ()
    """Names."""
    policy: Mapping[str, object] | None = None
    start: bool = False
    texts: tuple[str, ...] = ()
    """Every difference in words, one a line."""

    @property
    def kind(self) -> str:
        """``install``, ``change``, ``remove`` or ``none``."""
        if self.wanted is None:
            return "remove"
        return "install" if not self.is_there else "change" if self.texts else "none"


def find_differences(file: WantedFile, plugins: Sequence[Plugin]) -> list[Difference]:
    """What is to be done, in the order of the file; what else is there comes first, where it is to go."""
    known = {name: each for each in plugins for name in (each["Name"], *each["Moorage"].get("Tags", ()))}
    kept = {known[each.name]["Id"] for each in file.plugins if each.name in known}
    others = [each for each in plugins if each["Id"] not in kept] if file.removes_others else []
    return [
        *(Difference(each["Name"], None, is_there=True, stop=each["Enabled"], texts=("remove",)) for each in others),
        *(_difference(each, known.get(each.name)) for each in file.plugins),
    ]


def _difference(wanted: Wanted, plugin: Plugin | None) -> Difference:
    if plugin is None:
        return _install(wanted)
    has_moved = _full(plugin["PluginReference"]) != wanted.reference
    settings = tuple(key for key, value in wanted.settings.items() if not _is_set(plugin, key, value))
    secrets = tuple(key for key in wanted.secrets if _value(plugin, key) != _MASK)
    policy = {key: value for key, value in wanted.policy.items() if not _is_policy(plugin, key, value)}
    must_stop = has_moved or bool(settings) or bool(secrets)
    is_enabled = bool(plugin["Enabled"])
    texts = (
        *((f"reference: {_full(plugin['PluginReference'])} -> {wanted.reference}",) if has_moved else ()),
        *(f"{key}: {_shown(_value(plugin, key))} -> {_shown(wanted.settings[key])}" for key in settings),
        *(f"{key}: a secret, not set -> from {wanted.secrets[key]}" for key in secrets),
        *(f"policy {_POLICY[key]}: {_policy(plugin, key)} -> {value}" for key, value in policy.items()),
        *((f"enabled: {_word(is_enabled)} -> {_word(wanted.enabled)}",) if is_enabled != wanted.enabled else ()),
    )
    return Difference(
        wanted.name,
        wanted,
        is_there=True,
        stop=is_enabled and (must_stop or not wanted.enabled),
        upgrade=has_moved,
        settings=tuple(f"{key}={wanted.settings[key]}" for key in settings),
        secrets=secrets,
        policy=policy or None,
        start=wanted.enabled and (not is_enabled or must_stop),
        texts=texts,
    )


def _install(wanted: Wanted) -> Difference:
    return Difference(
        wanted.name,
        wanted,
        settings=tuple(f"{key}={value}" for key, value in wanted.settings.items()),
        secrets=tuple(wanted.secrets),
        policy=wanted.policy or None,
        start=wanted.enabled,
        texts=(
            f"install {wanted.reference}",
            *(f"{key}: {_shown(value)}" for key, value in wanted.settings.items()),
            *(f"{key}: a secret, from {path}" for key, path in wanted.secrets.items()),
            *(f"policy {_POLICY[key]}: {value}" for key, value in wanted.policy.items()),
            f"enabled: {_word(wanted.enabled)}",
        ),
    )


# what a plugin has

_POLICY = {each.name: key for key, each in POLICY_KEYS.items()}
_POLICY_KEYS = {"apparmor": "AppArmor"}


def _full(reference: str) -> str:
    return str(parse_reference(reference).with_default_tag())


def _value(plugin: Plugin, key: str) -> str | None:
    """What a setting is now, by the name that ``set`` has for it; None where it is not set, or not there at all."""
    settings = plugin["Settings"]
    name, dot, field = key.rpartition(".")
    for text in settings["Env"]:
        known, _, value = text.partition("=")
        if known == key or (dot and (known, "value") == (name, field)):
            return str(value)
    for kind, wanted in (("Mounts", "Source"), ("Devices", "Path")):
        for each in settings[kind]:
            if each["Name"] and (each["Name"] == key or (dot and (each["Name"], wanted.lower()) == (name, field))):
                return None if each[wanted] is None else str(each[wanted])
    if key and plugin["Config"]["Args"]["Name"] in (key, name if dot and field == "value" else key):
        return shlex.join(settings["Args"])
    return None


def _is_set(plugin: Plugin, key: str, value: str) -> bool:
    found = _value(plugin, key)
    if found is not None and plugin["Config"]["Args"]["Name"] == key:
        try:
            return shlex.split(value) == list(plugin["Settings"]["Args"])
        except ValueError:
            return False
    return found == value


def _policy(plugin: Plugin, key: str) -> object:
    name = _POLICY_KEYS.get(key) or key.title().replace("_", "")
    return plugin["Moorage"]["Policy"][name]


def _is_policy(plugin: Plugin, key: str, value: object) -> bool:
    found = _policy(plugin, key)
    if key == "rlimits":
        assert isinstance(found, Mapping)
        assert isinstance(value, Mapping)
        return all(list(found.get(name, ())) == list(pair) for name, pair in value.items())
    return (found or 0) == value if key == "most" else found == value


def _shown(value: str | None) -> str:
    return "not set" if value is None else f'"{value}"'


def _word(is_enabled: bool) -> str:
    return "yes" if is_enabled else "no"

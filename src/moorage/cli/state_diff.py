"""The diff between the plugins of an engine and their desired state, as steps for each plugin. Pure."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import UNSET, Struct
from msgspec.structs import asdict, replace

from moorage.api.schema.base import to_document
from moorage.api.schema.consumers import PluginPublication
from moorage.api.schema.plugins import HealthRequest, PluginDetails, PluginHealthPolicy
from moorage.cli.health.options import describe_checks
from moorage.cli.state_file import POLICY_KEYS, DesiredPlugin, DesiredState
from moorage.plugins import parse_reference

__all__ = ("PluginDiff", "actual_state", "diff_state", "find_names")

_MASK = "********"
"""What the engine shows for a secret."""


class PluginDiff(Struct, frozen=True):
    """The steps for one plugin, in this order, and as text."""

    name: str
    desired: DesiredPlugin | None
    """None for one to be removed."""
    is_installed: bool = False
    stop: bool = False
    """It is enabled, and has to be disabled, also in order to change something."""
    upgrade: bool = False
    settings: tuple[str, ...] = ()
    """NAME=VALUE."""
    secrets: tuple[str, ...] = ()
    """Names."""
    policy: Mapping[str, Any] | None = None
    publish: Mapping[str, Any] | bool | None = None
    """Fields of a ``PublishRequest``; False for one to be unpublished, None where nothing changes."""
    labels: Mapping[str, str] | None = None
    """All that it is to have; None where they do not change."""
    adopts: bool = False
    """It was made otherwise, and belongs to the file from now on."""
    start: bool = False
    texts: tuple[str, ...] = ()
    """Every difference as text, one a line."""

    @property
    def kind(self) -> str:
        """``install``, ``change``, ``remove`` or ``none``."""
        if self.desired is None:
            return "remove"
        return "install" if not self.is_installed else "change" if self.texts else "none"


def diff_state(
    desired: DesiredState, plugins: Sequence[PluginDetails], prunes: str = "", adopts: str = ""
) -> list[PluginDiff]:
    """The diff of each plugin: first of those to be removed, then in the order of the file.

    ``prunes``: the identity of the file whose plugins are removed where it does not have them; "" for none.
    ``adopts``: the identity of the file that all its plugins are to have; "" for leaving it as it is.
    """
    known = find_names(plugins)
    listed = {known[each.name].id for each in desired.plugins if each.name in known}
    others = [
        each
        for each in plugins
        if each.id not in listed and (desired.removes_others or (prunes and each.moorage.applied_by == prunes))
    ]
    return [
        *(PluginDiff(each.name, None, is_installed=True, stop=each.enabled, texts=("remove",)) for each in others),
        *(_diff(each, known.get(each.name), adopts) for each in desired.plugins),
    ]


def find_names(plugins: Sequence[PluginDetails]) -> Mapping[str, PluginDetails]:
    """Every name of every plugin."""
    return {name: each for each in plugins for name in (each.name, *each.moorage.tags)}


def actual_state(desired: DesiredPlugin | None, plugin: PluginDetails) -> dict[str, Any]:
    """What a plugin has of what the file says, as a document; without ``desired`` only where it is from."""
    found = {"Reference": _full(plugin), "Enabled": plugin.enabled, "State": plugin.moorage.state}
    if health := plugin.moorage.health:
        found["Health"] = health.status
    if desired is not None and desired.labels is not None:
        found["Labels"] = plugin.moorage.labels
    if desired is not None:
        found["Settings"] = {key: _value(plugin, key) for key in (*desired.settings, *desired.secrets)}
        found["Policy"] = {key: to_document(_policy(plugin, key)) for key in desired.policy}
    return found


def _diff(desired: DesiredPlugin, plugin: PluginDetails | None, adopts: str) -> PluginDiff:
    if plugin is None:
        return _install(desired)
    has_moved = _full(plugin) != desired.reference
    settings = tuple(f"{key}={value}" for key, value in desired.settings.items() if not _is_set(plugin, key, value))
    secrets = tuple(key for key in desired.secrets if _value(plugin, key) != _MASK)
    must_stop = has_moved or bool(settings) or bool(secrets)
    diff = PluginDiff(
        desired.name,
        desired,
        is_installed=True,
        stop=plugin.enabled and (must_stop or not desired.enabled),
        upgrade=has_moved,
        settings=settings,
        secrets=secrets,
        policy={key: value for key, value in desired.policy.items() if not _is_policy(plugin, key, value)} or None,
        publish=_publication(desired, plugin),
        labels=desired.labels if desired.labels != plugin.moorage.labels else None,
        adopts=bool(adopts) and plugin.moorage.applied_by != adopts,
        start=desired.enabled and (not plugin.enabled or must_stop),
    )
    return replace(diff, texts=tuple(_changes(diff, desired, plugin, adopts)))


def _changes(diff: PluginDiff, desired: DesiredPlugin, plugin: PluginDetails, adopts: str) -> Iterator[str]:
    """Every difference as text."""
    if diff.upgrade:
        yield f"reference: {_full(plugin)} -> {desired.reference}"
    for setting in diff.settings:
        key = setting.partition("=")[0]
        yield f"{key}: {_shown(_value(plugin, key))} -> {_shown(desired.settings[key])}"
    for key in diff.secrets:
        yield f"{key}: a secret, not set -> from {desired.secrets[key]}"
    for key, value in (diff.policy or {}).items():
        yield f"{_POLICY[key]}: {_shown_policy(_policy(plugin, key))} -> {_shown_policy(value)}"
    if diff.publish is not None:
        yield f"publish: {_shown_publication(plugin)} -> {_shown_publish(diff.publish)}"
    if diff.labels is not None:
        yield f"labels: {_shown_labels(plugin.moorage.labels)} -> {_shown_labels(diff.labels)}"
    if diff.adopts:
        yield f"applied by: {plugin.moorage.applied_by or 'no file'} -> {adopts}"
    if plugin.enabled != desired.enabled:
        yield f"enabled: {_word(plugin.enabled)} -> {_word(desired.enabled)}"


def _install(desired: DesiredPlugin) -> PluginDiff:
    return PluginDiff(
        desired.name,
        desired,
        settings=tuple(f"{key}={value}" for key, value in desired.settings.items()),
        secrets=tuple(desired.secrets),
        policy=desired.policy or None,
        publish=desired.publish or None,
        labels=desired.labels or None,
        start=desired.enabled,
        texts=(
            f"install {desired.reference}",
            *(f"{key}: {_shown(value)}" for key, value in desired.settings.items()),
            *(f"{key}: a secret, from {path}" for key, path in desired.secrets.items()),
            *(f"{_POLICY[key]}: {_shown_policy(value)}" for key, value in desired.policy.items()),
            *((f"publish: {_shown_publish(desired.publish)}",) if desired.publish else ()),
            *((f"labels: {_shown_labels(desired.labels)}",) if desired.labels else ()),
            f"enabled: {_word(desired.enabled)}",
        ),
    )


def _publication(desired: DesiredPlugin, plugin: PluginDetails) -> Mapping[str, Any] | bool | None:
    """How to publish it, False to unpublish it, None where nothing changes; what the file omits has its default."""
    requested, present = desired.publish, plugin.moorage.published
    if not isinstance(requested, Mapping):
        return False if requested is False and present is not None else None
    if present is None:
        return requested
    fields = {**asdict(PluginPublication([])), **requested, "names": requested["names"] or [plugin.name]}
    del fields["mode"]
    return None if all(getattr(present, key) == value for key, value in fields.items()) else requested


def _shown_publication(plugin: PluginDetails) -> str:
    published = plugin.moorage.published
    return "no" if published is None else f"as {', '.join(published.names)}"


def _shown_publish(publish: Mapping[str, Any] | bool | None) -> str:
    if not isinstance(publish, Mapping):
        return "no"
    options = [f"{key}={value}" for key, value in publish.items() if key != "names"]
    return " ".join((f"as {', '.join(publish['names']) or 'its name'}", *options))


_POLICY = {**{each.name: f"policy {key}" for key, each in POLICY_KEYS.items()}, "health": "health"}


def _full(plugin: PluginDetails) -> str:
    return str(parse_reference(plugin.plugin_reference or plugin.name).with_default_tag())


def _value(plugin: PluginDetails, key: str) -> str | None:
    """The present value of a setting, by the name that ``set`` has for it; None where it is not set, or unknown."""
    settings, args_name = plugin.settings, plugin.config.args.name
    name, dot, field = key.rpartition(".")
    for text in settings.env:
        known, _, value = text.partition("=")
        if known == key or (dot and (known, "value") == (name, field)):
            return value
    paths = [(each.name, "source", each.source) for each in settings.mounts]
    paths += [(each.name, "path", each.path) for each in settings.devices]
    for known, kind, path in paths:
        if known and (known == key or (dot and (known, kind) == (name, field))):
            return path
    if key and args_name in (key, name if dot and field == "value" else key):
        return shlex.join(settings.args)
    return None


def _is_set(plugin: PluginDetails, key: str, value: str) -> bool:
    found = _value(plugin, key)
    if found is not None and plugin.config.args.name == key:
        try:
            return shlex.split(value) == plugin.settings.args
        except ValueError:
            return False
    return found == value


def _policy(plugin: PluginDetails, key: str) -> object:
    return getattr(plugin.moorage.policy, key)


def _is_policy(plugin: PluginDetails, key: str, value: object) -> bool:
    found = _policy(plugin, key)
    if key == "rlimits":
        assert isinstance(found, Mapping)
        assert isinstance(value, Mapping)
        return all(list(found.get(name, ())) == list(pair) for name, pair in value.items())
    if isinstance(value, HealthRequest):
        return all(
            desired is UNSET or getattr(found, name, UNSET) == desired for name, desired in asdict(value).items()
        )
    return (found or 0) == value if key == "most" else found == value


def _shown_policy(value: object) -> object:
    if not isinstance(value, PluginHealthPolicy | HealthRequest):
        return value
    found = {name.replace("_", " "): each for name, each in asdict(value).items() if each is not UNSET}
    checks = found.pop("checks", None)
    texts = [describe_checks(checks)] if checks is not None else []
    texts += [f"{name} {each:g}" if isinstance(each, float) else f"{name} {each}" for name, each in found.items()]
    return "; ".join(texts)


def _shown_labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "none"


def _shown(value: str | None) -> str:
    return "not set" if value is None else f'"{value}"'


def _word(is_enabled: bool) -> str:
    return "yes" if is_enabled else "no"

"""The overrides of a user, stored apart from the config, and the effective settings of both.

Effective settings are computed, never stored: the defaults of the current config, then the user's overrides. So they
are the same before and after a restart, and an upgrade applies its new defaults without losing overrides.
"""

import shlex
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.escapes import find_control, quote
from moorage._lib.values import repr_without
from moorage.plugins._reader import is_text
from moorage.plugins.document import device_to_api, mount_to_api
from moorage.plugins.model import Config, DeviceEntry, EnvEntry, MountEntry

__all__ = (
    "MASK",
    "NO_OVERRIDES",
    "Overrides",
    "Rebased",
    "Settings",
    "apply_settings",
    "effective_settings",
    "masked",
    "merge_overrides",
    "rebase",
    "settable_names",
    "settings_to_api",
)

MASK = "********"
"""What stands for a secret value wherever it is shown."""


class Overrides(Struct, frozen=True):
    """What a user set, by name of the entry, in the order of setting. Values stay out of ``repr``, and so of logs.

    ``env``, ``mounts`` (sources) and ``devices`` (paths) are pairs of a name and a value; ``args`` replaces all.
    """

    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    devices: tuple[tuple[str, str], ...] = ()
    args: tuple[str, ...] | None = None
    args_name: str = ""
    """Which args the override was for; an upgrade that calls them otherwise drops it."""
    secrets: frozenset[str] = frozenset()
    """Settable names (``TOKEN.value``) whose values are never shown; once secret, a name stays so."""

    __repr__ = repr_without("env", "mounts", "devices", "args")


NO_OVERRIDES = Overrides()


class Settings(Struct, frozen=True):
    """What a plugin runs with: config and overrides together. Values stay out of ``repr``, and so of logs.

    ``args``, ``mounts`` and ``devices`` are effective; ``secrets`` and ``args_name`` are those of the overrides.
    """

    env: tuple[tuple[str, str], ...] = ()
    """Each name once; the value "" is present and empty."""
    args: tuple[str, ...] = ()
    mounts: tuple[MountEntry, ...] = ()
    devices: tuple[DeviceEntry, ...] = ()
    secrets: frozenset[str] = frozenset()
    args_name: str = ""

    __repr__ = repr_without("env", "args", "mounts", "devices")


class Rebased(Struct, frozen=True):
    """Overrides that apply to a config, and the names (``state.source``) of those that do not and were dropped.

    ``overrides`` apply; ``dropped`` are the names.
    """

    overrides: Overrides
    dropped: tuple[str, ...] = ()


class _Target(Struct, frozen=True):
    """One thing of a config that has a name and one field."""

    kind: str
    name: str
    field: str
    is_settable: bool
    is_path: bool = False

    @property
    def key(self) -> str:
        return f"{self.name}.{self.field}"


def apply_settings(
    config: Config, overrides: Overrides, assignments: Sequence[str], *, secrets: Sequence[str] = ()
) -> Overrides:
    """The overrides after ``set`` with ``NAME[.FIELD]=VALUE`` each; the later of two wins.

    ``secrets`` are assignments of the same form whose values are to be masked for ever. Nothing is changed if one is
    wrong, and no message shows a value.

    Raises: Invalid naming the key that is unknown, cannot be set or has a value that cannot be, and what can be set.
    Source: the `set` call of the Docker Engine API; quoting in args, dots in names and null values work here.
    """
    made = overrides
    for assignment, is_secret in [*((each, False) for each in assignments), *((each, True) for each in secrets)]:
        key, _, value = assignment.partition("=")
        if not key:
            raise errors.Invalid("invalid format, must be <name>[.<field>][=<value>]")
        target = _find(config, key)
        _check_value(target, value)
        made = _override(made, target, value)
        if is_secret:
            made = replace(made, secrets=made.secrets | {target.key})
    return made


def effective_settings(config: Config, overrides: Overrides) -> Settings:
    """What a plugin with this config and these overrides runs with. Overrides that do not apply have no effect."""
    applied = rebase(config, overrides).overrides
    values = {each.name: each.value for each in config.env if each.value is not None} | dict(applied.env)
    return Settings(
        env=tuple({each.name: values[each.name] for each in config.env if each.name in values}.items()),
        args=config.args.value if applied.args is None else applied.args,
        mounts=_mounts(config.mounts, dict(applied.mounts)),
        devices=_devices(config.linux.devices, dict(applied.devices)),
        secrets=applied.secrets,
        args_name=config.args.name,
    )


def rebase(config: Config, overrides: Overrides) -> Rebased:
    """Move overrides to another config: those whose entry is gone or can no longer be set are dropped, and named."""
    targets = {(each.kind, each.name) for each in _targets(config) if each.is_settable}
    remaining = Overrides(
        env=tuple(pair for pair in overrides.env if ("env", pair[0]) in targets),
        mounts=tuple(pair for pair in overrides.mounts if ("mount", pair[0]) in targets),
        devices=tuple(pair for pair in overrides.devices if ("device", pair[0]) in targets),
    )
    if overrides.args is not None and ("args", overrides.args_name) in targets:
        remaining = replace(remaining, args=overrides.args, args_name=overrides.args_name)
    still = set(_keys(remaining))
    dropped = tuple(key for key in _keys(overrides) if key not in still)
    return Rebased(replace(remaining, secrets=overrides.secrets & still), dropped)


def masked(settings: Settings) -> Settings:
    """The same settings with MASK instead of each secret value, for display."""

    def shown(key: str, value: str) -> str:
        return MASK if key in settings.secrets else value

    return replace(
        settings,
        env=tuple((name, shown(f"{name}.value", value)) for name, value in settings.env),
        args=tuple(shown(f"{settings.args_name}.value", value) for value in settings.args),
        mounts=tuple(
            replace(each, source=shown(f"{each.name}.source", each.source)) if each.source else each
            for each in settings.mounts
        ),
        devices=tuple(
            replace(each, path=shown(f"{each.name}.path", each.path)) if each.path else each
            for each in settings.devices
        ),
    )


def settings_to_api(settings: Settings) -> dict[str, object]:
    """The settings as the Engine API shows them: secrets masked, every list a list."""
    shown = masked(settings)
    return {
        "Args": list(shown.args),
        "Devices": [device_to_api(each) for each in shown.devices],
        "Env": [f"{name}={value}" for name, value in shown.env],
        "Mounts": [mount_to_api(each) for each in shown.mounts],
    }


def settable_names(config: Config) -> tuple[str, ...]:
    """What ``set`` takes for this config, in the shortest form that is always understood."""
    names = dict.fromkeys(
        each.name if each.field == "value" else each.key for each in _targets(config) if each.is_settable
    )
    return tuple(names)


def _targets(config: Config) -> list[_Target]:
    """Everything that has a name, in the order in which names are looked up."""

    def make(kind: str, entry: EnvEntry | MountEntry | DeviceEntry, field_name: str, *, is_path: bool) -> _Target:
        return _Target(kind, entry.name, field_name, field_name in entry.settable, is_path)

    args = config.args
    found = [
        *(make("env", each, "value", is_path=False) for each in config.env),
        *(make("mount", each, "source", is_path=each.is_bind) for each in config.mounts),
        *(make("device", each, "path", is_path=True) for each in config.linux.devices),
        _Target("args", args.name, "value", "value" in args.settable),
    ]
    return [each for each in found if each.name]


def _find(config: Config, key: str) -> _Target:
    """The exact name first, then name and field; of several with one name the first that can be set."""
    targets = _targets(config)
    name, dot, field_name = key.rpartition(".")
    found = [each for each in targets if each.name == key]
    found += [each for each in targets if dot and (each.name, each.field) == (name, field_name)]
    for target in found:
        if target.is_settable:
            return target
    known = found or any(dot and each.name == name for each in targets)
    names = settable_names(config)
    advice = f"what can be set: {', '.join(names)}" if names else "nothing can be set"
    if known:
        raise errors.Invalid(f"{quote(key, always=True)} is not settable; {advice}")
    raise errors.Invalid(f"setting {quote(key, always=True)} not found in the plugin configuration; {advice}")


def _check_value(target: _Target, value: str) -> None:
    if not is_text(value):
        raise errors.Invalid(f"cannot set {quote(target.key)}: a value is text in UTF-8 without NUL characters")
    if target.is_path and value and not value.startswith("/"):
        raise errors.Invalid(f"cannot set {quote(target.key)}: it must be an absolute path, or empty to switch it off")
    if target.kind in ("mount", "device") and (found := find_control(value)):
        raise errors.Invalid(f"cannot set {quote(target.key)}: it must not have the control character {found}")
    if target.kind == "args":
        _words(target, value)


def _words(target: _Target, value: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        reason = str(error).lower()
        raise errors.Invalid(f"cannot set {quote(target.key)}: it cannot be split into words: {reason}") from error


def _override(overrides: Overrides, target: _Target, value: str) -> Overrides:
    match target.kind:
        case "env":
            return replace(overrides, env=_with(overrides.env, target.name, value))
        case "mount":
            return replace(overrides, mounts=_with(overrides.mounts, target.name, value))
        case "device":
            return replace(overrides, devices=_with(overrides.devices, target.name, value))
        case _:
            return replace(overrides, args=_words(target, value), args_name=target.name)


def _with(pairs: tuple[tuple[str, str], ...], name: str, value: str) -> tuple[tuple[str, str], ...]:
    return tuple((dict(pairs) | {name: value}).items())


def _mounts(entries: tuple[MountEntry, ...], sources: dict[str, str]) -> tuple[MountEntry, ...]:
    left = dict(sources)
    return tuple(
        replace(each, source=left.pop(each.name)) if each.name in left and "source" in each.settable else each
        for each in entries
    )


def _devices(entries: tuple[DeviceEntry, ...], paths: dict[str, str]) -> tuple[DeviceEntry, ...]:
    left = dict(paths)
    return tuple(
        replace(each, path=left.pop(each.name)) if each.name in left and "path" in each.settable else each
        for each in entries
    )


def _keys(overrides: Overrides) -> list[str]:
    return [
        *(f"{name}.value" for name, _ in overrides.env),
        *(f"{name}.source" for name, _ in overrides.mounts),
        *(f"{name}.path" for name, _ in overrides.devices),
        *([f"{overrides.args_name}.value"] if overrides.args is not None else []),
    ]


def merge_overrides(own: Overrides, given: Overrides) -> Overrides:
    """The overrides, with those of ``given`` instead of those for the same settings."""
    if given == NO_OVERRIDES:
        return own
    return replace(
        own,
        env=tuple({**dict(own.env), **dict(given.env)}.items()),
        mounts=tuple({**dict(own.mounts), **dict(given.mounts)}.items()),
        devices=tuple({**dict(own.devices), **dict(given.devices)}.items()),
        args=own.args if given.args is None else given.args,
        args_name=own.args_name if given.args is None else given.args_name,
        secrets=own.secrets | given.secrets,
    )

"""Whether plugins are as a file says, and healthy. Pure; the exit statuses of ``moorage apply --check``."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from moorage.api.schema.base import to_document
from moorage.api.schema.plugins import PluginDetails
from moorage.cli.state_diff import PluginDiff, actual_state, find_names
from moorage.cli.state_file import DesiredPlugin

__all__ = ("DRIFT", "UNHEALTHY", "PluginCheck", "check_plugins", "check_status")

DRIFT = 4
"""Exit status: a plugin is not as the file says."""
UNHEALTHY = 5
"""Exit status: all plugins are as the file says, and one is not ready, or not healthy."""


class PluginCheck(Struct, frozen=True):
    """One plugin of a file, or one that would be removed."""

    name: str
    status: int
    """0, ``DRIFT`` or ``UNHEALTHY``."""
    desired: Mapping[str, Any] | None
    """None for one that would be removed."""
    actual: Mapping[str, Any] | None
    """None for one that is not installed."""
    reasons: tuple[str, ...]


def check_plugins(diffs: Sequence[PluginDiff], plugins: Sequence[PluginDetails]) -> list[PluginCheck]:
    """The check of each plugin of these differences."""
    known = find_names(plugins)
    return [_check(each, known.get(each.name)) for each in diffs]


def check_status(checks: Sequence[PluginCheck]) -> int:
    """The exit status: drift goes before bad health, because an apply may repair both."""
    statuses = {each.status for each in checks}
    return DRIFT if DRIFT in statuses else UNHEALTHY if UNHEALTHY in statuses else 0


def _check(diff: PluginDiff, plugin: PluginDetails | None) -> PluginCheck:
    unhealthy = _unhealthy(plugin) if plugin is not None and diff.desired is not None and diff.desired.enabled else ()
    status = DRIFT if diff.texts else UNHEALTHY if unhealthy else 0
    desired = None if diff.desired is None else _desired(diff.desired)
    actual = None if plugin is None else actual_state(diff.desired, plugin)
    return PluginCheck(diff.name, status, desired, actual, (*diff.texts, *unhealthy))


def _unhealthy(plugin: PluginDetails) -> tuple[str, ...]:
    """Why an enabled plugin is not ready, or not healthy."""
    more = plugin.moorage
    if not plugin.enabled:
        return ()
    if more.state != "ready":
        error = more.problem or (more.last_exit.error if more.last_exit is not None else "")
        return (f"state: {more.state}" + (f": {error.partition(chr(10))[0]}" if error else ""),)
    if more.health is not None and more.health.status != "healthy":
        text = more.health.log[-1].output if more.health.log else ""
        return (f"health: {more.health.status}" + (f": {text}" if text else ""),)
    if more.health is None and more.policy is not None and more.policy.health and more.policy.health.checks:
        return ("health: starting",)
    return ()


def _desired(desired: DesiredPlugin) -> dict[str, Any]:
    return {
        "Reference": desired.reference,
        "Enabled": desired.enabled,
        "Settings": dict(desired.settings),
        "Secrets": list(desired.secrets),
        "Policy": {key: to_document(value) for key, value in desired.policy.items()},
        **({} if desired.labels is None else {"Labels": dict(desired.labels)}),
    }

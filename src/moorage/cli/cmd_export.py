"""``moorage export``: the plugins of this machine as a file for ``moorage apply``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.references import names_registry
from moorage.cli.terminal import print_json, say, warn

if TYPE_CHECKING:
    from moorage.api.schema.consumers import PluginPublication
    from moorage.api.schema.plugins import PluginDetails, PluginHealthPolicy, PluginPolicy

_MASK = "********"
_DEFAULTS: dict[str, Any] = {
    "restart": "always",
    "max": 0,
    "stop-timeout": None,
    "log": "file",
    "standby": False,
    "seccomp": "default",
    "allow-new-privileges": False,
    "capabilities": "docker",
    "apparmor": "default",
    "selinux-label": "",
    "read-only": False,
    "userns": "host",
    "init": False,
    "memory": 0,
    "cpus": 0,
    "pids": 2048,
    "ulimits": {},
    "oom-score-adj": 0,
    "nice": 0,
}


_HEALTH_FIELDS = {
    "interval": "interval",
    "timeout": "timeout",
    "start-period": "start_period",
    "retries": "failures",
    "on-failure": "on_failure",
}
_PUBLISH_DEFAULTS: dict[str, Any] = {
    "group": "",
    "while-disabled": "auto",
    "while-unhealthy": "forward",
    "replay": True,
    "at-once": 100,
    "time-limits": {},
    "podman": None,
}


@click.command(
    name="export",
    help="Print the plugins of this machine as a YAML file for moorage apply: references, settings, privileges, "
    "policies. Values of secrets are not known to the command; the file names a file for each.",
)
@click.argument("plugins", metavar="[PLUGIN...]", nargs=-1, shell_complete=plugin_names)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to a file.  [default: standard output]")
@json_option
def command(plugins: tuple[str, ...], output: Path | None) -> None:
    """Export."""
    client = engine_client()
    found = [client.inspect(each) for each in plugins] if plugins else client.plugins()
    documents = []
    for plugin in sorted(found, key=lambda each: each.name):
        if names_registry(plugin.plugin_reference or ""):
            documents.append(_document(plugin))
        else:
            warn(f"plugin {plugin.name} was created on this machine and has no reference: push it, then install it")
    if is_json():
        print_json({"plugins": documents})
        return
    lines = ["plugins:", *(line for each in documents for line in _item(each))] if documents else ["plugins: []"]
    if output is None or str(output) == "-":
        for line in lines:
            say(line)
        return
    try:
        output.write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise errors.MoorageError(f"cannot write {output}: {error.strerror}") from error


def _document(plugin: "PluginDetails") -> dict[str, Any]:
    """One plugin as the file has it; what is the default is left out."""
    settings = dict(_settings(plugin))
    secrets = {key: f"{key}.secret" for key, value in settings.items() if value == _MASK}
    document = {
        "name": plugin.name,
        "reference": plugin.plugin_reference,
        "settings": {key: value for key, value in settings.items() if key not in secrets},
        "secrets": secrets,
        "enabled": plugin.enabled,
        "policy": _policy(plugin.moorage.policy) if plugin.moorage.policy else {},
        "health": _health(plugin.moorage.policy.health) if plugin.moorage.policy else {},
        "publish": _publish(plugin.moorage.published),
        "labels": plugin.moorage.labels,
        "privileges": [{"name": each.name, "value": sorted(each.value)} for each in plugin.moorage.privileges],
    }
    return {key: value for key, value in document.items() if value not in ({}, [])}


def _settings(plugin: "PluginDetails") -> Iterator[tuple[str, str]]:
    """Settings that differ from the defaults of the config, by the names that ``set`` has for them."""
    import shlex

    config, settings = plugin.config, plugin.settings
    defaults = {each.name: each.value for each in config.env}
    for text in settings.env:
        name, _, value = text.partition("=")
        if defaults.get(name) != value:
            yield name, value
    if config.args.name and settings.args != config.args.value:
        yield config.args.name, shlex.join(settings.args)
    for kind, configured, present in (
        ("source", {each.name: each.source for each in config.mounts}, [(m.name, m.source) for m in settings.mounts]),
        ("path", {each.name: each.path for each in config.linux.devices}, [(d.name, d.path) for d in settings.devices]),
    ):
        for name, path in present:
            if name and path and configured.get(name) != path:
                yield f"{name}.{kind}", path


def _policy(policy: "PluginPolicy") -> dict[str, Any]:
    from moorage.cli.state_file import POLICY_KEYS
    from moorage.plugins.confinement import BUILT_IN

    found = {key: getattr(policy, each.name) for key, each in POLICY_KEYS.items()}
    found["max"] = found["max"] or 0
    changed = {name: limits for name, limits in policy.rlimits.items() if tuple(limits) != BUILT_IN.rlimits.get(name)}
    found["ulimits"] = {name: f"{soft}:{hard}" for name, (soft, hard) in changed.items()}
    return {key: value for key, value in found.items() if value != _DEFAULTS[key]}


def _health(policy: "PluginHealthPolicy | None") -> dict[str, Any]:
    """The health checks that the file can name, and what of them is not the default."""
    from moorage.health.model import NO_HEALTH

    if policy is None or not policy.checks:
        return {}
    found: dict[str, Any] = {}
    for check in policy.checks:
        key, value = {
            "call": ("call", check.method),
            "command": ("cmd", check.command),
            "connect": ("connect", True),
        }[check.kind]
        found[key] = value
    for key, name in _HEALTH_FIELDS.items():
        if getattr(policy, name) != getattr(NO_HEALTH, name):
            found[key] = getattr(policy, name)
    return found


def _publish(published: "PluginPublication | None") -> dict[str, Any]:
    if published is None:
        return {}
    found = {
        "names": published.names,
        "group": published.group,
        "while-disabled": published.while_disabled,
        "while-unhealthy": published.while_unhealthy,
        "replay": published.replay,
        "at-once": published.at_once,
        "time-limits": published.time_limits,
        "podman": published.podman,
    }
    return {key: value for key, value in found.items() if value != _PUBLISH_DEFAULTS.get(key)}


def _item(document: dict[str, Any]) -> Iterator[str]:
    """An item of the list in YAML, all texts as JSON has them: that is YAML, too."""
    mark = "- "
    for key, value in document.items():
        if isinstance(value, dict):
            yield f"{mark}{key}:"
            yield from (f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in value.items())
        elif isinstance(value, list):
            yield f"{mark}{key}:"
            yield from (f"  - {json.dumps(each)}" for each in value)
        else:
            yield f"{mark}{key}: {json.dumps(value)}"
        mark = "  "

"""``moorage ls``: plugins in a table."""

from typing import TYPE_CHECKING, Any

import click

from moorage._lib.units import ago, duration
from moorage.cli.context import engine_client, is_json, json_option, print_values
from moorage.cli.format.rows import filter_option, format_option, print_rows
from moorage.cli.terminal import print_object, styled, table

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails, PluginLastExit

_HEAD = ("ID", "NAME", "STATE", "UPTIME", "RESTARTS", "LAST EXIT", "NEXT TRY", "DESCRIPTION")
_SHORT = 12
_DESCRIPTION = 32
_COLOURS = {"ready": "green", "failed": "red", "restarting": "yellow", "stopping": "yellow", "removing": "yellow"}
_COLOURS |= {"healthy": "green", "unhealthy": "red"}
_FILTERS = ("name", "id", "state", "enabled", "capability")


@click.command(name="ls", help="List plugins with their states, restarts and last exits.")
@click.option("-q", "--quiet", is_flag=True, help="Only display ids.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output.")
@filter_option("name=TEXT", "id=PREFIX", "state=ready", "enabled=true", "capability=NAME")
@format_option
@json_option
def command(quiet: bool, no_trunc: bool, filters: tuple[str, ...], template: str | None) -> None:
    """List."""
    found = _find(filters)
    if template is not None:  # before -q, as in docker
        print_rows(template, [_fields(plugin, no_trunc=no_trunc) for plugin in found])
    elif quiet:
        print_values("Id", [_id(plugin, no_trunc=no_trunc) for plugin in found])
    elif is_json():
        for plugin in found:
            print_object(plugin)
    else:
        _print_table(found, no_trunc=no_trunc)


def _print_table(plugins: "list[PluginDetails]", *, no_trunc: bool) -> None:
    columns = [(name, show) for name, show in _MORE.items() if any(show(plugin) for plugin in plugins)]
    rows = [(*_row(plugin, no_trunc=no_trunc), *(show(plugin) for _, show in columns)) for plugin in plugins]
    table((*_HEAD, *(name for name, _ in columns)), rows, is_cut=not no_trunc)


def _find(filters: tuple[str, ...]) -> "list[PluginDetails]":
    """The plugins that pass, by name. The engine knows what Docker's knows to filter by; the rest is done here.

    Raises:
        errors.Invalid: a filter is wrong
    """
    if not filters:
        return sorted(engine_client().plugins(), key=lambda plugin: plugin.name)
    from moorage.cli.format.filters import matches, name_matches, parse_filters, parse_flag

    parsed = parse_filters(filters, _FILTERS)
    if "enabled" in parsed:
        parsed["enabled"] = [str(parse_flag("enabled", each)).lower() for each in parsed["enabled"]]
    sent = {key: values for key, values in parsed.items() if key == "capability"}
    return [
        plugin
        for plugin in sorted(engine_client().plugins(sent), key=lambda plugin: plugin.name)
        if matches(
            parsed,
            {
                "name": name_matches(plugin.name),
                "id": plugin.id.startswith,
                "state": lambda value, state=plugin.moorage.state: value.lower() == state,  # type: ignore[misc]
                "enabled": lambda value, is_on=plugin.enabled: (value == "true") is is_on,  # type: ignore[misc]
            },
        )
    ]


def _id(plugin: "PluginDetails", *, no_trunc: bool) -> str:
    return plugin.id if no_trunc else plugin.id[:_SHORT]


def _description(plugin: "PluginDetails", *, no_trunc: bool) -> str:
    text = plugin.config.description
    return text if no_trunc or len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 1] + "…"


def _fields(plugin: "PluginDetails", *, no_trunc: bool) -> dict[str, Any]:
    """The fields of a template; the first five are docker's."""
    more = plugin.moorage
    return {
        "ID": _id(plugin, no_trunc=no_trunc),
        "Name": plugin.name,
        "Description": _description(plugin, no_trunc=no_trunc),
        "Enabled": plugin.enabled,
        "PluginReference": plugin.plugin_reference or "",
        "State": more.state,
        "Uptime": _uptime(plugin),
        "Restarts": more.restarts,
        "LastExit": _last_exit(more.last_exit),
        "NextTry": ago(more.next_try_at),
        "Capabilities": ",".join(plugin.config.interface.types),
        "Pid": more.pid,
        "Digest": more.digest,
        "Tags": ",".join(more.tags),
        "WidenedBy": _widenings(plugin),
    }


def _row(plugin: "PluginDetails", *, no_trunc: bool) -> tuple[str, ...]:
    more = plugin.moorage
    return (
        _id(plugin, no_trunc=no_trunc),
        plugin.name,
        styled(more.state, _COLOURS.get(more.state)),
        _uptime(plugin),
        str(more.restarts),
        _last_exit(more.last_exit),
        ago(more.next_try_at),
        _description(plugin, no_trunc=no_trunc),
    )


def _uptime(plugin: "PluginDetails") -> str:
    seconds = plugin.moorage.uptime_seconds
    return "" if seconds is None else duration(seconds) or "0 seconds"


def _widenings(plugin: "PluginDetails") -> str:
    """What the policy grants beyond the default."""
    return ", ".join(f"{each.name}: {', '.join(each.value)}" for each in plugin.moorage.widenings)


def _published(plugin: "PluginDetails") -> str:
    """Names of its sockets for consumers."""
    return ", ".join(plugin.moorage.published.names) if plugin.moorage.published else ""


def _health(plugin: "PluginDetails") -> str:
    """What its health checks say."""
    health = plugin.moorage.health
    return styled(health.status, _COLOURS.get(health.status)) if health else ""


_MORE = {"HEALTH": _health, "WIDENED BY": _widenings, "PUBLISHED AS": _published}
"""Columns that are only shown where one of their cells has a text."""


def _last_exit(last: "PluginLastExit | None") -> str:
    """How the last run exited, and when. One that did not start has neither code nor signal."""
    if last is None:
        return ""
    how = last.signal or ("unknown" if last.code is None else str(last.code))
    if last.oom:
        how = "out of memory"
    elif last.code is None and last.error:
        how = "did not start"
    return f"{how}, {ago(last.at)}" if last.at else how

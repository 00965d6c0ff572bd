"""``moorage ls``: plugins in a table."""

from typing import TYPE_CHECKING

import click

from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.terminal import print_object, say, styled, table
from moorage.cli.units import ago, duration

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails, PluginLastExit

_HEAD = ("ID", "NAME", "STATE", "UPTIME", "RESTARTS", "LAST EXIT", "NEXT TRY", "DESCRIPTION")
_SHORT = 12
_DESCRIPTION = 32
_COLOURS = {"ready": "green", "failed": "red", "restarting": "yellow", "stopping": "yellow", "removing": "yellow"}
_COLOURS |= {"healthy": "green", "unhealthy": "red"}


@click.command(name="ls", help="List plugins with their states, restarts and last exits.")
@click.option("-q", "--quiet", is_flag=True, help="Only display ids.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids and descriptions.")
@click.option("-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True, help="enabled=true or capability=NAME.")
@json_option
def command(quiet: bool, no_trunc: bool, filters: tuple[str, ...]) -> None:
    """List."""
    plugins = sorted(engine_client().plugins(_filters(filters)), key=lambda plugin: plugin.name)
    if is_json():
        for plugin in plugins:
            print_object(plugin)
    elif quiet:
        for plugin in plugins:
            say(plugin.id if no_trunc else plugin.id[:_SHORT])
    else:
        columns = [(name, show) for name, show in _MORE.items() if any(show(plugin) for plugin in plugins)]
        rows = [(*_row(plugin, no_trunc=no_trunc), *(show(plugin) for _, show in columns)) for plugin in plugins]
        table((*_HEAD, *(name for name, _ in columns)), rows)


def _row(plugin: "PluginDetails", *, no_trunc: bool) -> tuple[str, ...]:
    more, description = plugin.moorage, plugin.config.description
    if not no_trunc and len(description) > _DESCRIPTION:
        description = description[: _DESCRIPTION - 1] + "…"
    id = plugin.id if no_trunc else plugin.id[:_SHORT]
    return (
        id,
        plugin.name,
        styled(more.state, _COLOURS.get(more.state)),
        "" if more.uptime_seconds is None else duration(more.uptime_seconds) or "0 seconds",
        str(more.restarts),
        _last_exit(more.last_exit),
        ago(more.next_try_at),
        description,
    )


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


def _filters(texts: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--filter")
        found.setdefault(key, []).append(value)
    return found

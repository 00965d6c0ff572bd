"""Commands that look at plugins: ls, inspect, logs, events."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from moorage import errors
from moorage.cli.common import ago, each_name, how_long, json_option, plugin_names, reach, wants_json
from moorage.cli.terminal import print_json, say, styled, table

_HEAD = ("ID", "NAME", "STATE", "UPTIME", "RESTARTS", "LAST EXIT", "NEXT TRY", "DESCRIPTION")
_SHORT = 12
_DESCRIPTION = 32
_COLOURS = {"ready": "green", "failed": "red", "restarting": "yellow", "stopping": "yellow", "removing": "yellow"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@click.command(
    name="ls", help="List plugins: what each really does and for how long, its restarts, its last end and its next try."
)
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and descriptions.")
@click.option("-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True, help="enabled=true or capability=NAME.")
@json_option
def list_all(quiet: bool, no_trunc: bool, filters: tuple[str, ...]) -> None:
    """List."""
    plugins = sorted(reach().plugins(_filters(filters)), key=lambda plugin: str(plugin["Name"]))
    if wants_json():
        for plugin in plugins:
            print_json(plugin)
    elif quiet:
        for plugin in plugins:
            say(plugin["Id"] if no_trunc else plugin["Id"][:_SHORT])
    else:
        rows = [_row(plugin, no_trunc=no_trunc) for plugin in plugins]
        if any(plugin["Moorage"]["Widenings"] for plugin in plugins):  # else the column would be empty
            rows = [(*row, _widenings(plugin)) for row, plugin in zip(rows, plugins, strict=True)]
            table((*_HEAD, "WIDENED BY"), rows)
        else:
            table(_HEAD, rows)


@click.command(name="inspect", help="Show everything that is known of each PLUGIN, as JSON.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@json_option
def inspect(plugins: tuple[str, ...]) -> int:
    """Inspect; goes on after a failure."""
    found: list[Any] = []
    status = each_name(plugins, lambda name: found.append(reach().inspect(name)))
    if wants_json():
        for plugin in found:
            print_json(plugin)
    else:
        print_json(found, indent=4)
    return status


@click.command(name="logs", help="Show what PLUGIN wrote, with time and stream, also before its last start.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("-n", "--tail", type=click.IntRange(min=0), help="Only the last lines.")
@click.option("--since", default="", help="Only what came after a time (2026-01-02T03:04:05) or a while ago (10m).")
@click.option("-f", "--follow", is_flag=True, help="Follow the output, until PLUGIN is removed or Ctrl-C.")
@click.option("--raw", is_flag=True, help="Pass on the colours that PLUGIN sets; other control characters are escaped.")
@json_option
def logs(plugin: str, tail: int | None, since: str, follow: bool, raw: bool) -> None:
    """Show lines as they come."""
    as_json = wants_json()
    for line in reach().logs(plugin, tail=tail, since=_instant(since), follow=follow):
        if as_json:
            print_json(line)
            continue
        at = datetime.fromisoformat(line["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        name = line["stream"] + ("+" if line.get("partial") else "")  # it continues in the next line of this stream
        label = styled(name, "red" if line["stream"] == "stderr" else "blue")
        say(f"{at} ", label, " | ", line["text"], colours=raw)


@click.command(name="events", help="Show what happens to plugins, as it happens; Ctrl-C ends it.")
@click.option("--since", default="", help="Begin with what happened since a time, or a while ago (10m).")
@click.option("--until", default="", help="End at a time, or a while ago (0s: show what happened, and end).")
@json_option
def events(since: str, until: str) -> None:
    """Show events as they come."""
    as_json = wants_json()
    for event in reach().events(_instant(since), until=_instant(until, "--until")):
        if as_json:
            print_json(event)
            continue
        at = datetime.fromtimestamp(event["timeNano"] / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        attributes = dict(event["Actor"]["Attributes"])
        name = attributes.pop("name", "")
        more = "".join(f" {key}={value}" for key, value in attributes.items())
        say(f"{at} {event['Action']:<8} {name}{more}")


def _row(plugin: dict[str, Any], *, no_trunc: bool) -> tuple[str, ...]:
    more, description = plugin["Moorage"], plugin["Config"]["Description"]
    if not no_trunc and len(description) > _DESCRIPTION:
        description = description[: _DESCRIPTION - 1] + "…"
    id = plugin["Id"] if no_trunc else plugin["Id"][:_SHORT]
    return (
        id,
        plugin["Name"],
        styled(more["State"], _COLOURS.get(more["State"])),
        _uptime(more["UptimeSeconds"]),
        str(more["Restarts"]),
        _end(more["LastExit"]),
        ago(more["NextTryAt"]),
        description,
    )


def _widenings(plugin: dict[str, Any]) -> str:
    """What its policy grants it beyond the default."""
    granted = plugin["Moorage"]["Widenings"]
    return ", ".join(f"{each['Name']}: {', '.join(each['Value'])}" for each in granted)


def _uptime(seconds: float | None) -> str:
    """How long a process runs, as ``ago`` says it; empty for none."""
    return "" if seconds is None else how_long(seconds) or "0 seconds"


def _end(last: dict[str, Any] | None) -> str:
    """How the last run ended, and when. One that never ran has neither code nor signal."""
    if last is None:
        return ""
    how = last["Signal"] or ("unknown" if last["Code"] is None else str(last["Code"]))
    if last["OOM"]:
        how = "out of memory"
    elif last["Code"] is None and last["Error"]:
        how = "did not start"
    return f"{how}, {ago(last['At'])}" if last["At"] else how


def _filters(texts: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--filter")
        found.setdefault(key, []).append(value)
    return found


def _instant(text: str, option: str = "--since") -> str:
    """A time as the API takes it: a while ago becomes seconds since 1970."""
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        past = timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
        return f"{(datetime.now(UTC) - past).timestamp():.6f}"
    if not text or re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except ValueError as error:
        raise errors.Invalid(f"cannot read {option} {text}: neither a time nor a while like 10m or 1h30m") from error

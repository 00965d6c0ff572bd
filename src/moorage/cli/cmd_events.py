"""``moorage events``: what happens to plugins, as it happens."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.format.filters import parse_filters
from moorage.cli.format.rows import RowPrinter, filter_option, format_option
from moorage.cli.parameters import parse_instant
from moorage.cli.terminal import print_object, say

if TYPE_CHECKING:
    from moorage.api.schema.system import EventMessage

_FILTERS = ("plugin", "name", "event", "type", "scope", "label")


@click.command(name="events", help="Display a live stream of events of plugins.")
@click.option("--since", "-S", metavar="TIME", default="", help="Show events since a time, or a duration ago (10m).")
@click.option(
    "--until",
    "-U",
    metavar="TIME",
    default="",
    help="Stream events until a time, or a duration ago (0s: only past events).",
)
@filter_option("plugin=NAME", "event=enable", "label=KEY=VALUE of the attributes")
@format_option
@json_option
def command(since: str, until: str, filters: tuple[str, ...], template: str | None) -> None:
    """Show events as they come."""
    given = parse_filters(filters, _FILTERS)
    if names := given.pop("name", []):  # podman's key
        given["plugin"] = [*given.get("plugin", []), *names]
    printer = RowPrinter(template) if template and template != "json" else None
    bounds = parse_instant(since, "--since"), parse_instant(until, "--until")
    for event in engine_client().events(bounds[0], given, bounds[1]):
        if printer is not None:
            printer.line(_fields(event))
        elif is_json() or template:
            print_object(event)
        else:
            _show(event)


def _show(event: "EventMessage") -> None:
    attributes = dict(event.actor.attributes)
    name = attributes.pop("name", "")
    more = "".join(f" {key}={value}" for key, value in attributes.items())
    say(f"{_time(event)} {event.action:<8} {name}{more}")


def _time(event: "EventMessage") -> str:
    return datetime.fromtimestamp(event.time_nano / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _fields(event: "EventMessage") -> dict[str, Any]:
    """The fields of a template: docker's, which are those of the JSON, and podman's Name and Status."""
    return {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor.id, "Attributes": event.actor.attributes},
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
        "ID": event.actor.id,
        "Name": event.actor.attributes.get("name", ""),
        "Status": event.action,
    }

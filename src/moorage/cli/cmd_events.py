"""``moorage events``: what happens to plugins, as it happens."""

from datetime import datetime

import click

from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.parameters import parse_instant
from moorage.cli.terminal import print_object, say


@click.command(name="events", help="Display a live stream of events of plugins.")
@click.option("--since", default="", help="Begin with events since a time, or a duration ago (10m).")
@click.option("--until", default="", help="End at a time, or a duration ago (0s: only past events).")
@json_option
def command(since: str, until: str) -> None:
    """Show events as they come."""
    as_json = is_json()
    for event in engine_client().events(parse_instant(since, "--since"), until=parse_instant(until, "--until")):
        if as_json:
            print_object(event)
            continue
        at = datetime.fromtimestamp(event.time_nano / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        attributes = dict(event.actor.attributes)
        name = attributes.pop("name", "")
        more = "".join(f" {key}={value}" for key, value in attributes.items())
        say(f"{at} {event.action:<8} {name}{more}")

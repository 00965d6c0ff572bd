"""``moorage wait``: until plugins have stopped."""

import time
from typing import TYPE_CHECKING

import click

from moorage.cli.context import each_name, engine_client, json_option, plugin_names, print_values

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails


@click.command(
    name="wait",
    help="Block until the present run of one or more plugins exits, then print the exit statuses. One that does not "
    "run has that of its last run.",
)
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@json_option
def command(plugins: tuple[str, ...]) -> int:
    """Wait; continues after a failure."""
    return each_name(plugins, lambda name: print_values("ExitStatus", [_wait(name)]))


def _wait(name: str) -> str:
    client = engine_client()
    called_at = time.time()
    found = client.inspect(name)
    if found.moorage.pid is None:
        return _last_status(found)
    # events since then are stored: none is missed between the two calls
    for event in client.events(f"{called_at:.6f}", {"plugin": [found.id]}):
        if event.action == "die":
            return event.actor.attributes.get("code", "")
        if event.action == "disable":
            return _last_status(client.inspect(found.id))
        if event.action == "remove":
            return "0"
    return _last_status(client.inspect(found.id))


def _last_status(plugin: "PluginDetails") -> str:
    last = plugin.moorage.last_exit
    return "0" if last is None or last.code is None else str(last.code)

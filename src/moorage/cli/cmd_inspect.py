"""``moorage inspect``: plugins as JSON."""

from typing import TYPE_CHECKING

import click

from moorage.cli.context import each_name, engine_client, is_json, json_option, plugin_names
from moorage.cli.terminal import print_object

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails


@click.command(name="inspect", help="Display detailed information on one or more plugins.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@json_option
def command(plugins: tuple[str, ...]) -> int:
    """Inspect; continues after a failure."""
    found: list[PluginDetails] = []
    status = each_name(plugins, lambda name: found.append(engine_client().inspect(name)))
    if is_json():
        for plugin in found:
            print_object(plugin)
    else:
        print_object(found, indent=4)
    return status

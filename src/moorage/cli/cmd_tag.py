"""``moorage tag``: add a name to a plugin."""

import click

from moorage.cli.context import engine_client, plugin_names
from moorage.cli.terminal import say


@click.command(name="tag", help="Add a name to a plugin. rm NAME removes only that name.")
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("name")
def command(plugin: str, name: str) -> None:
    """Tag."""
    engine_client().tag(plugin, name)
    say(name)

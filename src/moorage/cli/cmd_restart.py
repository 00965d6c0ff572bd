"""``moorage restart``: stop a plugin and start it again."""

import click

from moorage.cli.context import engine_client, plugin_names
from moorage.cli.terminal import say


@click.command(name="restart", help="Restart a plugin.")
@click.argument("plugin", shell_complete=plugin_names)
def command(plugin: str) -> None:
    """Restart."""
    engine_client().restart(plugin)
    say(plugin)

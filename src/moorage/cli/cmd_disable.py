"""``moorage disable``: stop a plugin."""

import click

from moorage.cli.context import engine_client, plugin_names
from moorage.cli.terminal import say


@click.command(name="disable", help="Disable a plugin.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("-f", "--force", is_flag=True, help="Disable a plugin that is in use.")
def command(plugin: str, force: bool) -> None:
    """Disable."""
    engine_client().disable(plugin, force=force)
    say(plugin)

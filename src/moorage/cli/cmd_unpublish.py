"""``moorage unpublish``: remove the sockets of a plugin."""

import click

from moorage.cli.context import engine_client, plugin_names
from moorage.cli.terminal import say


@click.command(name="unpublish", help="Remove the sockets of a published plugin.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("-f", "--force", is_flag=True, help="Unpublish a plugin whose volumes are mounted.")
def command(plugin: str, force: bool) -> None:
    """Unpublish."""
    engine_client().unpublish(plugin, force=force)
    say(plugin)

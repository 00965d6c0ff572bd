"""``moorage restart``: stop a plugin and start it again."""

import click

from moorage.cli.context import engine_client, plugin_names
from moorage.cli.health.options import wait_option
from moorage.cli.terminal import say


@click.command(name="restart", help="Restart a plugin.")
@click.argument("plugin", shell_complete=plugin_names)
@wait_option
def command(plugin: str, wait: float) -> None:
    """Restart."""
    client = engine_client()
    client.restart(plugin)
    if wait:
        client.wait_healthy(plugin, wait)
    say(plugin)

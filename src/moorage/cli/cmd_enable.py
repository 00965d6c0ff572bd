"""``moorage enable``: start a plugin, and keep it running."""

import click

from moorage.cli.consent import confirm_grant, grant_option
from moorage.cli.context import engine_client, plugin_names
from moorage.cli.health.options import wait_option
from moorage.cli.terminal import say


@click.command(name="enable", help="Enable a plugin.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option(
    "--timeout", type=click.IntRange(min=0), default=0, help="Seconds to wait until it is ready.  [default: 30]"
)
@wait_option
@grant_option
def command(plugin: str, timeout: int, wait: float, grant_all: bool) -> None:
    """Enable, after asking for privileges that were never granted."""
    client = engine_client()
    more = client.inspect(plugin).moorage
    if more.ungranted:
        if not grant_all:
            confirm_grant(plugin, more.privileges)
        client.grant(plugin, more.privileges, attended=not grant_all)
    client.enable(plugin, timeout)
    if wait:
        client.wait_healthy(plugin, wait)
    say(plugin)

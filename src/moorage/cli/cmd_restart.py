"""``moorage restart``: stop plugins and start them again."""

import click

from moorage.cli.context import each_plugin, engine_client, json_option, plugins_argument, print_name
from moorage.cli.health.options import wait_option
from moorage.cli.parameters import OptionalValueCommand


@click.command(cls=OptionalValueCommand, name="restart", help="Restart one or more plugins.")
@plugins_argument("enabled")
@wait_option
@json_option
def command(plugins: tuple[str, ...], every: bool, wait: float) -> int:
    """Restart; continues after a failure."""

    def restart(name: str) -> None:
        client = engine_client()
        client.restart(name)
        if wait:
            client.wait_healthy(name, wait)
        print_name(name)

    return each_plugin(plugins, restart, every=every, is_chosen=lambda each: each.enabled)

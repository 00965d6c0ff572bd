"""``moorage restart``: stop plugins and start them again."""

import click

from moorage.cli.context import each_plugin, engine_client, json_option, plugins_argument, print_name


@click.command(name="restart", help="Restart one or more plugins.")
@plugins_argument("enabled")
@json_option
def command(plugins: tuple[str, ...], every: bool) -> int:
    """Restart; continues after a failure."""

    def restart(name: str) -> None:
        engine_client().restart(name)
        print_name(name)

    return each_plugin(plugins, restart, every=every, is_chosen=lambda each: each.enabled)

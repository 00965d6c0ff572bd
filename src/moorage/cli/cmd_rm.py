"""``moorage rm``: remove plugins."""

import click

from moorage.cli.context import each_name, engine_client, plugin_names
from moorage.cli.terminal import say


@click.command(name="rm", help="Remove one or more plugins.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@click.option("-f", "--force", is_flag=True, help="Remove a plugin that is enabled or in use.")
def command(plugins: tuple[str, ...], force: bool) -> int:
    """Remove; continues after a failure."""

    def remove(name: str) -> None:
        engine_client().remove(name, force=force)
        say(name)

    return each_name(plugins, remove)

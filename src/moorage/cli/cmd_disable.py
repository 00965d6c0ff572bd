"""``moorage disable``: stop plugins."""

import click

from moorage import errors
from moorage.cli.context import each_plugin, engine_client, json_option, plugins_argument, print_name


@click.command(name="disable", help="Disable one or more plugins. One that is disabled already is left as it is.")
@plugins_argument("enabled")
@click.option("-f", "--force", is_flag=True, help="Disable a plugin that is in use.")
@json_option
def command(plugins: tuple[str, ...], every: bool, force: bool) -> int:
    """Disable; continues after a failure."""

    def disable(name: str) -> None:
        client = engine_client()
        try:
            client.disable(name, force=force)
        except errors.Conflict:
            if client.inspect(name).enabled:
                raise
        print_name(name)

    return each_plugin(plugins, disable, every=every, is_chosen=lambda each: each.enabled)

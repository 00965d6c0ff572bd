"""``moorage tag``: add a name to a plugin."""

import click

from moorage.cli.context import engine_client, json_option, plugin_names, print_name


@click.command(name="tag", help="Add a name to a plugin. rm NAME removes only that name.")
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("name")
@json_option
def command(plugin: str, name: str) -> None:
    """Tag."""
    engine_client().tag(plugin, name)
    print_name(name)

"""``moorage rename``: another name for a plugin."""

import click

from moorage.cli.context import engine_client, json_option, plugin_names, print_name


@click.command(name="rename", help="Rename a plugin. Its id, settings and files are retained.")
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("name")
@json_option
def command(plugin: str, name: str) -> None:
    """Rename."""
    engine_client().rename(plugin, name)
    print_name(name)

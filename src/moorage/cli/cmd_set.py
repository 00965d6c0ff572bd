"""``moorage set``: change settings of a plugin."""

import click

from moorage.cli.consent import show_change
from moorage.cli.context import engine_client, plugin_names
from moorage.cli.parameters import read_secret


@click.command(
    name="set",
    help="Change settings of a disabled plugin: NAME=VALUE for environment and arguments, NAME.source=PATH for mounts, "
    "NAME.path=PATH for devices. All are changed or none.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option(
    "--secret",
    "secrets",
    metavar="NAME=@FILE",
    multiple=True,
    help="A value that is never shown again, from a file (NAME=VALUE works, and shows it in the shell's history).",
)
def command(plugin: str, assignments: tuple[str, ...], secrets: tuple[str, ...]) -> None:
    """Set."""
    if not assignments and not secrets:
        raise click.UsageError("nothing to set: give NAME=VALUE or --secret NAME=@FILE")
    client = engine_client()
    before = client.inspect(plugin).moorage.privileges
    client.set(plugin, assignments, [read_secret(each) for each in secrets])
    show_change(before, client.inspect(plugin).moorage.privileges)

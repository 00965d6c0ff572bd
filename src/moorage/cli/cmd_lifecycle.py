"""Commands that change what a plugin does: enable, disable, restart, set, rm."""

from pathlib import Path

import click

from moorage import errors
from moorage.cli.common import each_name, plugin_names, reach
from moorage.cli.consent import ask_grant, grant_option, show_change
from moorage.cli.terminal import say


@click.command(name="enable", help="Start PLUGIN for good, and wait until it is ready.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("--timeout", type=click.IntRange(min=0), default=0, help="Seconds until it must be ready (0: 30).")
@grant_option
def enable(plugin: str, timeout: int, grant_all: bool) -> None:
    """Enable, after asking for what was never granted."""
    client = reach()
    more = client.inspect(plugin)["Moorage"]
    if more["Ungranted"]:
        if not grant_all:
            ask_grant(plugin, more["Privileges"])
        client.grant(plugin, more["Privileges"], attended=not grant_all)
    client.enable(plugin, timeout)
    say(plugin)


@click.command(name="disable", help="Stop PLUGIN for good, and wait until nothing of it runs.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("-f", "--force", is_flag=True, help="Also where somebody uses it.")
def disable(plugin: str, force: bool) -> None:
    """Disable."""
    reach().disable(plugin, force=force)
    say(plugin)


@click.command(name="restart", help="Stop PLUGIN and start it again.")
@click.argument("plugin", shell_complete=plugin_names)
def restart(plugin: str) -> None:
    """Restart."""
    reach().restart(plugin)
    say(plugin)


@click.command(name="rm", help="Remove each PLUGIN, with all its files.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@click.option("-f", "--force", is_flag=True, help="Also where it is enabled, or somebody uses it.")
def remove(plugins: tuple[str, ...], force: bool) -> int:
    """Remove; goes on after a failure."""

    def do(name: str) -> None:
        reach().remove(name, force=force)
        say(name)

    return each_name(plugins, do)


@click.command(
    name="set",
    help="Change settings of PLUGIN, which must be disabled: NAME=VALUE for environment and arguments, "
    "NAME.source=PATH for mounts, NAME.path=PATH for devices. All are changed or none.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option(
    "--secret",
    "secrets",
    metavar="NAME=@FILE",
    multiple=True,
    help="A value that is never shown again, from a file (NAME=VALUE works, and shows it in your shell's history).",
)
def set_(plugin: str, assignments: tuple[str, ...], secrets: tuple[str, ...]) -> None:
    """Set."""
    if not assignments and not secrets:
        raise click.UsageError("nothing to set: give NAME=VALUE or --secret NAME=@FILE")
    client = reach()
    before = client.inspect(plugin)["Moorage"]["Privileges"]
    client.set(plugin, assignments, [read_secret(each) for each in secrets])
    show_change(before, client.inspect(plugin)["Moorage"]["Privileges"])


def read_secret(assignment: str) -> str:
    """NAME=VALUE for NAME=@FILE, without the newline at its end. Raises: Invalid; OSError."""
    name, equals, value = assignment.partition("=")
    if not equals or not value.startswith("@"):
        return assignment
    path = Path(value[1:])
    try:
        return f"{name}={path.read_text().removesuffix(chr(10))}"
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read the secret {name} from {path}: it is no text in UTF-8") from error

"""``moorage set``: change settings of a plugin."""

import click

from moorage import errors
from moorage.cli.consent import show_change
from moorage.cli.context import engine_client, is_json, json_option, plugin_names, print_name
from moorage.cli.parameters import label_option, read_secret


@click.command(
    name="set",
    help="Change settings of a disabled plugin: NAME=VALUE for environment and arguments, NAME.source=PATH for mounts, "
    "NAME.path=PATH for devices. All are changed or none. Labels change at once, also of an enabled plugin.",
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
@label_option("Add a label, or change its value.")
@click.option("--label-rm", "removed", metavar="KEY", multiple=True, help="Remove a label.")
@click.option("--restart", is_flag=True, help="Change an enabled plugin: disable it, set, and enable it again.")
@click.option("-f", "--force", is_flag=True, help="With --restart, also while the plugin is in use.")
@json_option
def command(
    plugin: str,
    assignments: tuple[str, ...],
    secrets: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    removed: tuple[str, ...],
    restart: bool,
    force: bool,
) -> None:
    """Set."""
    has_settings, has_labels = bool(assignments or secrets), bool(labels or removed)
    if not has_settings and not has_labels:
        raise click.UsageError("nothing to set: give NAME=VALUE, --secret NAME=@FILE, --label or --label-rm")
    client = engine_client()
    found, values = client.inspect(plugin), [read_secret(each) for each in secrets]
    if has_settings and restart and found.enabled:
        _set_enabled(found.name, assignments, values, force=force)
    elif has_settings:
        client.set(plugin, assignments, values)
    if has_labels:
        client.set_labels(plugin, dict(labels), removed)
    show_change(found.moorage.privileges, client.inspect(plugin).moorage.privileges)
    if is_json():
        print_name(found.name)


def _set_enabled(name: str, assignments: tuple[str, ...], secrets: list[str], *, force: bool) -> None:
    """Set with the plugin disabled; it is enabled again with the new values, or, where they are refused, the old ones.

    Raises:
        errors.MoorageError: why the values are refused, or why the plugin does not become ready with them
    """
    client = engine_client()
    client.disable(name, force=force)
    try:
        client.set(name, assignments, secrets)
    finally:
        if not client.inspect(name).moorage.ungranted:
            client.enable(name)
    if client.inspect(name).moorage.ungranted:
        raise errors.Denied(f"plugin {name} requests more with these settings; run: moorage enable {name}")

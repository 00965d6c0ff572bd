"""``moorage install``, ``privileges`` and ``upgrade``: plugins from registries."""

import click

from moorage import errors
from moorage.cli.cmd_lifecycle import read_secret
from moorage.cli.common import json_option, plugin_names, reach, wants_json
from moorage.cli.consent import agree, grant_option, values_of
from moorage.cli.credentials import registry_auth
from moorage.cli.progress import show_progress
from moorage.cli.terminal import ask, print_json, say, table
from moorage.cli.transports import check_reference

__all__ = ("install", "privileges", "upgrade")


@click.command(
    name="install",
    help="Bring a plugin from a registry, with settings NAME=VALUE, and start it. What it asks for of this host is "
    "shown first. If it cannot be had, or a setting is wrong, nothing is left of it.",
)
@click.argument("reference")
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--alias", default="", help="The name that it gets here, instead of the reference's.")
@click.option("--disable", "leave_disabled", is_flag=True, help="Do not start it.")
@grant_option
@click.option(
    "--ensure", is_flag=True, help="Be content with a plugin of this name, from there, that has these settings."
)
@click.option("--secret", "secrets", metavar="NAME=@FILE", multiple=True, help="A setting that is never shown again.")
@json_option
def install(
    reference: str,
    assignments: tuple[str, ...],
    alias: str,
    leave_disabled: bool,
    grant_all: bool,
    ensure: bool,
    secrets: tuple[str, ...],
) -> None:
    """Install, and enable."""
    from moorage.plugins import local_name, parse_reference

    check_reference(reference)
    client, auth = reach(), registry_auth(reference)
    local = local_name(alias) if alias else parse_reference(reference).local_name
    settings = {"settings": list(assignments), "secrets": [read_secret(each) for each in secrets]}
    terms: dict[str, object] = {"privileges": []}
    if not (ensure and _is_there(local)):
        found = client.request_privileges(reference, "", settings, auth)
        terms = agree(local, [], found, grant_all=grant_all)
    terms |= settings
    with client.pull(reference, alias, terms, auth, once=ensure) as progress:
        show_progress(progress)
    if not leave_disabled and not client.inspect(progress.name)["Enabled"]:
        try:
            client.enable(progress.name)
        except errors.MoorageError as error:
            raise type(error)(
                f"plugin {progress.name} is installed, and disabled, because: {error}; "
                f"when that is mended: moorage enable {progress.name}"
            ) from error
    if not wants_json():
        say(progress.name)


@click.command(name="privileges", help="Show what the plugin with this reference asks for of the host.")
@click.argument("reference")
@json_option
def privileges(reference: str) -> None:
    """Show."""
    check_reference(reference)
    found = reach().privileges(reference, registry_auth(reference))
    if wants_json():
        print_json(found)
    elif found:
        rows = [(each["Name"], values_of(each), each["Description"]) for each in found]
        table(("ASKS FOR", "VALUE", "WHAT IT IS"), rows)
    else:
        say(f"{reference} asks for nothing.")


@click.command(
    name="upgrade",
    help="Bring PLUGIN, which must be disabled, to another version, by default to what its own reference means now. "
    "Its id, settings and propagated files stay. What it asks for more than before is shown first.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("reference", required=False, default="")
@click.option(
    "--restart",
    is_flag=True,
    help="Also where it is enabled: stop it, change it, start it; the old version comes back if the new one does not "
    "become ready.",
)
@click.option("-f", "--force", is_flag=True, help="Also where somebody uses it.")
@click.option("--skip-remote-check", is_flag=True, help="Do not ask before another repository takes its place.")
@grant_option
@json_option
def upgrade(plugin: str, reference: str, restart: bool, force: bool, skip_remote_check: bool, grant_all: bool) -> None:
    """Upgrade."""
    check_reference(reference)
    client = reach()
    found = client.inspect(plugin)
    name, origin = found["Name"], found["PluginReference"]
    if found["Enabled"] and not restart:
        raise errors.Conflict(f"cannot upgrade plugin {name}: it is enabled; disable it first, or give --restart")
    reference = reference or origin
    if not skip_remote_check:
        _check_origin(name, origin, reference)
    auth = registry_auth(reference)
    requested = client.request_privileges(reference, name, {}, auth)
    terms = agree(name, found["Moorage"]["Privileges"], requested, grant_all=grant_all)
    with client.upgrade(name, reference, terms, auth, restart=restart, force=force) as progress:
        show_progress(progress)
    if not wants_json():
        say(name)


def _is_there(name: str) -> bool:
    try:
        return bool(reach().inspect(name)["Name"] == name)
    except errors.NotFound:
        return False


def _check_origin(name: str, origin: str, reference: str) -> None:
    from moorage.distribution.origin import is_same_repository
    from moorage.plugins import parse_reference

    if is_same_repository(parse_reference(origin), parse_reference(reference)):
        return
    if not ask(f"Plugin {name} is from {origin}. Replace it by {reference}?", "--skip-remote-check"):
        raise errors.Denied(f"plugin {name} stays what it is")

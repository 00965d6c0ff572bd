"""``moorage upgrade``: another version of a plugin."""

from typing import Any

import click

from moorage import errors
from moorage.cli.consent import agree, grant_option
from moorage.cli.context import each_plugin, engine_client, json_option, plugin_names, print_name
from moorage.cli.health.options import wait_option
from moorage.cli.progress import quiet_option, show_progress
from moorage.cli.references import check_reference, names_registry, registry_auth
from moorage.cli.terminal import confirm


@click.command(
    name="upgrade",
    help="Upgrade a disabled plugin to REFERENCE, by default to the present version of its own reference. Its id, "
    "settings and propagated files are retained. Additional privileges are shown first.",
)
@click.argument("plugin", required=False, default="", metavar="PLUGIN", shell_complete=plugin_names)
@click.argument("reference", required=False, default="")
@click.option("-a", "--all", "every", is_flag=True, help="All plugins that were installed from a registry.")
@click.option(
    "--restart",
    is_flag=True,
    help="Upgrade an enabled plugin: stop, upgrade and start it; roll back if it is not ready, or healthy with --wait.",
)
@click.option("-f", "--force", is_flag=True, help="Upgrade a plugin that is in use.")
@click.option(
    "--skip-remote-check", is_flag=True, help="Do not ask before the plugin of another repository replaces it."
)
@wait_option
@grant_option
@quiet_option
@json_option
def command(plugin: str, reference: str, every: bool, **options: Any) -> int:
    """Upgrade; with --all, continues after a failure."""
    check_reference(reference)
    if every != (not plugin):
        raise click.UsageError("give a plugin, or --all")

    def upgrade(name: str) -> None:
        _upgrade(name, reference, **options)

    if not every:
        upgrade(plugin)
        return 0
    return each_plugin((), upgrade, every=True, is_chosen=lambda each: names_registry(each.plugin_reference or ""))


def _upgrade(
    plugin: str,
    reference: str,
    *,
    restart: bool,
    force: bool,
    skip_remote_check: bool,
    wait: float,
    grant_all: bool,
    quiet: bool,
) -> None:
    from moorage.api.schema.packages import TermsRequest

    client = engine_client()
    found = client.inspect(plugin)
    name, origin = found.name, found.plugin_reference or found.name
    if found.enabled and not restart:
        raise errors.Conflict(f"cannot upgrade plugin {name}: it is enabled; disable it first, or give --restart")
    reference = reference or origin
    if not skip_remote_check:
        _check_origin(name, origin, reference)
    auth = registry_auth(reference)
    review = client.request_privileges(reference, name, auth=auth)
    terms = agree(name, found.moorage.privileges, review, TermsRequest(), grant_all=grant_all)
    with client.upgrade(name, reference, terms, auth, restart=restart, force=force, wait=wait) as progress:
        show_progress(progress, interrupted=f"plugin {name} has its previous version", quiet=quiet)
    print_name(name)


def _check_origin(name: str, origin: str, reference: str) -> None:
    from moorage.plugins import parse_reference
    from moorage.registry.origin import is_same_repository

    if is_same_repository(parse_reference(origin), parse_reference(reference)):
        return
    if not confirm(f"Plugin {name} is from {origin}. Replace it by {reference}?", "--skip-remote-check"):
        raise errors.Denied(f"plugin {name} was not upgraded")

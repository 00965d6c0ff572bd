"""``moorage upgrade``: another version of a plugin."""

from pathlib import Path
from typing import Any

import click

from moorage import errors
from moorage.cli.consent import agree, grant_option
from moorage.cli.context import each_plugin, engine_client, json_option, plugin_names, print_name
from moorage.cli.health.options import wait_option
from moorage.cli.parameters import OptionalValueCommand
from moorage.cli.progress import describe_change, quiet_option, report_interruption, show_progress, show_upload
from moorage.cli.references import check_reference, names_registry, registry_auth
from moorage.cli.terminal import confirm, warn


@click.command(
    cls=OptionalValueCommand,
    name="upgrade",
    help="Upgrade a disabled plugin to REFERENCE, by default to the present version of its own reference, or to the "
    "contents of a directory (config.json beside rootfs/). Its id, settings and propagated files are retained. "
    "Additional privileges are shown first.",
)
@click.argument("plugin", required=False, default="", metavar="PLUGIN", shell_complete=plugin_names)
@click.argument("reference", metavar="[REFERENCE|DIRECTORY]", required=False, default="")
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
    if not is_directory(reference):
        check_reference(reference)
    if every != (not plugin):
        raise click.UsageError("give a plugin, or --all")

    def upgrade(name: str) -> None:
        if is_directory(reference):
            _replace(name, Path(reference), **options)
        else:
            _upgrade(name, reference, **options)

    if not every:
        upgrade(plugin)
        return 0
    return each_plugin((), upgrade, every=True, is_chosen=lambda each: names_registry(each.plugin_reference or ""))


def is_directory(text: str) -> bool:
    """Whether a text names a plugin's directory rather than a reference."""
    return text.startswith(("./", "../", "/")) or text in (".", "..") or Path(text, "config.json").is_file()


def _replace(
    plugin: str,
    directory: Path,
    *,
    restart: bool,
    force: bool,
    skip_remote_check: bool,
    wait: float,
    grant_all: bool,
    quiet: bool,
) -> None:
    """Upgrade from a directory, without a registry: for authors."""
    from moorage.cli.cmd_create import confirm_config, package, size_of
    from moorage.packages.directory import load_directory

    loaded = load_directory(directory, verb="upgrade")
    for warning in loaded.parsed.warnings:
        warn(f"{loaded.path / 'config.json'}: {warning}")
    client = engine_client()
    found = client.inspect(plugin)
    origin = found.plugin_reference or ""
    if names_registry(origin) and not skip_remote_check:
        question = f"Plugin {found.name} is from {origin}. Replace it by {directory}?"
        if not confirm(question, "--skip-remote-check"):
            raise errors.Denied(f"plugin {found.name} was not upgraded")
    confirm_config(found.name, loaded.parsed.config, grant_all=grant_all)
    chunks = package(loaded.path)
    with report_interruption(lambda: describe_change(found.name, found.moorage.digest)):
        sent = chunks if quiet else show_upload(chunks, size_of(loaded.path))
        for key in client.replace_package(found.id, sent, restart=restart, force=force, wait=wait):
            warn(f"the setting {key} does not apply any more and was dropped")
    print_name(found.name)


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
    operation = client.upgrade(name, reference, terms, auth, restart=restart, force=force, wait=wait)
    with report_interruption(lambda: describe_change(name, found.moorage.digest)), operation as progress:
        show_progress(progress, quiet=quiet)
    print_name(name)


def _check_origin(name: str, origin: str, reference: str) -> None:
    from moorage.plugins import parse_reference
    from moorage.registry.origin import is_same_repository

    if is_same_repository(parse_reference(origin), parse_reference(reference)):
        return
    if not confirm(f"Plugin {name} is from {origin}. Replace it by {reference}?", "--skip-remote-check"):
        raise errors.Denied(f"plugin {name} was not upgraded")

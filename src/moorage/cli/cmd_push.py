"""``moorage push``: copy a plugin to a registry."""

from typing import TYPE_CHECKING

import click

from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.progress import quiet_option, report_interruption, show_progress
from moorage.cli.references import registry_auth
from moorage.cli.terminal import print_object, say

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails


@click.command(name="push", help="Push a plugin to a registry, as REFERENCE or under its name.")
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("reference", required=False)
@quiet_option
@json_option
def command(plugin: str, reference: str | None, quiet: bool) -> None:
    """Push, with the credentials that docker login stored."""
    client = engine_client()
    name = reference or _target(plugin, client.inspect(plugin))
    auth, interrupted = registry_auth(name), f"{name} was not pushed; blobs that arrived are not sent again"
    with report_interruption(interrupted), client.push(plugin, reference or "", auth) as progress:
        pushed = show_progress(progress, quiet=quiet)
    assert pushed is not None, "a push has a result"
    if is_json():
        print_object(pushed)
    else:
        say(f"{pushed.tag}: digest: {pushed.digest} size: {pushed.size}")


def _target(plugin: str, found: "PluginDetails") -> str:
    """Where a push goes that names no reference: the further name that was used, else the plugin's own."""
    used = next((each for each in found.moorage.tags if each in (plugin, f"{plugin}:latest")), None)
    return used or found.name

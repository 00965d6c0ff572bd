"""``moorage inspect``: plugins as JSON."""

from typing import TYPE_CHECKING, Any

import click

from moorage.cli.context import each_name, engine_client, is_json, json_option, plugin_names
from moorage.cli.format.rows import print_rows, short_format_option
from moorage.cli.terminal import print_object

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails


@click.command(name="inspect", help="Display detailed information on one or more plugins.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@short_format_option
@json_option
def command(plugins: tuple[str, ...], template: str | None) -> int:
    """Inspect; continues after a failure."""
    found: list[PluginDetails] = []
    status = each_name(plugins, lambda name: found.append(engine_client().inspect(name)))
    if template is not None:
        print_rows(template, map(_fields, found))
    elif is_json():
        for plugin in found:
            print_object(plugin)
    else:
        print_object(found, indent=4)
    return status


def _fields(plugin: "PluginDetails") -> dict[str, Any]:
    """The fields of a template: those of the JSON, also the one that a plugin may lack."""
    from moorage.api.schema.base import to_document

    document: dict[str, Any] = to_document(plugin)
    document.setdefault("PluginReference", "")
    return document

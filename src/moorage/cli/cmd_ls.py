"""``moorage ls``: plugins in a table."""

from typing import TYPE_CHECKING

import click

from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.format.rows import filter_option, format_option, print_rows
from moorage.cli.quick.plugin_table import plugin_fields, print_plugins

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails

_FILTERS = ("name", "id", "state", "enabled", "capability", "label")


@click.command(name="ls", help="List plugins with their states, restarts and last exits.")
@click.option("-q", "--quiet", is_flag=True, help="Only display ids.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output.")
@filter_option("name=PART", "id=PREFIX", "state=ready", "enabled=true", "capability=NAME", "label=KEY[=VALUE]")
@format_option
@json_option
def command(quiet: bool, no_trunc: bool, filters: tuple[str, ...], template: str | None) -> None:
    """List."""
    found = _find(filters)
    from moorage.api.schema.base import to_document

    documents = [to_document(plugin) for plugin in found]
    if template is not None:  # before -q, as in docker
        print_rows(template, [plugin_fields(plugin, no_trunc=no_trunc) for plugin in documents])
    else:
        print_plugins(documents, quiet=quiet, no_trunc=no_trunc, is_json=is_json())


def _find(filters: tuple[str, ...]) -> "list[PluginDetails]":
    """The plugins that pass, by name. The engine knows what Docker's knows to filter by; the rest is done here.

    Raises:
        errors.Invalid: a filter is wrong
    """
    if not filters:
        return sorted(engine_client().plugins(), key=lambda plugin: plugin.name)
    from moorage.cli.format.filters import matches, name_matches, parse_filters, parse_flag
    from moorage.plugins import has_label

    parsed = parse_filters(filters, _FILTERS)
    if "enabled" in parsed:
        parsed["enabled"] = [str(parse_flag("enabled", each)).lower() for each in parsed["enabled"]]
    sent = {key: values for key, values in parsed.items() if key == "capability"}
    return [
        plugin
        for plugin in sorted(engine_client().plugins(sent), key=lambda plugin: plugin.name)
        if all(has_label(plugin.moorage.labels, each) for each in parsed.get("label", ()))  # as docker: all of them
        and matches(
            parsed,
            {
                "name": name_matches(plugin.name),
                "id": plugin.id.startswith,
                "state": lambda value, state=plugin.moorage.state: value.lower() == state,  # type: ignore[misc]
                "enabled": lambda value, is_on=plugin.enabled: (value == "true") is is_on,  # type: ignore[misc]
            },
        )
    ]

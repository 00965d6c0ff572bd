"""``moorage privileges``: what a plugin of a registry requests."""

import click

from moorage.cli.consent import values_of
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.references import check_reference, registry_auth
from moorage.cli.terminal import print_object, say, table


@click.command(name="privileges", help="Show the privileges that the plugin with this reference requests.")
@click.argument("reference")
@json_option
def command(reference: str) -> None:
    """Show."""
    check_reference(reference)
    requested = engine_client().privileges(reference, registry_auth(reference))
    if is_json():
        print_object(requested)
    elif requested:
        table(
            ("PRIVILEGE", "VALUE", "DESCRIPTION"),
            [(each.name, values_of(each), each.description) for each in requested],
        )
    else:
        say(f"{reference} requests no privileges.")

"""``moorage prune``: remove unused data."""

import click

from moorage._lib.units import size
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.terminal import print_object, say


@click.command(name="prune", help="Remove unused data: stale uploads, unreferenced content and layers, orphaned logs.")
@click.option("-f", "--force", is_flag=True, expose_value=False, help="Do not prompt for confirmation (the default).")
@json_option
def command() -> None:
    """Prune."""
    pruned = engine_client().prune()
    if is_json():
        print_object(pruned)
        return
    say(f"freed {size(pruned.freed_bytes)}; removed {pruned.uploads} stale uploads")
    if pruned.under_way:
        say(f"{pruned.under_way} operations are under way, so uploads were not removed; try again later")

"""``moorage new``: the directory of a new plugin."""

from pathlib import Path

import click

from moorage.cli.context import directories
from moorage.cli.terminal import say

_KINDS = ("volume", "log", "authz", "network", "ipam", "metrics")
_KIT = "kit"


@click.command(
    name="new",
    help="Create the directory NAME with a plugin in Python: program, config.json, tests and README. It runs at once "
    "with moorage run. KIND kit copies the kit into the existing plugin directory NAME, or replaces it there.",
)
@click.argument("kind", type=click.Choice([*_KINDS, _KIT]))
@click.argument("name", type=click.Path(path_type=Path), shell_complete=directories)
def command(kind: str, name: Path) -> None:
    """Create."""
    from moorage.scaffold.creation import copy_kit, create_plugin_directory

    say(str(copy_kit(name) if kind == _KIT else create_plugin_directory(kind, name.name, name.parent)))

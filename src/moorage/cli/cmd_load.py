"""``moorage load``: plugins from an archive."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.archives import chunks_of, open_file
from moorage.cli.consent import confirm_grant, grant_option, show_requested
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.progress import report_interruption
from moorage.cli.terminal import print_object, say, warn

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginPrivilege


@click.command(name="load", help="Load plugins from an OCI archive. They are disabled.")
@click.option(
    "-i", "--input", "source", type=click.Path(path_type=Path), help="Read from a file.  [default: standard input]"
)
@click.option("--name", metavar="NAME", default="", help="Name of the plugin, for an archive with one.")
@grant_option
@json_option
def command(source: Path | None, name: str, grant_all: bool) -> None:
    """Load."""
    is_from_stdin = source is None or str(source) == "-"
    if source is None or is_from_stdin:
        if sys.stdin.isatty():
            raise click.UsageError("cannot read an archive from a terminal: give -i FILE")
        with report_interruption("nothing was loaded"):
            loaded = engine_client().load(chunks_of(sys.stdin.buffer), name)
    else:
        with open_file(source) as file, report_interruption("nothing was loaded"):
            loaded = engine_client().load(chunks_of(file), name)
    has_terminal = not is_from_stdin and not is_json()
    for each in loaded:
        if is_json():
            print_object(each)
        else:
            say(f"{each.name}: {'loaded' if each.new else 'exists already'}")
            for warning in each.warnings:
                warn(f"{each.name}: {warning}")
        if each.ungranted:
            _grant(each.name, each.privileges, grant_all=grant_all, has_terminal=has_terminal)


def _grant(name: str, requested: "Sequence[PluginPrivilege]", *, grant_all: bool, has_terminal: bool) -> None:
    """Grant what was loaded, after a person agreed; else ``enable`` asks later."""
    if grant_all:
        show_requested(requested)
        engine_client().grant(name)
        return
    try:
        if not has_terminal:
            show_requested(requested)
            raise errors.Denied("no terminal to ask on")
        confirm_grant(name, requested)
    except errors.Denied:
        say(f"{name} has no privileges yet: moorage enable {name} asks for them", err=True)
        return
    engine_client().grant(name, requested, attended=True)

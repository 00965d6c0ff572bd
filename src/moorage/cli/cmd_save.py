"""``moorage save``: plugins to an archive."""

import sys
from pathlib import Path

import click

from moorage.cli.archives import write_archive
from moorage.cli.context import engine_client, plugin_names
from moorage.cli.progress import report_interruption
from moorage.cli.terminal import say


@click.command(name="save", help="Save one or more plugins, without their settings, to an OCI archive.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to a file.  [default: standard output]")
def command(plugins: tuple[str, ...], output: Path | None) -> None:
    """Save."""
    chunks = engine_client().save(plugins)
    if output is None or str(output) == "-":
        if sys.stdout.isatty():
            raise click.UsageError("refusing to write an archive to a terminal: give -o FILE")
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    with report_interruption(f"{output} was not written"):
        if write_archive(output, chunks):
            say(str(output))

"""Commands for packages: push, tag, save, load, df, prune."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from moorage import errors
from moorage.cli.archive_file import write_archive
from moorage.cli.common import json_option, plugin_names, reach, size, wants_json
from moorage.cli.consent import ask_grant, grant_option, show_requested
from moorage.cli.credentials import registry_auth
from moorage.cli.image_tar import open_file, pieces_of
from moorage.cli.progress import show_progress
from moorage.cli.terminal import print_json, say, table, warn

_file = click.Path(path_type=Path)


@click.command(
    name="push",
    help="Bring PLUGIN to a registry, under its name or as REFERENCE, with the credentials that docker login keeps.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("reference", required=False)
@json_option
def push(plugin: str, reference: str | None) -> None:
    """Push."""
    client = reach()
    name = reference or _name_of(plugin, client.inspect(plugin))
    with client.push(plugin, reference or "", registry_auth(name)) as progress:
        pushed = show_progress(progress)
    if wants_json():
        print_json(pushed)
    else:
        say(f"{pushed['Tag']}: digest: {pushed['Digest']} size: {pushed['Size']}")


def _name_of(plugin: str, document: dict[str, object]) -> str:
    """Where a push goes that names no reference: the further name that was used, else the plugin's own."""
    ours = document["Moorage"]
    assert isinstance(ours, dict)
    used = next((each for each in ours["Tags"] if each in (plugin, f"{plugin}:latest")), None)
    return str(used or document["Name"])


@click.command(
    name="tag",
    help="Give PLUGIN the further name NAME: it is found, and pushed, by both. rm NAME takes only that name away.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("name")
def tag(plugin: str, name: str) -> None:
    """Tag."""
    reach().tag(plugin, name)
    say(name)


@click.command(
    name="save",
    help="Write each PLUGIN's package, without its settings, into an OCI archive, for machines that have no registry.",
)
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@click.option("-o", "--output", type=_file, help="The file (standard output, where that is no terminal).")
def save(plugins: tuple[str, ...], output: Path | None) -> None:
    """Save."""
    pieces = reach().save(plugins)
    if output is None or str(output) == "-":
        if sys.stdout.isatty():
            raise click.UsageError("an archive is nothing for a terminal: give -o FILE")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    if write_archive(output, pieces):
        say(str(output))


@click.command(
    name="load",
    help="Take in the plugins of an OCI archive that save, or another program, has written. They start out disabled.",
)
@click.option("-i", "--input", "source", type=_file, help="The file (standard input, where that is no terminal).")
@click.option("--name", default="", help="The name, for an archive with one plugin.")
@grant_option
@json_option
def load(source: Path | None, name: str, grant_all: bool) -> None:
    """Load."""
    is_from_stdin = source is None or str(source) == "-"
    if source is None or is_from_stdin:
        if sys.stdin.isatty():
            raise click.UsageError("nothing comes from a terminal: give -i FILE")
        loaded = reach().load(pieces_of(sys.stdin.buffer), name)
    else:
        with open_file(source) as file:
            loaded = reach().load(pieces_of(file), name)
    for each in loaded:
        if wants_json():
            print_json(each)
        else:
            say(f"{each['Name']}: {'loaded' if each['New'] else 'is here already'}")
            for warning in each["Warnings"]:
                warn(f"{each['Name']}: {warning}")
        if each["Ungranted"]:
            _grant(
                each["Name"], each["Privileges"], grant_all=grant_all, can_ask=not is_from_stdin and not wants_json()
            )


def _grant(name: str, requested: Sequence[Any], *, grant_all: bool, can_ask: bool) -> None:
    """Grant what came in an archive, after a person said yes; else it is for ``enable`` to ask."""
    if grant_all:
        show_requested(requested)
        reach().grant(name)
        return
    try:
        if not can_ask:
            show_requested(requested)
            raise errors.Denied("nobody was asked")
        ask_grant(name, requested)
    except errors.Denied:
        say(f"{name} is granted nothing yet: moorage enable {name} asks", err=True)
        return
    reach().grant(name, requested, attended=True)


@click.command(
    name="df", help="Show what plugins take of the disk: packages, layers (and what is shared), files, logs."
)
@json_option
def df() -> None:
    """Disk usage."""
    usage = reach().disk_usage()
    if wants_json():
        print_json(usage)
        return
    head = ("NAME", "PACKAGE", "SHARED", "LAYERS", "SHARED", "WRITTEN", "DATA", "LOGS")
    keys = ("Package", "SharedPackage", "Layers", "SharedLayers", "Written", "Data", "Logs")
    table(head, [(each["Name"], *(size(each[f"{key}Bytes"]) for key in keys)) for each in usage["Plugins"]])
    say()
    say(f"packages      {size(usage['ContentBytes'])}, each blob once")
    say(f"layers        {size(usage['LayersBytes'])}, each once; written on top {size(usage['WrittenBytes'])}")
    say(f"uploads       {usage['Uploads']}, {size(usage['UploadsBytes'])}")
    say(f"unreferenced  {size(usage['UnreferencedBytes'])}; moorage prune gives back what is left of killed work")


@click.command(name="prune", help="Remove what nothing refers to: left uploads, content and layers, logs of no plugin.")
@json_option
def prune() -> None:
    """Prune."""
    pruned = reach().prune()
    if wants_json():
        print_json(pruned)
        return
    say(f"gave back {size(pruned['FreedBytes'])}; ended {pruned['Uploads']} uploads")
    if pruned["UnderWay"]:
        say(f"{pruned['UnderWay']} operations are under way, so uploads were left alone; try again later")

"""``moorage cp``: files from and to a running plugin."""

import os
import posixpath
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import click

from moorage import errors
from moorage.cli.context import engine_client, json_option
from moorage.cli.progress import report_interruption

_CHUNK = 256 * 1024


@click.command(
    name="cp",
    help="Copy files between a running plugin and this machine: PLUGIN:PATH on one side, a path on the other. If the "
    "destination is a directory, the copy is in it. - is a tar archive on standard input or output.",
)
@click.argument("source")
@click.argument("destination")
@json_option
def command(source: str, destination: str) -> None:
    """Copy."""
    (plugin, inside), (to, target) = _split(source), _split(destination)
    if bool(plugin) == bool(to):
        raise click.UsageError("give PLUGIN:PATH for the source or for the destination, and a path for the other")
    with report_interruption("what was copied by now remains"):
        if plugin:
            _copy_out(plugin, inside, destination)
        else:
            _copy_in(source, to, target)


def _split(text: str) -> tuple[str, str]:
    """Plugin and path of PLUGIN:/PATH; no plugin for a path of this machine. The name may have a tag."""
    if text.startswith((".", "/")) or text == "-":
        return "", text
    name, colon, path = text.rpartition(":")
    if not colon or not path.startswith("/"):
        name, colon, path = text.partition(":/")
        path = f"/{path}"
    return (name, path) if colon and name else ("", text)


def _copy_out(plugin: str, inside: str, destination: str) -> None:
    from moorage.runs.container_files import unpack_files

    with engine_client().read_files(plugin, inside) as archive:
        if destination == "-":
            if sys.stdout.isatty():
                raise click.UsageError("refusing to write an archive to a terminal: give a path")
            while chunk := archive.read(_CHUNK):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        path = Path(destination)
        folder, name = (path, "") if path.is_dir() else (path.parent, path.name)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise errors.NotFound(f"cannot copy to {destination}: {folder}: {error.strerror}") from error
        try:
            unpack_files(descriptor, cast(BinaryIO, archive), first_name=name)
        finally:
            os.close(descriptor)


def _copy_in(source: str, plugin: str, target: str) -> None:
    client = engine_client()
    if source == "-":
        client.write_files(plugin, target, iter(lambda: sys.stdin.buffer.read(_CHUNK), b""))
        return
    path = Path(source)
    if not path.exists():
        raise errors.NotFound(f"cannot copy {source}: there is no such file")
    try:
        client.write_files(plugin, target, _packed(path, path.resolve().name))
    except errors.Invalid as error:
        if "not a directory" not in str(error):
            raise
        _copy_as(path, plugin, target)
    except errors.NotFound as error:
        if "has no such file" not in str(error) or target.endswith("/"):
            raise
        _copy_as(path, plugin, target)


def _copy_as(path: Path, plugin: str, target: str) -> None:
    """To a path that does not exist, or is a file, in a directory that exists."""
    folder, name = posixpath.split(target.rstrip("/"))
    engine_client().write_files(plugin, folder or "/", _packed(path, name))


def _packed(path: Path, name: str) -> Iterator[bytes]:
    """A tar of a file or a directory, below this name."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            archive.add(path.resolve(), name)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            yield chunk

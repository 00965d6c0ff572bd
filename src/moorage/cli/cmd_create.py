"""``moorage create``: a plugin from a directory, or from a container image."""

import os
import queue
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage.cli.archives import config_entry, image_tar, open_file
from moorage.cli.consent import confirm_grant, grant_option, is_attended, show_requested
from moorage.cli.context import directories, engine_client, is_json, json_option, label_new, print_name, publish_new
from moorage.cli.parameters import OptionalValueCommand, label_option, publish_option
from moorage.cli.progress import report_interruption, show_progress, show_upload
from moorage.cli.references import check_reference, registry_auth
from moorage.cli.terminal import print_object, say, warn

if TYPE_CHECKING:
    from moorage.plugins import Config

_ENTRY_BYTES = 1024
_CHUNKS = 8
_BLOCK = 256 * 1024


@click.command(
    name="create",
    cls=OptionalValueCommand,
    help="Create a plugin from a directory (config.json beside rootfs/), or from a container image and a config.json. "
    "It is disabled.",
)
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), required=False, shell_complete=directories)
@click.option(
    "--from",
    "image",
    metavar="IMAGE",
    help="Container image instead of DIRECTORY: an OCI layout (a directory, or an archive as docker buildx and skopeo "
    "write it), or a reference.",
)
@click.option("--config", type=click.Path(path_type=Path), help="Path of the config.json for the image.")
@grant_option
@label_option("Set a label on the plugin.")
@publish_option
@json_option
def command(
    name: str,
    directory: Path | None,
    image: str | None,
    config: Path | None,
    grant_all: bool,
    labels: tuple[tuple[str, str], ...],
    publish: str | None,
) -> None:
    """Create."""
    if (directory is None) == (image is None) or (image is None) != (config is None):
        raise click.UsageError("give a DIRECTORY, or --from IMAGE with --config config.json")
    if labels:
        from moorage.plugins import check_labels

        check_labels(dict(labels))
    if directory is not None:
        _of_directory(name, directory, grant_all=grant_all)
    elif image is not None and config is not None:
        _of_image(name, image, config, grant_all=grant_all)
    if labels:
        label_new(name, dict(labels))
    if publish is not None:
        publish_new(name, publish, "created")


def confirm_config(name: str, config: "Config", *, grant_all: bool) -> bool:
    """Show what a config requests: who makes a plugin of a config of his own grants what is in it. A person has
    to confirm all the same, unless ``grant_all``; whether one did. Raises: Denied.
    """
    from moorage.api.schema.plugins import PluginPrivilege
    from moorage.plugins import compute_privileges

    requested = [PluginPrivilege(each.name, each.description, list(each.value)) for each in compute_privileges(config)]
    if not requested or grant_all or not is_attended():
        show_requested(requested)
        return False
    confirm_grant(name, requested)
    return True


def _of_directory(name: str, directory: Path, *, grant_all: bool) -> None:
    from moorage.packages.directory import load_directory

    plugin = load_directory(directory, verb="create")
    for warning in plugin.parsed.warnings:
        warn(f"{plugin.path / 'config.json'}: {warning}")
    is_granted = confirm_config(name, plugin.parsed.config, grant_all=grant_all)
    with report_interruption("nothing was created"):
        engine_client().create(name, show_upload(package(plugin.path), size_of(plugin.path)))
    if is_granted:
        engine_client().grant(name, attended=True)
    print_name(name)


def size_of(directory: Path) -> int:
    """Bytes of the files of a plugin's directory; each entry of an archive has a header, too."""
    found = 0
    for folder, folders, names in os.walk(directory / "rootfs"):
        for each in names:
            with suppress(OSError):
                found += os.lstat(os.path.join(folder, each)).st_size
        found += _ENTRY_BYTES * (len(folders) + len(names))
    return found


def _of_image(name: str, image: str, config: Path, *, grant_all: bool) -> None:
    """What looks like a path, or is one, is no reference."""
    from moorage.plugins import parse_config

    check_reference(image)
    with open_file(config) as file:
        raw = file.read()
    is_granted = confirm_config(name, parse_config(raw).config, grant_all=grant_all)
    path = Path(image)
    if image.startswith((".", "/")) or path.exists():
        operation = engine_client().create_from(name, image_tar(raw, path))
    else:
        config_archive = iter((config_entry(raw) + bytes(1024),))
        operation = engine_client().create_from(name, config_archive, image, registry_auth(image))
    with report_interruption("nothing was created"), operation as progress:
        made = show_progress(progress)
    assert made is not None, "a create has a result"
    if is_granted:
        engine_client().grant(name, attended=True)
    for warning in made.warnings or ():
        warn(f"{config}: {warning}")
    if is_json():
        print_object(made)
    else:
        say(name)


def package(directory: Path, config: Path | None = None) -> Iterator[bytes]:
    """A plugin's directory as a tar stream, with owners, links, devices and extended attributes.

    ``config`` is the path of its config.json where that is elsewhere.
    Made in a thread as it is read; one that is no longer read ends it. Raises: OSError for a file that cannot be read.
    """
    chunks: queue.Queue[bytes | BaseException] = queue.Queue(_CHUNKS)
    stop = threading.Event()
    worker = threading.Thread(
        target=_fill, args=(directory, config or directory / "config.json", chunks, stop), daemon=True
    )
    worker.start()
    try:
        while chunk := chunks.get():
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
    finally:
        stop.set()
        while worker.is_alive():  # it may wait for room
            try:
                chunks.get(timeout=0.05)
            except queue.Empty:
                pass


class _Chunks:
    """Takes what a tar writes."""

    def __init__(self, chunks: "queue.Queue[bytes | BaseException]", stop: threading.Event) -> None:
        self._chunks = chunks
        self._stop = stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise BrokenPipeError
        self._chunks.put(bytes(data))
        return len(data)


def _fill(directory: Path, config: Path, chunks: "queue.Queue[bytes | BaseException]", stop: threading.Event) -> None:
    try:
        sink = _Chunks(chunks, stop)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as archive:  # type: ignore[call-overload]
            archive.add(config, "config.json")
            archive.add(directory / "rootfs", "rootfs", filter=_with_attributes(directory))
        chunks.put(b"")
    except BrokenPipeError:
        pass
    except BaseException as error:  # noqa: BLE001 - raised where the chunks are read
        chunks.put(error)


def _with_attributes(directory: Path) -> Callable[[tarfile.TarInfo], tarfile.TarInfo]:
    """Adds the extended attributes of a file to its entry; tarfile leaves them out."""

    def add(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        path = directory / entry.name
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError:
            return entry  # a file system without them
        found = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        entry.pax_headers = {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in found.items()
        }
        return entry

    return add

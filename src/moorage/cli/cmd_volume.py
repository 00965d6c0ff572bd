"""``moorage volume``: volumes of volume drivers, for any program."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.context import each_name, engine_client, is_json, json_option, plugin_names
from moorage.cli.format.rows import filter_option, format_option, print_rows, short_format_option
from moorage.cli.parameters import parse_driver_option, read_secret
from moorage.cli.terminal import complain, print_object, say, table

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from moorage.api.schema.consumers import PluginMountUse, VolumeDetails


def _volume_names(context: click.Context, _: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    from moorage.cli.completion import find_volumes

    return find_volumes(context, incomplete)


def _driver_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-d",
        "--driver",
        default="",
        metavar="PLUGIN",
        shell_complete=plugin_names,
        help="Volume driver; needed only if several have the volume.",
    )(command)


def _owner_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--id", "owner", default="", metavar="OWNER", help="Owner of the mount.  [default: the volume's name]"
    )(command)


@click.group(
    name="volume",
    help="Manage volumes of volume drivers: the enabled plugins that implement docker.volumedriver.",
)
def command() -> None:
    """Volumes."""


@command.command(name="create", help="Create a volume.")
@click.argument("name")
@click.option("-d", "--driver", required=True, metavar="PLUGIN", shell_complete=plugin_names, help="Volume driver.")
@click.option(
    "-o", "--opt", "options", metavar="NAME=VALUE", multiple=True, help="Option of the driver; may be repeated."
)
@click.option(
    "--secret", "secrets", metavar="NAME=@FILE", multiple=True, help="Option of the driver with its value in a file."
)
@json_option
def create(name: str, driver: str, options: tuple[str, ...], secrets: tuple[str, ...]) -> None:
    """Create."""
    given = dict(parse_driver_option(each) for each in (*options, *(read_secret(each) for each in secrets)))
    made = engine_client().create_volume(name, driver, given)
    if is_json():
        print_object(made)
    else:
        say(made.name)


@command.command(
    name="ls", help="List volumes. Drivers that do not answer are named on standard error, and the exit status is 1."
)
@click.option("-q", "--quiet", is_flag=True, help="Only display volume names.")
@filter_option("driver=PLUGIN", "name=PART", "dangling=true")
@format_option
@json_option
def list_all(quiet: bool, filters: tuple[str, ...], template: str | None) -> int:
    """List; the exit status."""
    passes = _filter(filters)
    listing = engine_client().volumes()
    volumes = [each for each in listing.volumes if passes(each)]
    if template is not None:
        _print_by(template, volumes)
    elif is_json():
        for volume in volumes:
            print_object(volume)
    elif quiet:
        for volume in volumes:
            say(volume.name)
    else:
        _print_table(volumes)
    for failure in listing.failures:
        complain(f"driver {failure.driver} does not list its volumes: {failure.message}")
    return 1 if listing.failures else 0


@command.command(name="inspect", help="Display detailed information on one or more volumes.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=_volume_names)
@_driver_option
@short_format_option
@json_option
def inspect(names: tuple[str, ...], driver: str, template: str | None) -> int:
    """Inspect; continues after a failure."""
    found: list[VolumeDetails] = []
    status = each_name(names, lambda name: found.append(engine_client().volume(name, driver)))
    if template is not None:
        _print_by(template, found)
    elif is_json():
        for volume in found:
            print_object(volume)
    else:
        print_object(found, indent=4)
    return status


@command.command(name="rm", help="Remove one or more volumes. Their data is removed by the driver.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=_volume_names)
@_driver_option
@click.option("-f", "--force", is_flag=True, help="Release mounts of the volume first; succeed if it does not exist.")
def remove(names: tuple[str, ...], driver: str, force: bool) -> int:
    """Remove; continues after a failure."""

    def remove_one(name: str) -> None:
        try:
            engine_client().remove_volume(name, driver, force=force)
        except errors.NotFound:
            if not force:
                raise
        say(name)

    return each_name(names, remove_one)


@command.command(
    name="mount",
    help="Mount a volume for an owner and print its path on this host. The mount lasts until the owner unmounts it; "
    "repeating it prints the same path.",
)
@click.argument("name", shell_complete=_volume_names)
@_driver_option
@_owner_option
@json_option
def mount(name: str, driver: str, owner: str) -> None:
    """Mount."""
    made = engine_client().mount_volume(name, owner, driver)
    if is_json():
        print_object(made)
    else:
        say(made.mountpoint)


@command.command(name="unmount", help="Release the mount of an owner.")
@click.argument("name", shell_complete=_volume_names)
@_driver_option
@_owner_option
def unmount(name: str, driver: str, owner: str) -> None:
    """Unmount."""
    engine_client().unmount_volume(name, owner, driver)
    say(name)


def _filter(texts: Sequence[str]) -> "Callable[[VolumeDetails], bool]":
    """Whether a volume is to be listed.

    Raises:
        errors.Invalid: a filter is wrong
    """
    from moorage.cli.format.filters import matches, name_matches, parse_filters, parse_flag

    filters = parse_filters(texts, ("driver", "name", "dangling"))
    for value in filters.get("dangling", ()):
        parse_flag("dangling", value)

    def passes(volume: "VolumeDetails") -> bool:
        tests: dict[str, Callable[[str], bool]] = {
            "driver": lambda value: volume.driver in (value, f"{value}:latest"),
            "name": name_matches(volume.name),
            "dangling": lambda value: parse_flag("dangling", value) is not bool(volume.mounts),
        }
        return matches(filters, tests)

    return passes


def _print_by(template: str, volumes: "Sequence[VolumeDetails]") -> None:
    from moorage.api.schema.base import to_document

    print_rows(template, [to_document(each) for each in volumes])


def _print_table(volumes: "Sequence[VolumeDetails]") -> None:
    """As docker and podman; users are shown where there are any."""
    head, rows = ("DRIVER", "VOLUME NAME"), [(each.driver, each.name) for each in volumes]
    if any(each.mounts for each in volumes):
        users = [", ".join(dict.fromkeys(_user(mount) for mount in each.mounts)) for each in volumes]
        table((*head, "USERS"), [(*row, user) for row, user in zip(rows, users, strict=True)])
    else:
        table(head, rows)


def _user(mount: "PluginMountUse") -> str:
    state = "not mounted" if mount.problem else "stale" if mount.stale else ""
    return f"{mount.consumer or mount.id} ({state})" if state else mount.consumer or mount.id

"""``moorage volume``: volumes of volume drivers, for any program."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.context import each_name, engine_client, is_json, json_option, plugin_names
from moorage.cli.parameters import read_secret
from moorage.cli.terminal import complain, print_object, say, say_lines, table

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from moorage.api.schema.consumers import PluginMountUse, VolumeDetails
    from moorage.cli.volumes.template import Template

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


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
    given = dict(_pair(each) for each in (*options, *(read_secret(each) for each in secrets)))
    made = engine_client().create_volume(name, driver, given)
    if is_json():
        print_object(made)
    else:
        say(made.name)


@command.command(
    name="ls", help="List volumes. Drivers that do not answer are named on standard error, and the exit status is 1."
)
@click.option("-q", "--quiet", is_flag=True, help="Only display volume names.")
@click.option("--format", "template", default="", metavar="TEMPLATE", help="json, or a template as in {{.Name}}.")
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help="driver=PLUGIN, name=TEXT or dangling=true; may be repeated.",
)
@json_option
def list_all(quiet: bool, template: str, filters: tuple[str, ...]) -> int:
    """List; the exit status."""
    chosen, form = _Filters(filters), _template(template)
    listing = engine_client().volumes()
    volumes = [each for each in listing.volumes if chosen.passes(each)]
    if is_json():
        for volume in volumes:
            print_object(volume)
    elif quiet:
        for volume in volumes:
            say(volume.name)
    elif form is not None:
        _print_by(form, volumes)
    else:
        _print_table(volumes)
    for failure in listing.failures:
        complain(f"driver {failure.driver} does not list its volumes: {failure.message}")
    return 1 if listing.failures else 0


@command.command(name="inspect", help="Display detailed information on one or more volumes.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=_volume_names)
@_driver_option
@click.option("--format", "template", default="", metavar="TEMPLATE", help="json, or a template as in {{.Mountpoint}}.")
@json_option
def inspect(names: tuple[str, ...], driver: str, template: str) -> int:
    """Inspect; continues after a failure."""
    form = _template(template)
    found: list[VolumeDetails] = []
    status = each_name(names, lambda name: found.append(engine_client().volume(name, driver)))
    if is_json():
        for volume in found:
            print_object(volume)
    elif form is not None:
        _print_by(form, found)
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


class _Filters:
    """Filters as docker and podman have them: of the same key any must match, of different keys all."""

    def __init__(self, texts: Sequence[str]) -> None:
        found: dict[str, list[str]] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals or key not in ("driver", "name", "dangling"):
                raise click.BadParameter(f"{text!r} is none of driver=, name= and dangling=", param_hint="--filter")
            if key == "dangling" and value.lower() not in _TRUTH:
                raise click.BadParameter(f"{text!r} must be dangling=true or dangling=false", param_hint="--filter")
            found.setdefault(key, []).append(value)
        self._found = found

    def passes(self, volume: "VolumeDetails") -> bool:
        """Whether a volume is to be listed."""
        drivers, names = self._found.get("driver"), self._found.get("name")
        states = [_TRUTH[each.lower()] for each in self._found.get("dangling", ())]
        return (
            (drivers is None or any(volume.driver in (each, f"{each}:latest") for each in drivers))
            and (names is None or any(each in volume.name for each in names))
            and (not states or (not volume.mounts) in states)
        )


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--opt")
    return name, value


def _template(text: str) -> "Template | None":
    if not text:
        return None
    from moorage.cli.volumes.template import parse_template

    return parse_template(text)


def _print_by(form: "Template", volumes: "Sequence[VolumeDetails]") -> None:
    from moorage.api.schema.base import to_document

    documents: list[Mapping[str, Any]] = [to_document(each) for each in volumes]
    if form.is_table:
        table(form.heads, [form.row(each) for each in documents])
        return
    for each in documents:
        say_lines(form.render(each))


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

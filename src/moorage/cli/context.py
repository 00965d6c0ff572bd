"""The context of a command: the client of its engine, the option --json, completion of its arguments."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moorage import errors
from moorage._lib.imports import collector_paused
from moorage.cli.engine_location import host_of
from moorage.cli.terminal import complain, print_json, say

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from moorage.api.schema.plugins import PluginDetails
    from moorage.client import MoorageClient

__all__ = (
    "directories",
    "each_name",
    "each_plugin",
    "engine_client",
    "is_json",
    "json_option",
    "label_new",
    "note_json",
    "plugin_names",
    "plugins_argument",
    "print_name",
    "print_values",
    "publish_new",
)

Command = TypeVar("Command", bound=Callable[..., Any])


def engine_client() -> "MoorageClient":
    """A client of the engine that the command line names."""
    with collector_paused():
        from moorage.client import MoorageClient

    return MoorageClient(host_of(click.get_current_context()))


def publish_new(name: str, publish: str, done: str) -> None:
    """Publish a new plugin by a name, or by its own for an empty one.

    Raises:
        errors.MoorageError: by kind, and says what is done already (``installed``)
    """
    from moorage.api.schema.consumers import PublishRequest

    try:
        engine_client().publish(name, PublishRequest(names=[publish] if publish else []))
    except errors.MoorageError as error:
        raise type(error)(
            f"plugin {name} is {done}, but cannot be published: {error}; after fixing that, run: moorage publish {name}"
        ) from error


def label_new(name: str, labels: Mapping[str, str]) -> None:
    """Label a plugin that was created just now.

    Raises:
        errors.MoorageError: by kind, and says that it is created already
    """
    try:
        engine_client().set_labels(name, labels)
    except errors.MoorageError as error:
        raise type(error)(
            f"plugin {name} is created, but cannot be labelled: {error}; after fixing that, "
            f"run: moorage set {name} --label KEY=VALUE"
        ) from error


def plugin_names(context: click.Context, _: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """Completions of the name of a plugin."""
    from moorage.cli.completion import find_plugins

    return find_plugins(context, incomplete)


def directories(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """Completions of a directory."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def json_option(command: Command) -> Command:
    """The option --json, which may also follow the name of the command."""

    option = click.option("--json", is_flag=True, expose_value=False, callback=note_json, help="Print data as JSON.")
    return option(command)


def note_json(context: click.Context, _: click.Parameter, is_given: bool) -> None:
    """Note that --json was given after the command's name."""
    if is_given:
        context.find_root().meta["json"] = True


def is_json() -> bool:
    """Whether --json was given, before or after the command's name."""
    return bool(click.get_current_context().find_root().meta.get("json"))


def print_name(name: str, **more: object) -> None:
    """Print the plugin that a command changed: its name, or with --json an object with Name and ``more``."""
    if is_json():
        print_json({"Name": name, **more})
    else:
        say(name)


def print_values(key: str, values: Sequence[str]) -> None:
    """Print texts, one a line: with --json, each as an object with this key."""
    for each in values:
        if is_json():
            print_json({key: each})
        else:
            say(each)


def plugins_argument(which: str) -> Callable[[Command], Command]:
    """Names of plugins, or --all for those that ``which`` describes: the parameters ``plugins`` and ``every``."""

    def add(command: Command) -> Command:
        option = click.option("-a", "--all", "every", is_flag=True, help=f"All {which} plugins.")
        return click.argument("plugins", metavar="PLUGIN...", nargs=-1, shell_complete=plugin_names)(option(command))

    return add


def each_plugin(
    names: Sequence[str], do: Callable[[str], None], *, every: bool, is_chosen: "Callable[[PluginDetails], bool]"
) -> int:
    """Call ``do`` for each named plugin, or for every chosen one; continues after a failure. The exit status.

    Raises:
        errors.Unavailable: no engine answers, so that the other names would fail, too
    """
    if every == bool(names):
        raise click.UsageError("give one or more plugins, or --all" if not every else "give plugins or --all, not both")
    if every:
        names = sorted(each.name for each in engine_client().plugins() if is_chosen(each))
    return each_name(names, do)


def each_name(names: Sequence[str], do: Callable[[str], None]) -> int:
    """Call ``do`` for each name, also after a failure; the exit status.

    Raises:
        errors.Unavailable: no engine answers, so that the other names would fail, too
    """
    status = 0
    for name in names:
        try:
            do(name)
        except errors.Unavailable:
            raise
        except errors.MoorageError as error:
            complain(f"{error}")
            status = 1
    return status

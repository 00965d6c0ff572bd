"""What commands that talk to the engine share: the client, the --json option, texts for people."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moorage import errors
from moorage.cli.target import host_of
from moorage.cli.terminal import complain
from moorage.client import MoorageClient

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = (
    "ago",
    "directories",
    "each_name",
    "how_long",
    "json_option",
    "plugin_names",
    "reach",
    "size",
    "wants_json",
)

Command = TypeVar("Command", bound=Callable[..., Any])

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def reach() -> MoorageClient:
    """A client of the engine that the command line means."""
    return MoorageClient(host_of(click.get_current_context()))


def plugin_names(context: click.Context, _: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """What a shell completes where a plugin's name stands."""
    from moorage.cli.completing import find_plugins

    return find_plugins(context, incomplete)


def directories(_: click.Context, __: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """What a shell completes where a directory stands."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def json_option(command: Command) -> Command:
    """The option --json, which may stand after the command's name, too."""

    def note(context: click.Context, _: click.Parameter, is_given: bool) -> None:
        if is_given:
            context.find_root().meta["json"] = True

    option = click.option("--json", is_flag=True, expose_value=False, callback=note, help="Print data as JSON.")
    return option(command)


def wants_json() -> bool:
    """Whether --json was given, before or after the command's name."""
    root = click.get_current_context().find_root()
    return bool(root.params.get("as_json") or root.meta.get("json"))


def ago(text: str | None) -> str:
    """How long ago an instant was, "3 minutes ago"; how far ahead, "in 5 seconds"; empty for none."""
    if not text:
        return ""
    distance = (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
    words = how_long(abs(distance))
    if not words:
        return "now"
    return f"{words} ago" if distance > 0 else f"in {words}"


def how_long(seconds: float) -> str:
    """A time in its largest whole unit, "3 minutes"; empty for less than a second."""
    count, unit = next(((int(seconds // size), unit) for size, unit in _UNITS if seconds >= size), (0, ""))
    return f"{count} {unit}{'' if count == 1 else 's'}" if unit else ""


def each_name(names: Sequence[str], do: Callable[[str], None]) -> int:
    """Do it for each name, go on after a failure; the exit status. An engine that is not there ends it."""
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


def size(value: float | None) -> str:
    """Bytes for people: ``12.5 MiB``; ``-`` where nobody knows."""
    if value is None:
        return "-"
    for unit in _SIZES:
        if value < 1024 or unit == _SIZES[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes all")

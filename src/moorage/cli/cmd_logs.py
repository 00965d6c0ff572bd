"""``moorage logs``: the output of plugins."""

import heapq
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.parameters import parse_instant
from moorage.cli.quick.log_lines import LogPrinter

if TYPE_CHECKING:
    from moorage.api.schema.output import LogLine

Entry = tuple[str, "LogLine"]
"""The name of a plugin, and a line of it."""


@click.command(name="logs", help="Display the output of one or more plugins, also from before their last start.")
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True, shell_complete=plugin_names)
@click.option(
    "-n", "--tail", metavar="N|all", default="all", show_default=True, help="Number of lines from the end of each."
)
@click.option(
    "-S",
    "--since",
    metavar="TIME",
    default="",
    help="Only output since a time (2026-01-02T03:04:05) or a duration ago (10m).",
)
@click.option("-U", "--until", metavar="TIME", default="", help="Only output before a time or a duration ago.")
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the plugins are removed, or Ctrl-C.")
@click.option("-t", "--timestamps", is_flag=True, help="Show times as RFC 3339 with nanoseconds, in UTC.")
@click.option("--no-log-prefix", is_flag=True, help="Do not print times, streams and names.")
@click.option("--raw", is_flag=True, help="Pass on the colours of the plugin; escape other control characters.")
@json_option
def command(plugins: tuple[str, ...], follow: bool, until: str, **options: Any) -> None:
    """Show lines as they come, those of several plugins by time."""
    from moorage.api.schema.base import to_document

    end = _instant(parse_instant(until, "--until"))
    tail, since = _count(options.pop("tail")), parse_instant(options.pop("since"), "--since")
    show = LogPrinter(plugins if len(plugins) > 1 else (), is_json=is_json(), **options)
    if follow and (len(plugins) > 1 or end is not None):
        for entry in _followed(plugins, tail, since, end):
            show.line(entry[0], to_document(entry[1]))
        return
    readings = [_read(each, tail, since, follow=follow) for each in plugins]
    for name, line in heapq.merge(*readings, key=lambda entry: datetime.fromisoformat(entry[1].at)):
        if end is None or datetime.fromisoformat(line.at) < end:
            show.line(name, to_document(line))


def _count(text: str) -> int | None:
    if text.lower() in ("all", "-1"):
        return None
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is neither a number nor all", param_hint="--tail")
    return int(text)


def _instant(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except ValueError:
        return datetime.fromisoformat(text).astimezone()


def _read(name: str, tail: int | None, since: str, *, follow: bool) -> Iterator[Entry]:
    for line in engine_client().logs(name, tail=tail, since=since, follow=follow):
        yield name, line


def _followed(plugins: tuple[str, ...], tail: int | None, since: str, end: datetime | None) -> Iterator[Entry]:
    """Lines of all in the order in which they come; ends at an instant, or with the last plugin.

    Raises:
        errors.MoorageError: one cannot be read
    """
    lines: queue.Queue[Entry | errors.MoorageError | None] = queue.Queue()
    context = click.get_current_context()

    def read(name: str) -> None:
        try:
            with context.scope(cleanup=False):
                for entry in _read(name, tail, since, follow=True):
                    lines.put(entry)
            lines.put(None)
        except errors.MoorageError as error:
            lines.put(error)

    for name in plugins:
        threading.Thread(target=read, args=(name,), daemon=True).start()
    running = len(plugins)
    while running:
        left = None if end is None else (end - datetime.now(UTC)).total_seconds()
        try:
            entry = lines.get(timeout=None if left is None else max(left, 0.0))
        except queue.Empty:
            return
        if isinstance(entry, errors.MoorageError):
            raise entry
        if entry is None:
            running -= 1
        elif end is None or datetime.fromisoformat(entry[1].at) < end:
            yield entry

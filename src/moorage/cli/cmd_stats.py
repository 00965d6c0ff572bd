"""``moorage stats``: resource usage of plugins, once or repeatedly."""

import sys
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage._lib.units import size
from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.format.rows import format_option, print_rows
from moorage.cli.terminal import clear, print_json, table

if TYPE_CHECKING:
    from moorage.api.schema.output import PluginStats

_SHORT = 12
_HEAD = ("NAME", "CPU %", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")


@click.command(name="stats", help="Display a live stream of resource usage statistics.")
@click.argument("plugins", metavar="[PLUGIN...]", nargs=-1, shell_complete=plugin_names)
@click.option("-a", "--all", "with_stopped", is_flag=True, help="Show all plugins, also those that do not run.")
@click.option("--no-stream", "--once", "once", is_flag=True, help="Display only one result, over half a second.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    help="Seconds between two results.  [default: 2]",
)
@click.option("--no-trunc", is_flag=True, help="Do not truncate output.")
@format_option
@json_option
def command(
    plugins: tuple[str, ...],
    with_stopped: bool,
    once: bool,
    interval: float,
    no_trunc: bool,
    template: str | None,
) -> None:
    """Two readings make one line of the table: CPU is what was used between them."""
    if with_stopped and not plugins:
        plugins = tuple(each.name for each in engine_client().plugins())
    show = partial(_show, no_trunc=no_trunc, template=template)
    before = _read(plugins)
    time.sleep(min(interval, 0.5))
    while True:
        after = _read(plugins)
        show(before, after, is_live=not once and sys.stdout.isatty())
        if once:
            return
        before = after
        time.sleep(interval)


class _Reading:
    """A plugin, and its usage; None while it does not run."""

    def __init__(self, id: str, name: str, usage: "PluginStats | None") -> None:
        self.id, self.name, self.usage = id, name, usage


def _read(names: tuple[str, ...]) -> dict[str, _Reading]:
    """A reading of each, by id. A named one that does not run is shown as such."""
    client = engine_client()
    if not names:
        return {each.id: _Reading(each.id, each.name, each) for each in client.stats_of_all()}
    found = {}
    for name in names:
        try:
            usage = client.stats(name)
            reading = _Reading(usage.id, usage.name, usage)
        except errors.Conflict:
            reading = _Reading(client.inspect(name).id, name, None)
        found[reading.id] = reading
    return found


def _show(
    before: dict[str, _Reading], after: dict[str, _Reading], *, is_live: bool, no_trunc: bool, template: str | None
) -> None:
    pairs = [(before.get(id), each) for id, each in after.items()]
    if is_json():
        from moorage.api.schema.base import to_document

        for earlier, each in pairs:
            document = {"Id": each.id, "Name": each.name} if each.usage is None else to_document(each.usage)
            print_json({**document, "CpuPercent": _cpu(earlier, each)})
        return
    if is_live:
        clear()
    pairs.sort(key=lambda pair: pair[1].name)
    if template is not None:
        print_rows(template, [_fields(earlier, each, no_trunc=no_trunc) for earlier, each in pairs])
    else:
        table(_HEAD, [_row(earlier, each) for earlier, each in pairs], is_cut=not no_trunc)


def _fields(before: _Reading | None, now: _Reading, *, no_trunc: bool) -> dict[str, Any]:
    """The fields of a template, by docker's names; ``--`` where there is no value, as docker has it."""
    usage, cpu = now.usage, _cpu(before, now)
    id = now.id if no_trunc else now.id[:_SHORT]
    fields: dict[str, Any] = {"Container": id, "ID": id, "Name": now.name}
    names = ("CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
    if usage is None:
        return {**fields, **dict.fromkeys(names, "--")}
    limit = usage.memory_limit_bytes
    share = 100 * usage.memory_bytes / limit if usage.memory_bytes and limit else 0.0
    values = (
        "--" if cpu is None else f"{cpu:.2f}%",
        f"{size(usage.memory_bytes)} / {size(usage.memory_limit_bytes)}",
        f"{share:.2f}%",
        "--",
        f"{size(usage.read_bytes)} / {size(usage.written_bytes)}",
        "--" if usage.pids is None else str(usage.pids),
    )
    return {**fields, **dict(zip(names, values, strict=True))}


def _row(before: _Reading | None, now: _Reading) -> tuple[str, ...]:
    usage = now.usage
    if usage is None:
        return (now.name, "does not run", "", "", "", "", "")
    cpu = _cpu(before, now)
    pids = "-" if usage.pids is None else str(usage.pids)
    pids = pids if usage.pids_limit is None else f"{pids}/{usage.pids_limit}"
    zombies = f" ({usage.zombies} zombie)" if usage.zombies else ""
    standby = f" (+{size(usage.standby_memory_bytes)} standby)" if usage.standby_memory_bytes is not None else ""
    percent = "-" if cpu is None else f"{cpu:.2f}"
    return (
        now.name,
        percent if usage.cpus_limit is None else f"{percent}/{100 * usage.cpus_limit:g}",
        f"{size(usage.memory_bytes)}{standby}",
        size(usage.memory_limit_bytes),
        f"{pids}{zombies}",
        size(usage.read_bytes),
        size(usage.written_bytes),
    )


def _cpu(before: _Reading | None, now: _Reading) -> float | None:
    """Percent of one processor between two readings; None where that is unknown."""
    if before is None or before.usage is None or now.usage is None:
        return None
    earlier, later = before.usage.cpu_seconds, now.usage.cpu_seconds
    if earlier is None or later is None:
        return None
    seconds = (datetime.fromisoformat(now.usage.at) - datetime.fromisoformat(before.usage.at)).total_seconds()
    used = later - earlier
    # less than before: another run began, with a group of its own
    return round(100 * used / seconds, 2) if seconds > 0 and used >= 0 else None

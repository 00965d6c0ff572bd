"""moorage stats: what plugins use of the machine, once or again and again."""

import sys
import time
from datetime import datetime
from typing import Any

import click

from moorage import errors
from moorage.cli.common import json_option, plugin_names, reach, size, wants_json
from moorage.cli.terminal import clear, print_json, table

__all__ = ("command",)

_HEAD = ("NAME", "CPU %", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")


@click.command(name="stats", help="Show what each PLUGIN uses (all that run by default), until Ctrl-C.")
@click.argument("plugins", metavar="[PLUGIN...]", nargs=-1, shell_complete=plugin_names)
@click.option("--no-stream", "--once", "once", is_flag=True, help="Show it once, measured over half a second.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, help="Seconds between two readings (2).")
@json_option
def command(plugins: tuple[str, ...], once: bool, interval: float) -> None:
    """Two readings make one line of the table: CPU is what was used between them."""
    before = _read(plugins)
    time.sleep(min(interval, 0.5))
    while True:
        after = _read(plugins)
        _show(before, after, is_live=not once and sys.stdout.isatty())
        if once:
            return
        before = after
        time.sleep(interval)


def _read(plugins: tuple[str, ...]) -> dict[str, Any]:
    """A reading of each, by id. One that was named and does not run is an error; one that ends meanwhile is not."""
    if not plugins:
        return {each["Id"]: each for each in reach().stats()}
    found = {}
    for name in plugins:
        try:
            each = reach().stats(name)
        except errors.Conflict:
            each = {"Id": reach().inspect(name)["Id"], "Name": name}
        found[each["Id"]] = each
    return found


def _show(before: dict[str, Any], after: dict[str, Any], *, is_live: bool) -> None:
    if wants_json():
        for id, each in after.items():
            print_json({**each, "CpuPercent": _cpu(before.get(id, {}), each)})
        return
    if is_live:
        clear()
    table(_HEAD, [_row(before.get(id, {}), each) for id, each in sorted(after.items(), key=lambda it: it[1]["Name"])])


def _row(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    if "At" not in now:
        return (now["Name"], "does not run", "", "", "", "", "")
    cpu = _cpu(before, now)
    pids = "-" if now["Pids"] is None else str(now["Pids"])
    pids = pids if now["PidsLimit"] is None else f"{pids}/{now['PidsLimit']}"
    zombies = f" ({now['Zombies']} zombie)" if now["Zombies"] else ""
    percent = "-" if cpu is None else f"{cpu:.2f}"
    return (
        now["Name"],
        percent if now["CpusLimit"] is None else f"{percent}/{100 * now['CpusLimit']:g}",
        size(now["MemoryBytes"]),
        size(now["MemoryLimitBytes"]),
        f"{pids}{zombies}",
        size(now["ReadBytes"]),
        size(now["WrittenBytes"]),
    )


def _cpu(before: dict[str, Any], now: dict[str, Any]) -> float | None:
    """Percent of one processor between two readings; None where that cannot be said."""
    if before.get("CpuSeconds") is None or now.get("CpuSeconds") is None:
        return None
    seconds = (datetime.fromisoformat(now["At"]) - datetime.fromisoformat(before["At"])).total_seconds()
    used = now["CpuSeconds"] - before["CpuSeconds"]
    # less than before: another run began, with a group of its own
    return round(100 * used / seconds, 2) if seconds > 0 and used >= 0 else None

"""``moorage top``: the processes of a plugin."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage._lib.units import size
from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.format.rows import format_option, print_rows
from moorage.cli.terminal import print_object, table

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginProcess

_HEAD = ("PID", "PPID", "STATE", "THREADS", "MEMORY", "STARTED", "TIME", "COMMAND")


@click.command(name="top", help="Display the running processes of a plugin.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("--no-trunc", is_flag=True, help="Do not truncate output.")
@format_option
@json_option
def command(plugin: str, no_trunc: bool, template: str | None) -> None:
    """Show processes by the pids of the host."""
    found = engine_client().inspect(plugin)
    processes = found.moorage.processes or []
    if not processes:
        raise errors.Conflict(f"plugin {found.name} does not run: it is {found.moorage.state}")
    if template is not None:
        print_rows(template, map(_fields, processes))
    elif is_json():
        for process in processes:
            print_object(process)
    else:
        table(
            _HEAD,
            [tuple(str(each) for each in _fields(process).values()) for process in processes],
            is_cut=not no_trunc,
        )


def _fields(process: "PluginProcess") -> dict[str, Any]:
    started = datetime.fromisoformat(process.started_at).astimezone() if process.started_at else None
    seconds = int(process.cpu_seconds or 0)
    return {
        "PID": process.pid,
        "PPID": process.parent,
        "State": process.state,
        "Threads": "-" if process.threads is None else process.threads,
        "Memory": size(process.memory_bytes),
        "Started": "-" if started is None else f"{started:%Y-%m-%d %H:%M:%S}",
        "Time": f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "Command": process.command,
    }

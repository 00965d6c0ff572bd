"""The progress of a long operation: bars on a terminal, lines where there is none, documents for programs."""

import sys
from typing import Any

import click

from moorage.cli.common import print_json, wants_json
from moorage.client import Progress

__all__ = ("show_progress",)


def show_progress(progress: Progress) -> None:
    """Show it on standard error until its end; with --json each line as it is, on standard output.

    Raises: what went wrong.
    """
    if wants_json():
        for line in progress.lines():
            print_json(line)
    elif sys.stderr.isatty():
        _show_bars(progress)
    else:
        for line in progress.lines():
            if not line.get("progressDetail"):
                click.echo(_text(line), err=True)


def _show_bars(progress: Progress) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.fields[id]}"),
        TextColumn("{task.description:<17}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True)) as shown:
        for line in progress.lines():
            detail: dict[str, Any] | None = line.get("progressDetail")
            if detail is None:
                shown.console.print(_text(line), markup=False, highlight=False)
                continue
            id = line["id"]
            if id not in bars:
                bars[id] = shown.add_task("", total=None, id=id)
            counts = {"completed": detail["current"], "total": detail["total"]} if detail else {}
            if line["status"] == "Complete":
                shown.update(bars[id], description=line["status"], total=1, completed=1)
            else:
                shown.update(bars[id], description=line["status"], **counts)


def _text(line: dict[str, Any]) -> str:
    return f"{line['id']}: {line['status']}" if line.get("id") else str(line["status"])

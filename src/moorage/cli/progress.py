"""The progress of a long operation: bars on a terminal, lines where there is none, documents for programs."""

import sys
from collections.abc import Iterator
from typing import Any

from moorage._lib.escaping import escape
from moorage.cli.common import wants_json
from moorage.cli.terminal import print_json, say
from moorage.client import Progress

__all__ = ("show_progress",)

_DONE = ("Complete", "Upload complete", "Already exists")


def show_progress(progress: Progress) -> dict[str, Any]:
    """Show it on standard error until its end; with --json each line as it is, on standard output. What came of it.

    Raises: what went wrong.
    """
    aux: dict[str, Any] = {}
    steps = _steps(progress, aux)
    if wants_json():
        for line in steps:
            print_json(line)
    elif sys.stderr.isatty():
        _show_bars(steps)
    else:
        for line in steps:
            if not line.get("progressDetail"):
                say(_text(line), err=True)
    return aux


def _steps(progress: Progress, aux: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps without what came of them, which goes into ``aux``."""
    for line in progress.lines():
        if "aux" in line:
            aux.update(line["aux"])
        else:
            yield line


def _show_bars(steps: Iterator[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.fields[id]}", markup=False),
        TextColumn("{task.description:<17}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True)) as shown:
        for line in steps:
            detail: dict[str, Any] | None = line.get("progressDetail")
            if detail is None:
                shown.console.print(escape(_text(line)), markup=False, highlight=False)
                continue
            id, status = escape(str(line["id"])), escape(str(line["status"]))
            if id not in bars:
                bars[id] = shown.add_task("", total=None, id=id)
            counts = {"completed": detail["current"], "total": detail["total"]} if detail else {}
            if status in _DONE or status.startswith("Mounted from"):
                shown.update(bars[id], description=status, total=1, completed=1)
            else:
                shown.update(bars[id], description=status, **counts)


def _text(line: dict[str, Any]) -> str:
    return f"{line['id']}: {line['status']}" if line.get("id") else str(line["status"])

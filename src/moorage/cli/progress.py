"""The progress of a long operation: bars on a terminal, lines where there is none, documents for programs."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moorage._lib.escapes import escape
from moorage.cli.context import is_json
from moorage.cli.terminal import print_object, say

if TYPE_CHECKING:
    from moorage.api.schema.packages import OperationResult, ProgressLine
    from moorage.client import Progress

__all__ = ("drain_progress", "show_progress")

_DONE = ("Complete", "Upload complete", "Already exists")


def show_progress(progress: "Progress") -> "OperationResult | None":
    """Show it on standard error until it ends; with --json each line as it is, on standard output. Its result.

    Raises:
        errors.MoorageError: the operation failed
    """
    results: list[OperationResult] = []
    steps = _steps(progress, results)
    if is_json():
        for line in steps:
            print_object(line)
    elif sys.stderr.isatty():
        _show_bars(steps)
    else:
        for line in steps:
            if not (line.progress_detail and line.progress_detail.total):
                say(_text(line), err=True)
    return results[0] if results else None


def drain_progress(progress: "Progress") -> None:
    """Wait until it ends without showing it.

    Raises:
        errors.MoorageError: the operation failed
    """
    for _ in progress.lines():
        pass


def _steps(progress: "Progress", results: "list[OperationResult]") -> "Iterator[ProgressLine]":
    """The steps without the result, which is appended to ``results``."""
    for line in progress.lines():
        if line.aux:
            results.append(line.aux)
        else:
            yield line


def _show_bars(steps: "Iterator[ProgressLine]") -> None:
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
            detail = line.progress_detail
            if not detail:
                shown.console.print(escape(_text(line)), markup=False, highlight=False)
                continue
            id, status = escape(line.id or ""), escape(line.status or "")
            if id not in bars:
                bars[id] = shown.add_task("", total=None, id=id)
            if status in _DONE or status.startswith("Mounted from"):
                shown.update(bars[id], description=status, total=1, completed=1)
            elif detail.total:
                shown.update(bars[id], description=status, completed=detail.current or 0, total=detail.total)
            else:
                shown.update(bars[id], description=status)


def _text(line: "ProgressLine") -> str:
    return f"{line.id}: {line.status or ''}" if line.id else line.status or ""

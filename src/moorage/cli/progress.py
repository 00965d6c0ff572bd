"""The progress of a long operation: bars on a terminal, lines where there is none, documents for programs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage._lib.escapes import escape
from moorage.cli.context import engine_client, is_json
from moorage.cli.terminal import complain, print_object, say
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.api.schema.packages import OperationResult, ProgressLine
    from moorage.client import Progress

__all__ = ("describe_change", "drain_progress", "quiet_option", "report_interruption", "show_progress", "show_upload")

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Suppress verbose output.")

_NOTICEABLE_BYTES = 8 << 20
_DONE = ("Complete", "Upload complete", "Already exists")


def show_progress(progress: "Progress", *, quiet: bool = False) -> "OperationResult | None":
    """Show it on standard error until it ends; with --json each line as it is, on standard output. Its result.

    ``quiet`` shows nothing but failures. The state after Ctrl-C is reported by ``report_interruption``, around the
    block of the operation: it is known when its connection is closed.

    Raises:
        errors.MoorageError: the operation failed
    """
    results: list[OperationResult] = []
    steps = _steps(progress, results)
    if quiet:
        list(steps)
    elif is_json():
        for line in steps:
            print_object(line)
    elif sys.stderr.isatty():
        _show_bars(steps)
    else:
        for line in steps:
            if not (line.progress_detail and line.progress_detail.total):
                say(_text(line), err=True)
    return results[0] if results else None


@contextmanager
def report_interruption(state: str | Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, report the state that remains."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"interrupted: {state if isinstance(state, str) else state()}")
        raise


def describe_change(name: str, digest: str) -> str:
    """What became of a change of a plugin that had the package with this digest, after its connection was closed.

    Until the plugin is stopped for it, the engine gives a change up whose client disconnects; after that it completes
    the change, or goes back.
    """
    time.sleep(DEFAULT.disconnected)
    try:
        found = engine_client().inspect(name)
    except errors.NotFound:
        return f"plugin {name} was not installed"
    except errors.MoorageError as error:
        return f"what plugin {name} has is unknown: {error}"
    if found.moorage.state in ("starting", "stopping"):
        return f"plugin {name} is being changed; the engine completes that, or goes back to what was before"
    return f"plugin {name} has {'its previous' if found.moorage.digest == digest else 'the new'} version"


def show_upload(chunks: Iterator[bytes], total: int) -> Iterator[bytes]:
    """Pass the chunks on, and show on a terminal how much of about ``total`` bytes is sent, if that takes a while."""
    if is_json() or total < _NOTICEABLE_BYTES or not sys.stderr.isatty():
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True)) as shown:
        bar, sent = shown.add_task("Sending", total=total), 0
        for chunk in chunks:
            yield chunk
            sent += len(chunk)
            shown.update(bar, completed=sent, total=max(total, sent))
        shown.update(bar, description="Sent", completed=sent, total=sent)


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

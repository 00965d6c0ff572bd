"""Progress streams for people: what happened to each blob, and on a terminal how far it is."""

import sys
from collections.abc import Iterable
from typing import Any

import click

from moorage.cli.common import print_json, size, wants_json

__all__ = ("show_steps",)


def show_steps(steps: Iterable[Any]) -> dict[str, Any]:
    """Show each step on standard error as it comes; what the stream says at its end."""
    last: dict[str, str] = {}
    aux: dict[str, Any] = {}
    is_live = sys.stderr.isatty()
    for step in steps:
        if "aux" in step:
            aux = step["aux"]
        elif wants_json():
            print_json(step)
        else:
            _show(step, last, is_live=is_live)
    if is_live and last:
        click.echo("\r\x1b[K", err=True, nl=False)
    return aux


def _show(step: dict[str, Any], last: dict[str, str], *, is_live: bool) -> None:
    """A line for what is done, and on a terminal one that is written over for what is under way."""
    id, status, detail = step.get("id", ""), step["status"], step.get("progressDetail") or {}
    if detail.get("total"):
        if is_live:
            share = 100 * detail["current"] // detail["total"]
            click.echo(f"\r\x1b[K{id}: {status} {size(detail['current'])}, {share} %", err=True, nl=False)
    elif last.get(id) != status:
        begin = "\r\x1b[K" if is_live else ""
        click.echo(f"{begin}{id}: {status}" if id else f"{begin}{status}", err=True)
    last[id] = status

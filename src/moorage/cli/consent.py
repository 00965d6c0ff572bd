"""Asks a person for what a plugin requests of this host."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from moorage import errors
from moorage.cli.terminal import ask, say

__all__ = ("agree", "ask_grant", "grant_option", "is_attended", "show_change", "show_requested", "values_of")

grant_option = click.option(
    "-y",
    "--grant-all-permissions",
    "grant_all",
    is_flag=True,
    help="Grant whatever the plugin requests without asking, within the policy of the host, if it has one.",
)


def values_of(privilege: Any) -> str:
    """The values of a privilege for people."""
    return ", ".join(sorted(privilege["Value"]))


def show_requested(new: Sequence[Any], gone: Sequence[Any] = ()) -> None:
    """Print on standard error what is requested, and what no longer is."""
    for mark, privileges in (("+", new), ("-", gone)):
        for each in privileges:
            say(f" {mark} {each['Name']}: {values_of(each)}", err=True)


def show_change(before: Sequence[Any], after: Sequence[Any]) -> None:
    """Print what is requested now and was not before, and the other way round."""
    show_requested(_without(after, before), _without(before, after))


def agree(name: str, before: Sequence[Any], found: Any, *, grant_all: bool) -> dict[str, object]:
    """The terms for what a plugin requests, after a person said yes to what is new of it; ``found`` as the API has it.

    Raises: Denied.
    """
    if grant_all:
        return {}
    requested, new = found["Privileges"], found["New"]
    show_requested(new, _without(before, requested))
    if new:
        more = " more than before" if before else ""
        if not ask(f"Plugin {name} asks for this{more}. Grant it?", "--grant-all-permissions"):
            raise errors.Denied(f"plugin {name} did not get what it asks for; nothing was changed")
    return {"privileges": list(requested), "attended": bool(new)}


def ask_grant(name: str, requested: Sequence[Any]) -> None:
    """Show everything that a plugin requests, and ask. Raises: Denied where the answer is no, or nobody is there."""
    show_requested(requested)
    if not ask(f"Plugin {name} asks for this. Grant it?", "--grant-all-permissions"):
        raise errors.Denied(f"plugin {name} did not get what it asks for")


def is_attended() -> bool:
    """Whether there is a person to be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def _without(privileges: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Those that are not among the others, each as often as it is more."""
    left = Counter(map(_key, others))
    found = []
    for each in privileges:
        if left[_key(each)] > 0:
            left[_key(each)] -= 1
        else:
            found.append(each)
    return found


def _key(privilege: Any) -> tuple[str, tuple[str, ...]]:
    return privilege["Name"], tuple(sorted(privilege["Value"]))

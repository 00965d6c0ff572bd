"""Asks a person to grant what a plugin requests of this host."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.terminal import confirm, say

if TYPE_CHECKING:
    from moorage.api.schema.packages import PrivilegeReview, TermsRequest
    from moorage.api.schema.plugins import PluginPrivilege

__all__ = ("agree", "confirm_grant", "grant_option", "is_attended", "show_change", "show_requested", "values_of")

grant_option = click.option(
    "-y",
    "--grant-all-permissions",
    "grant_all",
    is_flag=True,
    help="Grant all privileges that the plugin requests, within the policy of the host.",
)


def values_of(privilege: "PluginPrivilege") -> str:
    """The values of a privilege for people."""
    return ", ".join(sorted(privilege.value))


def show_requested(new: "Sequence[PluginPrivilege]", dropped: "Sequence[PluginPrivilege]" = ()) -> None:
    """Print on standard error what is requested, and what no longer is."""
    for mark, privileges in (("+", new), ("-", dropped)):
        for each in privileges:
            say(f" {mark} {each.name}: {values_of(each)}", err=True)


def show_change(before: "Sequence[PluginPrivilege]", after: "Sequence[PluginPrivilege]") -> None:
    """Print what is requested now and was not before, and what was and is not."""
    show_requested(_without(after, before), _without(before, after))


def agree(
    name: str,
    before: "Sequence[PluginPrivilege]",
    review: "PrivilegeReview",
    terms: "TermsRequest",
    *,
    grant_all: bool,
) -> "TermsRequest":
    """These terms with what is granted, after a person agreed to what is new of it.

    Raises:
        errors.Denied: the person did not agree, or there is no terminal to ask on
    """
    from msgspec.structs import replace

    if grant_all:
        return terms
    show_requested(review.new, _without(before, review.privileges))
    if review.new:
        more = " more" if before else ""
        if not confirm(f"Plugin {name} requests these{more} privileges. Grant them?", "--grant-all-permissions"):
            raise errors.Denied(f"the privileges of plugin {name} were not granted; nothing was changed")
    return replace(terms, privileges=review.privileges, attended=bool(review.new))


def confirm_grant(name: str, requested: "Sequence[PluginPrivilege]") -> None:
    """Show everything that a plugin requests, and ask.

    Raises:
        errors.Denied: the person did not agree, or there is no terminal to ask on
    """
    show_requested(requested)
    if not confirm(f"Plugin {name} requests these privileges. Grant them?", "--grant-all-permissions"):
        raise errors.Denied(f"the privileges of plugin {name} were not granted")


def is_attended() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin is not None and sys.stdin.isatty()


def _without(privileges: "Sequence[PluginPrivilege]", others: "Sequence[PluginPrivilege]") -> "list[PluginPrivilege]":
    """Those that are not among the others, each as often as it is more."""
    left = Counter(map(_key, others))
    found = []
    for each in privileges:
        if left[_key(each)] > 0:
            left[_key(each)] -= 1
        else:
            found.append(each)
    return found


def _key(privilege: "PluginPrivilege") -> tuple[str, tuple[str, ...]]:
    return privilege.name, tuple(sorted(privilege.value))

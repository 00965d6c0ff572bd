"""``moorage apply``: applies a desired state of plugins."""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.consent import values_of
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.progress import drain_progress, show_progress
from moorage.cli.references import registry_auth
from moorage.cli.terminal import complain, print_json, say

if TYPE_CHECKING:
    from moorage.api.schema.packages import PrivilegeReview
    from moorage.cli.state_diff import PluginDiff
    from moorage.cli.state_file import DesiredPlugin
    from moorage.client import MoorageClient, Progress

_MARKS = {"install": "+", "change": "~", "remove": "-", "none": "="}


@click.command(
    name="apply",
    help="Apply a YAML file of desired plugins: install, set and enable what differs.",
)
@click.option("-f", "--file", "source", required=True, metavar="FILE", help="Path of the file; - for standard input.")
@click.option("--dry-run", is_flag=True, help="Only show what differs, and privileges that the file does not grant.")
@click.option("--grant-all-permissions", "grant_all", is_flag=True, help="Grant all requested privileges.")
@json_option
def command(source: str, dry_run: bool, grant_all: bool) -> int:
    """Apply; continues after a failure."""
    from moorage.cli.state_diff import diff_state
    from moorage.cli.state_file import read_desired_state

    path = Path(source)
    folder = Path() if source == "-" else path.parent
    desired = read_desired_state(_read(source), "standard input" if source == "-" else source, folder)
    client, status = engine_client(), 0
    for diff in diff_state(desired, client.plugins()):
        if not is_json():
            _show(diff)
        failure = ""
        if diff.texts:
            try:
                _do(client, diff, dry_run=dry_run, grant_all=grant_all)
            except errors.MoorageError as error:
                failure, status = _named(diff, error), 1
                complain(f"{failure}")
        if is_json():
            done = bool(diff.texts) and not dry_run and not failure
            document = {"Name": diff.name, "Change": diff.kind, "Differences": list(diff.texts)}
            print_json({**document, "Done": done, "Error": failure})
    return status


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot read {source}: there is no such file") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read {source}: {error.strerror}") from error


def _show(diff: "PluginDiff") -> None:
    say(f"{_MARKS[diff.kind]} {diff.name}")
    for text in diff.texts:
        say(f"    {text}")


def _named(diff: "PluginDiff", error: errors.MoorageError) -> str:
    return f"{diff.desired.position}: {error}" if diff.desired else str(error)


def _do(client: "MoorageClient", diff: "PluginDiff", *, dry_run: bool, grant_all: bool) -> None:
    """Apply the desired state of one plugin. After a failure the next apply continues.

    What the file does not grant is refused before anything is done, in a dry run, too.
    """
    name, desired = diff.name, diff.desired
    if desired is None:
        if not dry_run:
            _remove(client, diff)
        return
    secrets = [_secret(desired, key) for key in diff.secrets]
    review = _review(client, diff, secrets, grant_all=grant_all)
    if dry_run:
        return
    if diff.stop:
        client.disable(name)
    if not diff.is_installed or diff.upgrade:
        _pull(client, diff, review, secrets)
    if diff.is_installed and (diff.settings or secrets):
        client.set(name, diff.settings, secrets)
    if diff.is_installed and review.new:
        client.grant(name, review.privileges)
    if diff.policy:
        from moorage.api.schema.plugins import PolicyRequest

        client.set_policy(name, PolicyRequest(**diff.policy))
    _publish(client, diff)
    if diff.start:
        client.enable(name)


def _publish(client: "MoorageClient", diff: "PluginDiff") -> None:
    """Publish or unpublish one plugin, if that differs."""
    if isinstance(diff.publish, Mapping):
        from moorage.api.schema.consumers import PublishRequest

        client.publish(diff.name, PublishRequest(**diff.publish))
    elif diff.publish is False:
        client.unpublish(diff.name)


def _pull(client: "MoorageClient", diff: "PluginDiff", review: "PrivilegeReview", secrets: list[str]) -> None:
    """Install or upgrade one plugin."""
    from moorage.api.schema.packages import TermsRequest

    desired = diff.desired
    assert desired is not None, "nothing is pulled for one to be removed"
    auth = registry_auth(desired.reference)
    if not diff.is_installed:
        terms = TermsRequest(review.privileges, list(diff.settings), secrets)
        with client.pull(desired.reference, diff.name, terms, auth) as progress:
            _show_progress(progress)
        return
    now = client.request_privileges(desired.reference, diff.name, auth=auth)  # its settings follow
    with client.upgrade(diff.name, desired.reference, TermsRequest(now.privileges), auth) as progress:
        _show_progress(progress)


def _remove(client: "MoorageClient", diff: "PluginDiff") -> None:
    if diff.stop:
        client.disable(diff.name)
    client.remove(diff.name)


def _show_progress(progress: "Progress") -> None:
    """With --json there is one document a plugin and nothing else."""
    if is_json():
        drain_progress(progress)
    else:
        show_progress(progress)


def _review(client: "MoorageClient", diff: "PluginDiff", secrets: list[str], *, grant_all: bool) -> "PrivilegeReview":
    """What the plugin will request with the desired settings.

    Raises:
        errors.Denied: the file, or the policy of the host, does not grant it
    """
    from moorage.api.schema.packages import TermsRequest

    desired = diff.desired
    assert desired is not None, "nothing is granted to one to be removed"
    is_from_registry = not diff.is_installed or diff.upgrade
    remote = desired.reference if is_from_registry else ""
    name = diff.name if diff.is_installed else ""
    settings = TermsRequest(settings=list(diff.settings), secrets=secrets)
    review = client.request_privileges(remote, name, settings, registry_auth(remote) if remote else "")
    if not (is_from_registry or diff.settings or secrets or review.new):
        return review  # it has what it requests, and that stays
    if review.refusal:
        raise errors.Denied(review.refusal)
    if grant_all or desired.granted is None:
        return review
    requested = Counter((each.name, tuple(sorted(each.value))) for each in review.privileges)
    if requested != Counter((name, tuple(sorted(values))) for name, values in desired.granted):
        listed = "; ".join(f"{each.name}: {values_of(each)}" for each in review.privileges) or "nothing"
        raise errors.Denied(
            f"plugin {desired.name} requests {listed}, and the file grants something else; "
            "write that into its privileges, or privileges: all"
        )
    return review


def _secret(desired: "DesiredPlugin", key: str) -> str:
    path = desired.secrets[key]
    try:
        return f"{key}={path.read_text().removesuffix(chr(10))}"
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read the secret {key} from {path}: it is not UTF-8 text") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read the secret {key} from {path}: {error.strerror}") from error

"""``moorage apply``: a machine made to look like a file."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.common import json_option, reach, wants_json
from moorage.cli.consent import values_of
from moorage.cli.credentials import registry_auth
from moorage.cli.progress import show_progress
from moorage.cli.terminal import complain, print_json, say
from moorage.client import MoorageClient

if TYPE_CHECKING:
    from moorage.cli.differences import Difference
    from moorage.cli.wanted import Wanted

_MARKS = {"install": "+", "change": "~", "remove": "-", "none": "="}


@click.command(
    name="apply",
    help="Make this machine have the plugins that a file in YAML asks for, as it asks for them: installed, set, "
    "enabled. What differs is shown and then done; where nothing does, nothing is done.",
)
@click.option("-f", "--file", "source", required=True, metavar="FILE", help="The file; - is standard input.")
@click.option("--dry-run", is_flag=True, help="Only show what differs, and what the file does not grant.")
@click.option("--grant-all-permissions", "grant_all", is_flag=True, help="Grant whatever the plugins ask for.")
@json_option
def command(source: str, dry_run: bool, grant_all: bool) -> int:
    """Apply; goes on after a failure."""
    from moorage.cli.differences import find_differences
    from moorage.cli.wanted import read_wanted

    path = Path(source)
    folder = Path() if source == "-" else path.parent
    wanted = read_wanted(_read(source), "standard input" if source == "-" else source, folder)
    client, status = reach(), 0
    for difference in find_differences(wanted, client.plugins()):
        if not wants_json():
            _show(difference)
        failure = ""
        if difference.texts:
            try:
                _do(client, difference, dry_run=dry_run, grant_all=grant_all)
            except errors.MoorageError as error:
                failure, status = _named(difference, error), 1
                complain(f"{failure}")
        if wants_json():
            done = bool(difference.texts) and not dry_run and not failure
            document = {"Name": difference.name, "Change": difference.kind, "Differences": list(difference.texts)}
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


def _show(difference: "Difference") -> None:
    say(f"{_MARKS[difference.kind]} {difference.name}")
    for text in difference.texts:
        say(f"    {text}")


def _named(difference: "Difference", error: errors.MoorageError) -> str:
    return f"{difference.wanted.where}: {error}" if difference.wanted else str(error)


def _do(client: MoorageClient, difference: "Difference", *, dry_run: bool, grant_all: bool) -> None:
    """Bring one plugin where it is to be. What fails in the middle is gone on with by the next apply.

    What the file does not grant is refused before anything is done, and in a dry run, too.
    """
    name, wanted = difference.name, difference.wanted
    if wanted is None:
        if not dry_run:
            _remove(client, difference)
        return
    secrets = [_secret(wanted, key) for key in difference.secrets]
    found = _agree(client, difference, secrets, grant_all=grant_all)
    if dry_run:
        return
    if difference.stop:
        client.disable(name)
    auth = registry_auth(wanted.reference)
    if not difference.is_there:
        terms = {"privileges": found["Privileges"], "settings": list(difference.settings), "secrets": secrets}
        with client.pull(wanted.reference, name, terms, auth) as progress:
            _quietly(progress)
    elif difference.upgrade:
        now = client.request_privileges(wanted.reference, name, {}, auth)  # its settings follow
        with client.upgrade(name, wanted.reference, {"privileges": now["Privileges"]}, auth) as progress:
            _quietly(progress)
    if difference.is_there and (difference.settings or secrets):
        client.set(name, difference.settings, secrets)
    if difference.is_there and found["New"]:
        client.grant(name, found["Privileges"])
    if difference.policy:
        client.set_policy(name, difference.policy)
    if difference.start:
        client.enable(name)


def _remove(client: MoorageClient, difference: "Difference") -> None:
    if difference.stop:
        client.disable(difference.name)
    client.remove(difference.name)


def _quietly(progress: Any) -> None:
    """With --json there is one document a plugin and nothing else."""
    if wants_json():
        for _ in progress.lines():
            pass
    else:
        show_progress(progress)


def _agree(client: MoorageClient, difference: "Difference", secrets: list[str], *, grant_all: bool) -> Any:
    """What the plugin will request, as the API has it. Raises: Denied where the file, or the policy, does not grant it.

    The privileges of the file are compared with those of the settings that it asks for.
    """
    wanted = difference.wanted
    assert wanted is not None, "nothing is granted to one that is removed"
    is_from_registry = not difference.is_there or difference.upgrade
    remote = wanted.reference if is_from_registry else ""
    name = difference.name if difference.is_there else ""
    settings = {"settings": list(difference.settings), "secrets": secrets}
    found = client.request_privileges(remote, name, settings, registry_auth(remote) if remote else "")
    requested = found["Privileges"]
    if not (is_from_registry or difference.settings or secrets or found["New"]):
        return found  # it has what it requests, and that stays
    if found["Refusal"]:
        raise errors.Denied(found["Refusal"])
    if grant_all or wanted.granted is None:
        return found
    wants = Counter((each["Name"], tuple(sorted(each["Value"]))) for each in requested)
    if wants != Counter((name, tuple(sorted(values))) for name, values in wanted.granted):
        listed = "; ".join(f"{each['Name']}: {values_of(each)}" for each in requested) or "nothing"
        raise errors.Denied(
            f"plugin {wanted.name} asks for {listed}, and the file grants something else; "
            "write that into its privileges, or privileges: all"
        )
    return found


def _secret(wanted: "Wanted", key: str) -> str:
    path = wanted.secrets[key]
    try:
        return f"{key}={path.read_text().removesuffix(chr(10))}"
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read the secret {key} from {path}: it is no text in UTF-8") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read the secret {key} from {path}: {error.strerror}") from error

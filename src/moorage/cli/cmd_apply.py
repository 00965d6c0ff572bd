"""``moorage apply``: a machine made to look like a file."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage import errors
from moorage.cli.common import json_option, print_json, reach, wants_json
from moorage.cli.credentials import registry_auth
from moorage.cli.progress import show_progress
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
@click.option("--dry-run", is_flag=True, help="Only show what differs.")
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
        if not dry_run and difference.texts:
            try:
                _do(client, difference, grant_all=grant_all)
            except errors.MoorageError as error:
                failure, status = _named(difference, error), 1
                click.echo(f"moorage: {failure}", err=True)
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
    click.echo(f"{_MARKS[difference.kind]} {difference.name}")
    for text in difference.texts:
        click.echo(f"    {text}")


def _named(difference: "Difference", error: errors.MoorageError) -> str:
    return f"{difference.wanted.where}: {error}" if difference.wanted else str(error)


def _do(client: MoorageClient, difference: "Difference", *, grant_all: bool) -> None:
    """Bring one plugin where it is to be. What fails in the middle is gone on with by the next apply."""
    name, wanted = difference.name, difference.wanted
    if difference.stop:
        client.disable(name)
    if wanted is None:
        client.remove(name)
        return
    secrets = [_secret(wanted, key) for key in difference.secrets]
    if not difference.is_there or difference.upgrade:
        auth = registry_auth(wanted.reference)
        terms = _terms(client, wanted, auth, grant_all=grant_all)
        if not difference.is_there:
            terms |= {"settings": list(difference.settings), "secrets": secrets}
            with client.pull(wanted.reference, name, terms, auth) as progress:
                _quietly(progress)
        else:
            with client.upgrade(name, wanted.reference, terms, auth) as progress:
                _quietly(progress)
    if difference.is_there and (difference.settings or secrets):
        client.set(name, difference.settings, secrets)
    if difference.policy:
        client.set_policy(name, difference.policy)
    if difference.start:
        client.enable(name)


def _quietly(progress: Any) -> None:
    """With --json there is one document a plugin and nothing else."""
    if wants_json():
        for _ in progress.lines():
            pass
    else:
        show_progress(progress)


def _terms(client: MoorageClient, wanted: "Wanted", auth: str, *, grant_all: bool) -> dict[str, object]:
    """What is granted. Raises: Denied saying what the plugin asks for, where the file grants something else."""
    if grant_all or wanted.granted is None:
        return {}
    asked = client.privileges(wanted.reference, auth)
    wants = Counter((each["Name"], tuple(sorted(each["Value"]))) for each in asked)
    if wants != Counter((name, tuple(sorted(values))) for name, values in wanted.granted):
        listed = "; ".join(f"{name}: {', '.join(values)}" for name, values in wants.elements()) or "nothing"
        raise errors.Denied(
            f"plugin {wanted.name} asks for {listed}, and the file grants something else; "
            "write that into its privileges, or privileges: all"
        )
    return {"privileges": asked}


def _secret(wanted: "Wanted", key: str) -> str:
    path = wanted.secrets[key]
    try:
        return f"{key}={path.read_text().removesuffix(chr(10))}"
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read the secret {key} from {path}: it is no text in UTF-8") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read the secret {key} from {path}: {error.strerror}") from error

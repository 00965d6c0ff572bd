"""One apply, check or dry run of one file, and what is printed of it."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage.api.schema.plugins import PluginDetails
from moorage.cli.apply.check import UNHEALTHY, PluginCheck, check_plugins, check_status
from moorage.cli.apply.steps import PlannedChange, apply_change, fetch_package, plan_change
from moorage.cli.context import is_json
from moorage.cli.progress import report_interruption
from moorage.cli.state_diff import PluginDiff, diff_state
from moorage.cli.state_file import DesiredState, read_desired_state
from moorage.cli.terminal import complain, print_json, say
from moorage.client import MoorageClient
from moorage.timeouts import DEFAULT

__all__ = ("ROLLED_BACK", "ApplyOptions", "DesiredFile", "read_source")

ROLLED_BACK = 3
"""Exit status: a plugin did not work as the file says, and is again as it was before."""
_MARKS = {"install": "+", "change": "~", "remove": "-", "none": "="}


class ApplyOptions(Struct, frozen=True):
    """How a file is applied."""

    grant_all: bool = False
    wait: float = 0
    """Seconds until each plugin must be healthy; 0 to go by ready alone."""
    prunes: bool = False
    adopts: bool = False
    """Plugins of the file that were made otherwise belong to it from now on."""
    shows_unchanged: bool = True


class DesiredFile(Struct, frozen=True):
    """The desired state of this machine, from a file."""

    state: DesiredState
    identity: str
    """What plugins that it makes are marked with; empty for standard input without a name."""

    @classmethod
    def parse(cls, source: str, data: bytes) -> "DesiredFile":
        """What was read from ``source``, a path or "-". Raises: Invalid with the line."""
        is_input = source == "-"
        folder = Path() if is_input else Path(source).parent
        state = read_desired_state(data, "standard input" if is_input else source, folder)
        # not resolved: a file that is mounted by Kubernetes is a link to another one after each change
        return cls(state, state.name or ("" if is_input else os.path.abspath(source)))

    def dry_run(self, client: MoorageClient, options: ApplyOptions) -> int:
        """Print what differs, and what would be refused; the exit status."""
        status = 0
        for diff in self._diffs(client.plugins(), options):
            failure = ""
            _show(diff, options)
            try:
                plan_change(client, diff, grant_all=options.grant_all)
            except errors.MoorageError as error:
                failure, status = _named(diff, error), 1
                complain(failure)
            _print(diff, failure=failure)
        return status

    def check(self, client: MoorageClient, options: ApplyOptions, *, prints: bool = True) -> int:
        """Compare and change nothing; the exit status."""
        plugins = client.plugins()
        checks = check_plugins(self._diffs(plugins, options), plugins)
        for each in checks if prints else ():
            _print_check(each)
        return check_status(checks)

    def apply(self, client: MoorageClient, options: ApplyOptions) -> int:
        """Fetch everything, then change plugin by plugin until one fails; the exit status."""
        planned: list[PlannedChange] = []
        for diff in self._diffs(client.plugins(), options):
            try:
                with report_interruption("nothing was changed"):
                    planned.append(plan_change(client, diff, grant_all=options.grant_all))
                    fetch_package(client, planned[-1])
            except errors.MoorageError as error:
                _show(diff, options)
                complain(f"{_named(diff, error)}; nothing was changed")
                _print(diff, failure=str(error))
                return 1
        for at, change in enumerate(planned):
            _show(change.diff, options)
            try:
                with report_interruption(lambda: self._interrupted(client, options, planned)):
                    apply_change(client, change, self.identity, options.wait)
            except errors.MoorageError as error:
                rest = ", ".join(each.diff.name for each in planned[at + 1 :] if each.diff.texts)
                complain(f"{_named(change.diff, error)}{f'; not changed: {rest}' if rest else ''}")
                _print(change.diff, failure=str(error), is_rolled_back=error.is_rolled_back)
                return ROLLED_BACK if error.is_rolled_back else 1
            _print(change.diff, is_done=bool(change.diff.texts))
        return 0

    def _interrupted(self, client: MoorageClient, options: ApplyOptions, planned: Sequence[PlannedChange]) -> str:
        """What was changed, what the engine changes on its own, and what was not changed, by its present state."""
        time.sleep(DEFAULT.disconnected)
        try:
            plugins = client.plugins()
        except errors.MoorageError as error:
            return f"what was changed is unknown: {error}"
        busy = {each.name for each in plugins if each.moorage.state in ("starting", "stopping")}
        left = {each.name for each in self._diffs(plugins, options) if each.texts}
        found: dict[str, list[str]] = {}
        for name in (each.diff.name for each in planned if each.diff.texts):
            kind = (
                "completed or rolled back by the engine"
                if name in busy
                else "not changed"
                if name in left
                else "changed"
            )
            found.setdefault(kind, []).append(name)
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items())

    def _diffs(self, plugins: Sequence[PluginDetails], options: ApplyOptions) -> list[PluginDiff]:
        if (options.prunes or options.adopts) and not self.identity:
            verb = "prune" if options.prunes else "adopt plugins"
            raise errors.Invalid(f"cannot {verb} for standard input: give the file a name, as in name: storage")
        prunes, adopts = (self.identity if is_on else "" for is_on in (options.prunes, options.adopts))
        return diff_state(self.state, plugins, prunes, adopts)


def read_source(source: str) -> bytes:
    """The bytes of the file, or of standard input for "-".

    Raises:
        errors.NotFound: there is no such file
        errors.Invalid: it cannot be read
    """
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot read {source}: there is no such file") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read {source}: {error.strerror}") from error


def _show(diff: PluginDiff, options: ApplyOptions) -> None:
    if is_json() or not (diff.texts or options.shows_unchanged):
        return
    say(f"{_MARKS[diff.kind]} {diff.name}")
    for text in diff.texts:
        say(f"    {text}")


def _print(diff: PluginDiff, *, is_done: bool = False, failure: str = "", is_rolled_back: bool = False) -> None:
    if is_json():
        document = {"Name": diff.name, "Change": diff.kind, "Differences": list(diff.texts)}
        print_json({**document, "Done": is_done, "Error": failure, "RolledBack": is_rolled_back})


def _print_check(check: PluginCheck) -> None:
    if is_json():
        result = {0: "ok", UNHEALTHY: "unhealthy"}.get(check.status, "drift")
        document = {"Name": check.name, "Result": result, "Desired": check.desired, "Actual": check.actual}
        print_json({**document, "Why": list(check.reasons)})
        return
    say(f"{'=' if not check.status else '!' if check.status == UNHEALTHY else '~'} {check.name}")
    for text in check.reasons:
        say(f"    {text}")


def _named(diff: PluginDiff, error: errors.MoorageError) -> str:
    return f"{diff.desired.position}: {error}" if diff.desired else str(error)

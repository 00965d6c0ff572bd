"""What a person clicked: operations on plugins, which continue while pages show their progress and their results."""

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import anyio
import anyio.from_thread
import msgspec
from anyio.abc import TaskGroup
from msgspec import UNSET

from moorage import errors
from moorage._lib.threads import run_abandonable
from moorage.api.schema.base import from_document, to_document
from moorage.api.schema.packages import ApplyRequest, ProgressLine, TermsRequest
from moorage.api.schema.plugins import PluginDetails, PluginPrivilege
from moorage.client import MoorageClient

__all__ = ("ACTIONS", "PageOperation", "PageOperations", "SettingsForm")

log = logging.getLogger(__name__)

ACTIONS = ("enable", "disable", "restart", "set", "upgrade", "grant")

_MOST = 50
_MOST_UNDER_WAY = 8
Report = Callable[[str], None]


class PageOperation:
    """One operation on a plugin."""

    def __init__(self, number: int, plugin: PluginDetails, action: str) -> None:
        self.number = number
        self.id, self.name, self.action = plugin.id, plugin.name, action
        self.started_at = datetime.now(UTC)
        self.state: Literal["running", "done", "failed", "rolled back"] = "running"
        self.text = ""
        """The present step, or the result."""
        self.new_privileges: list[PluginPrivilege] = []
        """What a person has to agree to before the upgrade to ``reference`` is made."""
        self.privileges = ""
        """All that it requests then, as JSON."""
        self.reference = ""


class SettingsForm(msgspec.Struct, frozen=True):
    """Settings that a person filled in, as NAME=VALUE."""

    assignments: list[str]
    secrets: list[str]


class PageOperations:
    """The last operations, and those that are under way."""

    def __init__(self, host: str, tasks: TaskGroup, changed: Callable[[], None]) -> None:
        """``changed`` is called after each step of one."""
        self._host = host
        self._tasks = tasks
        self._changed = changed
        self._all: deque[PageOperation] = deque(maxlen=_MOST)
        self._number = 0

    def of(self, id: str) -> list[PageOperation]:
        """The last few of a plugin, newest first."""
        return [each for each in reversed(self._all) if each.id == id][:5]

    def start(self, plugin: PluginDetails, action: str, form: Mapping[str, str]) -> anyio.Event:
        """Begin what a person clicked; set when it is over.

        Raises:
            errors.Invalid: the form is wrong
            errors.Conflict: too much is under way, or an operation on this plugin
        """
        under_way = [each for each in self._all if each.state == "running"]
        if any(each.id == plugin.id for each in under_way):
            raise errors.Conflict(f"cannot {action} plugin {plugin.name}: another operation on it is under way")
        if len(under_way) >= _MOST_UNDER_WAY:
            raise errors.Conflict(f"cannot {action} plugin {plugin.name}: {_MOST_UNDER_WAY} operations are under way")
        work = _work(plugin, action, form)
        self._number += 1
        operation = PageOperation(self._number, plugin, action)
        self._all.append(operation)
        over = anyio.Event()
        self._tasks.start_soon(self._run, operation, work, over)
        return over

    async def _run(
        self, operation: PageOperation, work: Callable[[MoorageClient, PageOperation, Report], None], over: anyio.Event
    ) -> None:
        client = MoorageClient(self._host)

        def report(text: str) -> None:
            anyio.from_thread.run_sync(self._step, operation, text)

        try:
            await run_abandonable(lambda: work(client, operation, report))
            if operation.state == "running":
                operation.state = "done"
        except errors.MoorageError as error:
            operation.state = "rolled back" if error.is_rolled_back else "failed"
            operation.text = str(error)
        except Exception:
            log.exception("cannot %s plugin %s", operation.action, operation.name)
            operation.state, operation.text = "failed", "internal error; see the log"
        finally:
            client.abort()
            if operation.state == "running":
                operation.state, operation.text = "failed", "interrupted: this page was stopped"
            over.set()
            self._changed()

    def _step(self, operation: PageOperation, text: str) -> None:
        if operation.text != text:
            operation.text = text
            self._changed()


def _work(
    plugin: PluginDetails, action: str, form: Mapping[str, str]
) -> Callable[[MoorageClient, PageOperation, Report], None]:
    """What an action does.

    Raises:
        errors.Invalid: the form is wrong
        errors.NotFound: there is no such action
    """
    name, force = plugin.id, form.get("force") == "yes"
    if action == "enable":
        return lambda client, _, __: client.enable(name)
    if action == "disable":
        return lambda client, _, __: client.disable(name, force=force)
    if action == "restart":
        return lambda client, _, __: client.restart(name)
    if action == "grant":
        agreed = _privileges(form.get("privileges", "")) or []
        return lambda client, _, __: _grant(client, name, agreed)
    if action == "set":
        settings = read_settings(plugin, form)
        return lambda client, _, __: _set(client, plugin, settings)
    if action == "upgrade":
        reference = form.get("reference", "").strip() or plugin.plugin_reference or plugin.name
        granted = _privileges(form.get("privileges", ""))
        wait = 60.0 if plugin.moorage.policy is not None and plugin.moorage.health is not None else 0.0
        return lambda client, operation, report: _upgrade(client, operation, report, reference, granted, wait, force)
    raise errors.NotFound(f"cannot {action} a plugin: there is no such action")


def read_settings(plugin: PluginDetails, form: Mapping[str, str]) -> SettingsForm:
    """The settings that differ from the present ones; a secret that was left empty does not change.

    Raises:
        errors.Invalid: nothing differs
    """
    settings = SettingsForm([], [])
    for key, value in form.items():
        kind, _, name = key.partition(":")
        if kind == "value" and form.get(f"before:{name}") != value:
            is_secret = form.get(f"secret:{name}") == "yes"
            (settings.secrets if is_secret else settings.assignments).append(f"{name}={value}")
        elif kind == "hidden" and value:
            settings.secrets.append(f"{name}={value}")
    if not settings.assignments and not settings.secrets:
        raise errors.Invalid(f"cannot set plugin {plugin.name}: no setting differs")
    return settings


def _grant(client: MoorageClient, name: str, agreed: list[PluginPrivilege]) -> None:
    client.grant(name, agreed, attended=True)


def _set(client: MoorageClient, plugin: PluginDetails, settings: SettingsForm) -> None:
    if not plugin.enabled:
        client.set(plugin.id, settings.assignments, settings.secrets)
        return
    # One change with a rollback, as `moorage apply` makes it. No person agreed to more privileges than it has.
    change = ApplyRequest(plugin.moorage.privileges, settings.assignments, settings.secrets)
    with client.apply(plugin.name, "", change) as progress:
        for _ in progress.lines():
            pass


def _upgrade(
    client: MoorageClient,
    operation: PageOperation,
    report: Report,
    reference: str,
    granted: list[PluginPrivilege] | None,
    wait: float,
    force: bool,
) -> None:
    """Upgrade to a reference with exactly the privileges that a person agreed to, or say which they would be."""
    report(f"reads what {reference} requests")
    review = client.request_privileges(reference, operation.id)
    if review.refusal:
        raise errors.Denied(review.refusal)
    if review.new and granted is None:
        operation.new_privileges = review.new
        operation.privileges = json.dumps(to_document(review.privileges))
        operation.reference = reference
        operation.state = "failed"
        operation.text = f"{reference} requests more privileges than {operation.name} was granted; nothing was changed"
        return
    terms = TermsRequest(granted or review.privileges, attended=granted is not None)
    with client.upgrade(operation.id, reference, terms, restart=True, force=force, wait=wait) as progress:
        for line in progress.lines():
            report(_step_text(line))
    report(f"{reference} is current")


def _step_text(line: ProgressLine) -> str:
    text = line.status or "" if line.status is not UNSET else ""
    return f"{line.id}: {text}" if line.id is not UNSET and line.id else text


def _privileges(text: str) -> list[PluginPrivilege] | None:
    """The privileges of a form that a person agreed to.

    Raises:
        errors.Invalid: they are none
    """
    if not text:
        return None
    try:
        return from_document(json.loads(text), list[PluginPrivilege])
    except (ValueError, RecursionError) as error:
        raise errors.Invalid("cannot upgrade: the privileges of the form cannot be read") from error

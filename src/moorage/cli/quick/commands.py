"""What each quick command does. Output, errors and statuses are those of its module ``cli/cmd_NAME.py``."""

from moorage import errors
from moorage.cli.quick.arguments import QuickCall
from moorage.cli.terminal import complain, print_json, say
from moorage.client.local_http import UnknownServer, document_of, quoted, send

__all__ = ("COMMANDS",)

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_OWN = "/moorage/v1"


def _ls(call: QuickCall) -> int:
    from moorage.cli.quick.plugin_table import print_plugins

    plugins = _get(call, "/plugins")
    try:
        print_plugins(
            plugins,
            quiet="quiet" in call.flags,
            no_trunc="no_trunc" in call.flags,
            is_json=call.is_json,
        )
    except (KeyError, TypeError, AttributeError) as error:  # it is printed when all of it is known
        raise UnknownServer from error
    return 0


def _inspect(call: QuickCall) -> int:
    found = [_get(call, f"/plugins/{quoted(name)}/json") for name in call.names]
    if call.is_json:
        for plugin in found:
            print_json(plugin)
    else:
        print_json(found, indent=4)
    return 0


def _enable(call: QuickCall) -> int:
    [name] = call.names
    path = f"/plugins/{quoted(name)}"
    plugin = _get(call, f"{path}/json")
    try:
        is_enabled = bool(plugin["Enabled"])
        is_plain = plugin["Moorage"]["State"] == "ready" if is_enabled else not plugin["Moorage"]["Ungranted"]
    except (KeyError, TypeError) as error:
        raise UnknownServer from error
    if not is_plain:  # there is something to say, to ask or to restart
        raise UnknownServer
    if not is_enabled:
        return _change(call, f"{path}/enable?timeout=0", is_enabled=True)
    _print_name(call)
    return 0


def _disable(call: QuickCall) -> int:
    query = "?force=1" if "force" in call.flags else ""
    return _change(call, f"/plugins/{quoted(call.names[0])}/disable{query}", is_enabled=False)


def _change(call: QuickCall, target: str, *, is_enabled: bool) -> int:
    """Send a change; a conflict is none where another command has done the same in between."""
    try:
        try:
            send(call.socket, "POST", target).read()
        except errors.Conflict:
            if _get(call, f"/plugins/{quoted(call.names[0])}/json")["Enabled"] is not is_enabled:
                raise
    except errors.Unavailable:
        raise
    except errors.MoorageError as error:
        complain(f"{error}")
        return 1
    _print_name(call)
    return 0


def _print_name(call: QuickCall) -> None:
    if call.is_json:
        print_json({"Name": call.names[0]})
    else:
        say(call.names[0])


def _logs(call: QuickCall) -> int:
    from moorage.cli.quick.log_lines import LogPrinter

    tail = call.values.get("tail", "all")
    if tail.lower() in ("all", "-1"):
        tail = "all"
    elif not tail.isdecimal():
        raise UnknownServer
    follow = "1" if "follow" in call.flags else ""
    show = LogPrinter(
        (),
        is_json=call.is_json,
        timestamps="timestamps" in call.flags,
        no_log_prefix="no_log_prefix" in call.flags,
        raw="raw" in call.flags,
    )
    answer = send(call.socket, "GET", f"{_OWN}/plugins/{quoted(call.names[0])}/logs?tail={tail}&since=&follow={follow}")
    for line in answer.lines():
        try:
            document = document_of(line)
            show.line(call.names[0], document)
        except (UnknownServer, KeyError, TypeError, ValueError) as error:
            raise errors.Unavailable(f"lost moorage at {call.socket}: it sent what is no line of output") from error
    return 0


def _version(call: QuickCall) -> int:
    from moorage.cli.quick.versions import find_versions, print_versions, runtime_text

    def find_runtime() -> str:
        try:
            more = _get(call, "/info")["Moorage"]
            return runtime_text(more["Runtime"], more["RuntimeVersion"], more["RuntimeReason"])
        except (KeyError, TypeError) as error:
            raise UnknownServer from error

    print_versions(find_versions(find_runtime), is_json=call.is_json)
    return 0


def _get(call: QuickCall, target: str) -> "Any":
    """An answer as a document. Raises: UnknownServer also for a failure, whose text is that of ``cli.main``."""
    try:
        return document_of(send(call.socket, "GET", target).read())
    except errors.MoorageError as error:
        raise UnknownServer from error


COMMANDS: "dict[str, Callable[[QuickCall], int]]" = {
    "ls": _ls,
    "inspect": _inspect,
    "enable": _enable,
    "disable": _disable,
    "logs": _logs,
    "version": _version,
}
"""By name; each returns the exit status, and raises UnknownServer where it has done nothing."""

"""Command lines of quick commands: their plain forms only. Pure.

What is not understood here is none of a quick command, and ``cli.main`` parses it, with all its forms and errors.
"""

import os
from collections.abc import Mapping

from moorage.client.host import DEFAULT_HOST, contexts_path

__all__ = ("QuickCall", "parse")

_FLAGS: dict[str, dict[str, str]] = {
    "ls": {"-q": "quiet", "--quiet": "quiet", "--no-trunc": "no_trunc"},
    "inspect": {},
    "enable": {},
    "disable": {"-f": "force", "--force": "force"},
    "logs": {
        "-f": "follow",
        "--follow": "follow",
        "-t": "timestamps",
        "--timestamps": "timestamps",
        "--no-log-prefix": "no_log_prefix",
        "--raw": "raw",
    },
    "version": {},
}
_VALUES = {"logs": {"-n": "tail", "--tail": "tail"}}
_NAMES = {"ls": (0, 0), "inspect": (1, 99), "enable": (1, 1), "disable": (1, 1), "logs": (1, 1), "version": (0, 0)}
"""How many plugins each may name: the least, the most."""
_OTHER_ENGINES = ("MOORAGE_CONTEXT", "MOORAGE_ROOT", "MOORAGE_EXEC_ROOT")
_UNIX = "unix://"


class QuickCall:
    """A call of a quick command."""

    __slots__ = ("command", "flags", "is_json", "names", "socket", "values")

    def __init__(self, command: str, socket: str) -> None:
        self.command = command
        self.socket = socket
        """The path of the engine's socket."""
        self.is_json = False
        self.flags: set[str] = set()
        self.values: dict[str, str] = {}
        self.names: list[str] = []
        """The plugins."""


def parse(arguments: list[str], environ: Mapping[str, str]) -> QuickCall | None:
    """The call, or None for one that ``cli.main`` has to parse."""
    given, is_json, rest = None, False, list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--json":
            is_json = True
        elif option == "--host" and rest:
            given = rest.pop(0)
        elif option.startswith("--host="):
            given = option.removeprefix("--host=")
        else:
            return None
    if not rest or rest[0] not in _FLAGS or "_MOORAGE_COMPLETE" in environ:
        return None
    socket = _find_socket(given, environ)
    if socket is None:
        return None
    call = QuickCall(rest[0], socket)
    call.is_json = is_json
    return call if _take(call, rest[1:]) else None


def _take(call: QuickCall, words: list[str]) -> bool:
    """Take what follows the name of the command; whether all of it is understood."""
    flags, values = _FLAGS[call.command], _VALUES.get(call.command, {})
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word == "--json":
            call.is_json = True
        elif word in flags:
            call.flags.add(flags[word])
        elif word in values and words:
            call.values[values[word]] = words.pop(0)
        elif equals and name.startswith("--") and name in values:
            call.values[values[name]] = value
        elif word.startswith("-") or not word:
            return False
        else:
            call.names.append(word)
    least, most = _NAMES[call.command]
    return least <= len(call.names) <= most


def _find_socket(given: str | None, environ: Mapping[str, str]) -> str | None:
    """The path of the socket, by the rules of ``cli.engine_location``; None where they need more than a path."""
    host = given if given is not None else environ.get("MOORAGE_HOST")
    if host is None:
        if any(environ.get(name) for name in _OTHER_ENGINES) or os.path.exists(contexts_path()):
            return None
        host = DEFAULT_HOST
    path = host.removeprefix(_UNIX)
    return path if path.startswith("/") else None

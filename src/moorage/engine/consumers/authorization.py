"""Docker daemons that authorize each request by a published plugin (row P03). Everything here blocks.

Without the plugin each call of such a daemon waits 32 s and then fails, and it does not start.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from moorage import errors
from moorage.host import proc
from moorage.host.processes import has_users

__all__ = ("authorization_plugins", "check_not_authorizing")

_OPTION = "--authorization-plugin"
_CONFIG_OPTION = "--config-file"
_CONFIG = "/etc/docker/daemon.json"


def check_not_authorizing(action: str, names: Collection[str]) -> None:
    """Return if no dockerd of this machine authorizes by a plugin that is published under one of these names.

    ``action`` completes "cannot ...". Raises: Conflict naming the dockerd.
    """
    for pid in proc.pids():
        if proc.command_name(pid) != "dockerd" or not has_users(pid, 0):
            continue
        for name in authorization_plugins(proc.command_line(pid), Path(proc.root_path(pid))):
            if name in names:
                raise errors.Conflict(
                    f"cannot {action}: dockerd (pid {pid}) authorizes each request by {name}, and would wait 32 s for "
                    "each and refuse it; use --force to do it anyway"
                )


def authorization_plugins(words: list[str], root: Path = Path("/")) -> set[str]:
    """The authorization plugins of a dockerd, by its command line and its daemon.json below ``root``."""
    found = set(_values(words, _OPTION))
    path = next(iter(_values(words, _CONFIG_OPTION)), _CONFIG)
    try:
        configured = json.loads((root / path.lstrip("/")).read_bytes())["authorization-plugins"]
    except (OSError, ValueError, KeyError, TypeError):
        configured = []
    if isinstance(configured, list):
        found |= {each for each in configured if isinstance(each, str)}
    return found


def _values(words: list[str], option: str) -> Iterator[str]:
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            yield words[number + 1]
        elif word.startswith(f"{option}="):
            yield word.removeprefix(f"{option}=")

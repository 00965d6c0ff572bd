"""Names under which a plugin is published, and the paths of their sockets. Pure."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from moorage import errors
from moorage.engine.values import Publication
from moorage.plugins import Config
from moorage.proxy.protocol import PublishOptions

__all__ = ("is_kind", "make_publication", "socket_path")

_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]*")
_SUFFIXES = (".sock", ".spec", ".json")
_MOST_BYTES = 107
"""Of the path of a unix socket. Source: unix(7)."""
_PLAIN_MODE, _GROUP_MODE = 0o600, 0o660


def make_publication(
    plugin: str,
    names: Sequence[str],
    options: PublishOptions,
    group: str,
    directory: Path,
    *,
    podman: bool | None = None,
) -> Publication:
    """How a plugin is published under these names, without names under its own (``vieux/sshfs:latest``).

    Raises: Invalid for a name that can be no path of a socket in this directory, or for options out of range.
    """
    chosen = tuple(dict.fromkeys(names or (plugin,)))
    for name in chosen:
        _check_name(name, directory)
    if not 1 <= options.at_once <= 10_000:
        raise errors.Invalid(f"cannot forward {options.at_once} calls at once: 1 to 10000 are possible")
    for call, seconds in options.time_limits.items():
        if not 0 < seconds <= 86_400:
            raise errors.Invalid(f"cannot limit {call} to {seconds:g} s: more than 0 and at most 86400 are possible")
    return Publication(chosen, group, _GROUP_MODE if group else _PLAIN_MODE, options, podman)


def socket_path(directory: Path, name: str) -> str:
    """The path of the socket of a published name; dockerd looks a name up at the same path."""
    return f"{directory}/{name}.sock"


def is_kind(config: Config, capability: str) -> bool:
    """Whether a plugin implements this: "volumedriver", "logdriver", "authz", ..."""
    return any(each.capability.lower() == capability for each in config.interface.types)


def _check_name(name: str, directory: Path) -> None:
    parts = name.split("/")
    if not all(_COMPONENT.fullmatch(part) for part in parts):
        raise errors.Invalid(
            f"cannot publish a plugin as {name!r}: a name has letters, digits and _.:@+- between slashes"
        )
    if any(part.endswith(_SUFFIXES) for part in parts):
        raise errors.Invalid(f"cannot publish a plugin as {name!r}: .sock, .spec and .json are no part of a name")
    path = socket_path(directory, name)
    if len(os.fsencode(path)) > _MOST_BYTES:
        raise errors.Invalid(f"cannot publish a plugin as {name!r}: {path} is longer than {_MOST_BYTES} bytes")

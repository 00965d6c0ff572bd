"""Whether names of a plugin are free on this machine (row P02). Everything here blocks; nothing is removed but dead
sockets of names that are published.
"""

import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from moorage import errors
from moorage.engine.consumers.names import socket_path
from moorage.host import proc
from moorage.host.files import remove_empty_parents
from moorage.host.sockets import accepts_connections, is_socket

__all__ = ("SPEC_DIRECTORIES", "check_free", "remove_dead_sockets")

SPEC_DIRECTORIES = (Path("/etc/docker/plugins"), Path("/usr/lib/docker/plugins"))
"""Where dockerd looks for ``.spec`` and ``.json`` files, beside the directory of the sockets. Source: moby
pkg/plugins/discovery.go and discovery_unix.go."""


def check_free(
    plugin: str,
    names: Sequence[str],
    directory: Path,
    own: Collection[str],
    spec_directories: Sequence[Path] = SPEC_DIRECTORIES,
) -> None:
    """Return if no other program serves a name, by a socket that accepts connections or by a file.

    ``own`` are paths of sockets of this engine.

    Raises: Conflict naming the owner's pid, or the file.
    """
    for name in names:
        for reason in _find_users(name, directory, own, spec_directories):
            raise errors.Conflict(f"cannot publish plugin {plugin} as {name}: {reason}")


def remove_dead_sockets(paths: Sequence[str], directory: Path) -> list[str]:
    """Remove sockets below a directory on which no process listens, and return their paths. What is no socket stays.

    After a kill of everything: each dead socket costs every search of a dockerd 15 s.
    """
    removed = []
    for path in paths:
        if is_socket(path) and not accepts_connections(path):
            Path(path).unlink(missing_ok=True)
            remove_empty_parents(path, str(directory))
            removed.append(path)
    return removed


def _find_users(name: str, directory: Path, own: Collection[str], spec_directories: Sequence[Path]) -> Iterator[str]:
    last = name.rpartition("/")[2]
    path = socket_path(directory, name)
    for each in (path, socket_path(directory, f"{name}/{last}")):
        if each not in own and (reason := _describe_user(each, is_needed=each == path)):
            yield reason
    for where in (directory, *spec_directories):
        for stem in (name, f"{name}/{last}"):
            for suffix in (".spec", ".json"):
                if os.path.lexists(found := f"{where}/{stem}{suffix}"):
                    yield f"{found} says where a plugin of that name is; remove that file first"


def _describe_user(path: str, *, is_needed: bool) -> str:
    """Who uses a path, as text; empty where it is free. Of one that is not ``is_needed`` only a server counts."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    if stat.S_ISSOCK(mode) or (stat.S_ISLNK(mode) and accepts_connections(path)):
        if not accepts_connections(path):
            return ""
        return f"{_describe_listener(path)} listens on {path}"
    return f"{path} exists and is no socket" if is_needed else ""


def _describe_listener(path: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            client.connect(path)
            pid = int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    except OSError:
        return "another program"
    program = os.path.basename(proc.executable(pid)) if pid else ""
    return f"another program, pid {pid}{f' ({program})' if program else ''},"

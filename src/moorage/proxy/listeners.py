"""The listening sockets: made where no other program serves, or adopted from a proxy that was killed (P01 to P03)."""

import fcntl
import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from moorage.host import proc
from moorage.host.files import make_directory, remove_empty_parents
from moorage.proxy.consumer import peer_credentials

__all__ = ("Listener", "Listeners", "SocketSpec")

log = logging.getLogger(__name__)

_SIOCUNIXFILE = 0x89E0
_BACKLOG = 4096
_LONGEST_PATH = 107  # bytes; Source: unix(7), sun_path


class SocketSpec(Struct, frozen=True):
    """A socket as it is to be."""

    plugin: str
    """Id of the plugin."""
    mode: int
    gid: int
    """-1 for root's."""
    is_internal: bool
    """Whether only the engine uses it."""
    directory: str = ""
    """What stays of its path: directories below it exist only as long as a socket is in them; empty for all."""


class Listener:
    """One listening socket, and its file."""

    def __init__(self, path: str, spec: SocketSpec, listening: socket.socket) -> None:
        self.path = path
        self.spec = spec
        self.socket = listening
        self.inode = os.lstat(path).st_ino

    def owns_file(self) -> bool:
        """Whether the file at its path is still its own."""
        try:
            return os.lstat(self.path).st_ino == self.inode
        except OSError:
            return False


class Listeners:
    """All sockets of the proxy."""

    def __init__(self, added: Callable[[Listener], None], removed: Callable[[Listener], None]) -> None:
        """``added`` and ``removed`` are called with each socket that begins to listen, or is about to be closed."""
        self._added = added
        self._removed = removed
        self.by_path: dict[str, Listener] = {}
        self.problems: dict[str, str] = {}
        """Why a socket could not be made, by path."""

    def reconcile(self, desired: Mapping[str, SocketSpec], adopted: Mapping[str, socket.socket] | None = None) -> bool:
        """Listen on these paths and no others. Whether any socket is another than before.

        ``adopted`` are listening sockets of the former proxy; all are used or closed.
        """
        changed = False
        for path in [path for path in self.by_path if path not in desired]:
            self.close(path)
            changed = True
        former = dict(adopted or {})
        self.problems = {path: problem for path, problem in self.problems.items() if path in desired}
        for path, spec in desired.items():
            listener = self.by_path.get(path)
            if listener is not None and listener.owns_file():
                if listener.spec != spec:
                    listener.spec = spec
                    self._set_owner(path, spec)
                continue
            if listener is not None:
                self.close(path)
            changed = self._listen(path, spec, former.pop(path, None)) or changed
        for path, each in former.items():
            if path not in desired and _is_own(path, each):
                _unlink(path)
            each.close()
        return changed

    def _listen(self, path: str, spec: SocketSpec, former: socket.socket | None) -> bool:
        try:
            if former is not None and _is_own(path, former):
                listening = former
                self._set_owner(path, spec)
            else:
                if former is not None:
                    former.close()
                listening = _make(path, spec)
            listener = Listener(path, spec, listening)
        except OSError as error:
            problem = error.strerror or str(error)
            if self.problems.get(path) != problem:
                log.warning("cannot listen on %s: %s", path, problem)
            self.problems[path] = problem
            return False
        self.problems.pop(path, None)
        self.by_path[path] = listener
        self._added(listener)
        return True

    def _set_owner(self, path: str, spec: SocketSpec) -> None:
        with suppress(OSError):
            _set_owner(path, spec)

    def close(self, path: str) -> None:
        """Stop listening on a path, and remove its file, unless that is another program's."""
        listener = self.by_path.pop(path)
        self._removed(listener)
        if listener.owns_file():
            _unlink(path)
            remove_empty_parents(path, listener.spec.directory)
        listener.socket.close()

    def close_all(self) -> None:
        """Leave no socket behind."""
        for path in list(self.by_path):
            self.close(path)


def _make(path: str, spec: SocketSpec) -> socket.socket:
    """A new listening socket. Raises: OSError, naming who has the path."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError(f"its path has more than {_LONGEST_PATH} bytes")
    for each in _directories(path, spec.directory):
        make_directory(each, 0o700 if spec.is_internal else 0o755)
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.bind(path)
        _set_owner(path, spec)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _directories(path: str, top: str) -> list[Path]:
    """The directories above a socket from ``top`` on, the uppermost first: who can write to one replaces the socket."""
    found = [Path(path).parent]
    while top and found[0] != Path(top) and Path(top) in found[0].parents:
        found.insert(0, found[0].parent)
    return found


def _set_owner(path: str, spec: SocketSpec) -> None:
    """New sockets have mode 0600, so that no user connects in between. Raises: OSError."""
    os.chown(path, -1, spec.gid if spec.gid >= 0 else os.getegid(), follow_symlinks=False)
    os.chmod(path, spec.mode)


def _clear(path: str) -> None:
    """Remove the file of a socket that no process serves. Raises: OSError for anything else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(None, "a file or directory that is no socket has this path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(path)
        except BlockingIOError:
            raise FileExistsError(None, "another program serves this socket, and its queue is full") from None
        except OSError:
            _unlink(path)
            return
        pid = peer_credentials(client).pid
    raise FileExistsError(None, f"process {pid} ({proc.command_name(pid) or 'unknown'}) serves this socket")


def _is_own(path: str, listening: socket.socket) -> bool:
    """Whether the file at a path is that of this listening socket. Source: Linux, unix_open_file in af_unix.c."""
    try:
        found = os.lstat(path)
        try:
            descriptor = fcntl.ioctl(listening, _SIOCUNIXFILE)
        except OSError:  # without CAP_NET_ADMIN; only root can replace files here
            return stat.S_ISSOCK(found.st_mode) and listening.getsockname() == path
        try:
            return os.path.samestat(os.fstat(descriptor), found)
        finally:
            os.close(descriptor)
    except OSError:
        return False


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)

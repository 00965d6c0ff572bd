"""Unix sockets: whether a server accepts connections, and how to connect to a plugin's socket and to nothing else."""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage.host.directory_tree import Directory, open_beneath
from moorage.host.proc import descriptor_path

__all__ = ("PluginSocket", "accepts_connections", "is_socket")

_MOST_ENTRIES, _MOST_OTHERS = 1000, 3


class PluginSocket(Struct, frozen=True):
    """A unix socket that a plugin creates below a directory of its own.

    A link or a mount on the way is not followed: it could lead to the engine's own socket, or to a server that hangs.
    """

    directory: Path
    """A directory that only root controls."""
    name: str
    """The path below it, through what the plugin controls."""

    @property
    def path(self) -> str:
        """Its path, for people."""
        return os.path.join(self.directory, self.name)

    @contextmanager
    def open(self) -> Iterator[str]:
        """A path that leads to this very socket until the block ends, even if the plugin replaces it.

        Never blocks.

        Raises: Unavailable if no socket exists, or only by a path with links or mounts.
        """
        found = self._find()
        try:
            yield descriptor_path(found)
        finally:
            os.close(found)

    def _find(self) -> int:
        try:
            directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                found = open_beneath(directory, self.name, os.O_PATH | os.O_NOFOLLOW)
            finally:
                os.close(directory)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV):
                raise errors.Unavailable(
                    f"cannot use the socket {self.path}: a link or a mount is in its way"
                ) from error
            raise errors.Unavailable(f"there is no socket at {self.path}") from error
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            os.close(found)
            raise errors.Unavailable(f"there is no socket at {self.path}")
        return found

    def others(self) -> Sequence[str]:
        """Names of a few other sockets in its directory: one of them may be this one by another name."""
        directory, _, own = self.name.rpartition("/")
        try:
            with Directory.open(self.directory) as above:
                found = open_beneath(above.fileno(), directory or ".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return ()
        try:
            with os.scandir(found) as entries:
                first = [each.name for each in islice(entries, _MOST_ENTRIES)]
            return sorted(each for each in first if each != own and _is_socket(found, each))[:_MOST_OTHERS]
        except OSError:
            return ()
        finally:
            os.close(found)

    def is_listening(self) -> bool:
        """Whether it accepts a connection now. Never waits: connect() succeeds, or fails at once."""
        try:
            with self.open() as path:
                return accepts_connections(path)
        except errors.Unavailable:
            return False


def accepts_connections(path: str | os.PathLike[str]) -> bool:
    """Whether a unix socket accepts a connection now; its file alone may be a leftover. Never waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(os.fspath(path))
        except BlockingIOError:
            return True  # a server listens, and its queue is full
        except OSError:
            return False
        return True


def is_socket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a socket itself, not a link to one: in a plugin's directory that may lead anywhere."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_socket(directory: int, name: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False

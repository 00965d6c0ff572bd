"""Sockets that plugins make: whether one listens, and how to connect to it and to nothing else."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage._lib.unix_socket import accepts
from moorage.host.beneath import Directory, open_beneath

__all__ = ("PluginSocket",)

_MOST_ENTRIES, _MOST_OTHERS = 1000, 3


class PluginSocket(Struct, frozen=True):
    """A unix socket that a plugin makes below a directory of its own, which is where ``call`` may connect to.

    A link or a mount in the way is not followed: it could lead to the engine's own socket, or to a server that hangs.
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
        """A path that leads to this very socket until the block ends, whatever the plugin puts in its place.

        Never blocks.

        Raises: Unavailable where no socket is there, or not by a path without links and mounts.
        """
        found = self._find()
        try:
            yield f"/proc/self/fd/{found}"
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
        """Names of other sockets where this one should be, a few of them: the one that is there by another name."""
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
                return accepts(path)
        except errors.Unavailable:
            return False


def _is_socket(directory: int, name: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False

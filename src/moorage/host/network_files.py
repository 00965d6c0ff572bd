"""Copies of the host's /etc/hosts and /etc/resolv.conf that plugins on the host's network are given instead of them.

A bind shows the file that was there when it was made. On the host these files are replaced by others (rename), not
rewritten, so a plugin with a bind of the original never sees a change. A copy of ours is always the same file, and is
rewritten in place. Everything here blocks.
"""

import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from moorage import errors
from moorage.host.inheritance import make_directory

__all__ = ("NetworkFiles",)

_NAMES = ("hosts", "resolv.conf")
_LIMIT = 1 << 20  # bytes; a resolver reads the beginning only


class NetworkFiles:
    """The two copies, in a directory that is made with the first of them."""

    def __init__(self, directory: Path, etc: Path = Path("/etc")) -> None:
        """``etc`` has the originals."""
        self._directory = directory
        self._etc = etc

    @property
    def hosts(self) -> str:
        """The path of one, for a bind."""
        return str(self._directory / _NAMES[0])

    @property
    def resolv_conf(self) -> str:
        """The path of the other."""
        return str(self._directory / _NAMES[1])

    def exist(self) -> bool:
        """Whether they have been made, so that a plugin may use them."""
        return self._directory.is_dir()

    def refresh(self) -> Sequence[str]:
        """Make them what the originals are now. Returns what is wrong with originals, as text; may be repeated.

        The copy of one that is missing is empty; of one that cannot be read it stays as it was.

        Raises: Unavailable where a copy cannot be written.
        """
        try:
            make_directory(self._directory, 0o755)
            return [problem for name in _NAMES if (problem := self._refresh(name))]
        except OSError as error:
            path = error.filename or self._directory
            raise errors.Unavailable(f"cannot write {path}: {error.strerror}") from error

    def remove(self) -> None:
        """Remove them; their directory may be missing. Raises: OSError."""
        for name in _NAMES:
            (self._directory / name).unlink(missing_ok=True)
        try:
            self._directory.rmdir()
        except FileNotFoundError:
            pass

    def _refresh(self, name: str) -> str:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._directory / name, flags, 0o644)
        try:
            os.fchmod(descriptor, 0o644)  # whatever the umask is: any user inside a plugin reads it
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # so that what was read first is not written last
            wanted, problem = self._read(self._etc / name)
            if wanted is not None and os.pread(descriptor, _LIMIT + 1, 0) != wanted:
                os.pwrite(descriptor, wanted, 0)
                os.ftruncate(descriptor, len(wanted))
            return problem
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> tuple[bytes | None, str]:
        """An original, None where it cannot be read; and what is wrong with it."""
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return None, f"{path} is not a file; plugins on the host's network do not see it"
                data = file.read(_LIMIT + 1)
        except FileNotFoundError:
            return b"", f"there is no {path} on this host; plugins on its network see an empty one until there is"
        except OSError as error:
            return None, f"cannot read {path}: {error.strerror}; plugins on the host's network see its last content"
        if len(data) > _LIMIT:
            return None, f"{path} has over {_LIMIT} bytes; plugins on the host's network see its last content"
        return data, ""

"""Copies of the host's /etc/hosts and /etc/resolv.conf, which plugins on the host's network see instead of them.

A bind shows the file that existed when it was made. On the host these files are replaced by others (rename), not
rewritten, so a plugin with a bind of the original never sees a change. A copy is always the same file, and is rewritten
in place. Everything but ``refresh_periodically`` blocks.
"""

import fcntl
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host.files import make_directory

__all__ = ("NETWORK_PART", "NetworkFiles", "refresh_periodically")

log = logging.getLogger(__name__)

NETWORK_PART = "network"
"""Copies of the host's files, which may stay when the last plugin that used them is gone."""

_NAMES = ("hosts", "resolv.conf")
_LIMIT = 1 << 20  # bytes; a resolver reads the beginning only


class NetworkFiles:
    """The two copies, in a directory that is made with them."""

    def __init__(self, directory: Path, etc: Path = Path("/etc")) -> None:
        """``etc`` has the originals."""
        self._directory = directory
        self._etc = etc

    @property
    def hosts(self) -> str:
        """Path of the copy of /etc/hosts."""
        return str(self._directory / _NAMES[0])

    @property
    def resolv_conf(self) -> str:
        """Path of the copy of /etc/resolv.conf."""
        return str(self._directory / _NAMES[1])

    def exist(self) -> bool:
        """Whether the copies have been made, so that a plugin may use them."""
        return self._directory.is_dir()

    def refresh(self) -> Sequence[str]:
        """Copy the originals again; what is wrong with them, as text. May be repeated.

        The copy of a missing original is empty; of one that cannot be read it stays as it was.

        Raises: Unavailable where a copy cannot be written.
        """
        try:
            make_directory(self._directory, 0o755)
            return [problem for name in _NAMES if (problem := self._refresh(name))]
        except OSError as error:
            path = error.filename or self._directory
            raise errors.Unavailable(f"cannot write {path}: {error.strerror}") from error

    def remove(self) -> None:
        """Remove the copies; their directory may be missing. Raises: OSError."""
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
            content, problem = self._read(self._etc / name)
            if content is not None and os.pread(descriptor, _LIMIT + 1, 0) != content:
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
            return problem
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> tuple[bytes | None, str]:
        """The content of an original, None where it cannot be read; and what is wrong with it."""
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


async def refresh_periodically(files: NetworkFiles, period: float) -> None:
    """Refresh the copies, if they exist, every ``period`` seconds until cancelled. Logs each problem once."""
    known: Sequence[str] = ()
    while True:
        try:
            problems = await run_blocking(lambda: files.refresh() if files.exist() else ())
        except errors.MoorageError as error:
            problems = [str(error)]
        for problem in problems:
            if problem not in known:
                log.warning("%s", problem)
        known = problems
        await anyio.sleep(period)

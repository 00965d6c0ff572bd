"""Runs a plugin again whenever its directory changes.

The directory is compared from time to time, rather than watched by inotify: that has no limit on how many directories
there may be, and works on every file system, also on those that are shared with another machine. It takes at most a
twentieth of one core.
"""

import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_abandonable
from moorage.foreground.events import DirectoryChanged, Report, RunWaiting
from moorage.foreground.session import ForegroundExit

__all__ = ("run_on_changes", "tree_digest")

_PAUSE = 0.3  # seconds between two comparisons
_SHARE = 20  # how many times as long as a comparison takes the pause is, at least

Run = Callable[[Callable[[], Awaitable[None]]], Awaitable[ForegroundExit]]
"""Runs the plugin once; what it is given returns when the directory has changed, and the run is to be stopped."""


async def run_on_changes(directory: Path, run: Run, report: Report) -> int:
    """Run a plugin, and again after each change of its directory, until a signal; the exit status for the shell.

    A run that exits, or that cannot be started, is not the end: the next change starts another.

    Raises: Denied or Unsupported where no run can be started on this machine; OSError that ``report`` raised.
    """
    while True:
        tree = _Tree(directory, await run_abandonable(lambda: tree_digest(directory)))
        failure = ""
        try:
            done = await run(tree.wait_changed)
            if done.cause == "signal":
                return done.status
        except (errors.Denied, errors.Unsupported):
            raise
        except errors.MoorageError as error:
            failure = str(error)
        if not tree.has_changed:
            await report(RunWaiting(directory, failure))
            await tree.wait_changed()
        await report(DirectoryChanged(directory))


class _Tree:
    """A directory since it had this digest."""

    def __init__(self, directory: Path, digest: bytes) -> None:
        self._directory, self._digest = directory, digest
        self.has_changed = False

    async def wait_changed(self) -> None:
        """Return when the directory is another one, and is the same in two comparisons: a build may be under way."""
        last = self._digest
        while True:
            began_at = time.monotonic()
            found = await run_abandonable(lambda: tree_digest(self._directory))
            if found == last != self._digest:
                self.has_changed = True
                return
            last = found
            await anyio.sleep(max(_PAUSE, _SHARE * (time.monotonic() - began_at)))


def tree_digest(directory: Path) -> bytes:
    """A digest of what a directory has: names, sizes, times and modes, not contents (blocking). Never fails."""
    made = hashlib.blake2b()
    for path, status in _walk(str(directory)):
        facts = status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        made.update(f"{path!r} {facts}\n".encode())
    return made.digest()


def _walk(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            yield entry.path, entry.stat(follow_symlinks=False)
            is_directory = entry.is_dir(follow_symlinks=False)
        except OSError:
            continue
        if is_directory:
            yield from _walk(entry.path)

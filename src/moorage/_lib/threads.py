"""System calls that may block (unlink trees, mount, fsync) go to worker threads, so that they never stop the loop."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

__all__ = ("mount_points_below", "remove_tree", "remove_tree_now", "run_blocking")

Result = TypeVar("Result")


async def run_blocking(function: Callable[[], Result]) -> Result:
    """The function's result, from a worker thread. Waits for it even when cancelled: it may hold the file system."""
    return await anyio.to_thread.run_sync(function)


def mount_points_below(path: Path) -> list[Path]:
    """The mount points at or below a directory of this mount namespace, deepest first.

    Source: proc(5), mountinfo, fifth field; blanks and backslashes in it are octal escapes.
    """
    top = os.path.realpath(path)
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = line.split(" ", 5)[4]
            if "\\" in point:
                point = os.fsdecode(os.fsencode(point).decode("unicode_escape").encode("latin-1"))
            if point == top or point.startswith(top.rstrip("/") + "/"):
                found.append(Path(point))
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


async def remove_tree(path: Path) -> None:
    """As ``remove_tree_now``, in a worker thread."""
    await run_blocking(lambda: remove_tree_now(path))


def remove_tree_now(path: Path) -> None:
    """Remove a directory with all below it (blocking). One that is gone already is fine.

    Never deletes across a mount point: what is mounted below belongs to somebody.

    Raises: OSError naming what could not be removed (EBUSY for a mount point).
    """
    if path.is_dir() and (points := mount_points_below(path)):
        raise OSError(errno.EBUSY, "is a mount point and keeps the directory from being removed", str(points[0]))
    for last_try in (False, True):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            # gone already, or something below it vanished between listing and removing
            if last_try or not path.exists():
                return
        else:
            return

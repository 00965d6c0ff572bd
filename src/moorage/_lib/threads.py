"""System calls that may block (unlink trees, mount, fsync) go to worker threads, so that they never stop the loop."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

__all__ = ("mount_points_below", "resolved_by_parent", "run_abandonable", "run_blocking")

Result = TypeVar("Result")


async def run_blocking(function: Callable[[], Result]) -> Result:
    """The function's result, from a worker thread. Waits for it even when cancelled: it may hold the file system."""
    return await anyio.to_thread.run_sync(function)


async def run_abandonable(function: Callable[[], Result]) -> Result:
    """As ``run_blocking``, for a function that only reads and is bounded itself: a cancelled caller does not wait."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


def mount_points_below(path: Path) -> list[Path]:
    """The mount points at or below a directory of this mount namespace, deepest first.

    What is mounted there is not touched, also where it covers the directory itself: it may hang.

    Source: proc(5), mountinfo, fifth field; blanks and backslashes in it are octal escapes.
    """
    top = resolved_by_parent(path)
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = line.split(" ", 5)[4]
            if "\\" in point:
                point = os.fsdecode(os.fsencode(point).decode("unicode_escape").encode("latin-1"))
            if point == top or point.startswith(top.rstrip("/") + "/"):
                found.append(Path(point))
    return sorted(found, key=lambda point: len(point.parts), reverse=True)


def resolved_by_parent(path: Path) -> str:
    """The path with the symbolic links above its last component resolved, without touching what is there itself.

    A file system that is mounted there may hang, and a link there may have been put by somebody else.
    """
    return os.path.join(os.path.realpath(path.parent), path.name)

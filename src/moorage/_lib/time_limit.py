"""A time limit for calls that may never return: on paths that a plugin or a foreign server controls (FUSE, NFS).

The kernel has no time limit for a system call on such a path, so it runs in a thread of its own, which is abandoned if
it takes too long. The thread is a daemon: it does not keep this process from exiting.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from moorage import errors

__all__ = ("MOST_ABANDONED", "call_bounded")

Result = TypeVar("Result")

MOST_ABANDONED = 16
"""Threads of one owner that may be stuck at a time; further calls fail at once, so that threads never pile up."""

_abandoned: Counter[str] = Counter()
_lock = threading.Lock()


def call_bounded(function: Callable[[], Result], within: float, doing: str, *, owner: str = "") -> Result:
    """The function's result, or Unavailable after ``within`` seconds (blocking: call it in a worker thread).

    The function continues in its thread then, and its result is discarded: it must not change what a later call relies
    on. ``doing`` completes "cannot ..." in the error; ``owner`` is the id of the plugin that would cause a hang.

    Raises: what the function raises; Unavailable if it does not return in time, or if too many earlier calls have not.
    """
    with _lock:
        if _abandoned[owner] >= MOST_ABANDONED:
            raise errors.Unavailable(f"cannot {doing}: {MOST_ABANDONED} earlier attempts have not returned yet")
        _abandoned[owner] += 1
    results: list[Result] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the calling thread
            failures.append(error)
        finally:
            with _lock:
                _abandoned[owner] -= 1
                if not _abandoned[owner]:
                    del _abandoned[owner]

    thread = threading.Thread(target=work, name=f"moorage: {doing}"[:60], daemon=True)
    thread.start()
    thread.join(within)
    if failures:
        raise failures[0]
    if results:
        return results[0]
    raise errors.Unavailable(f"cannot {doing}: no answer within {within:g} s")

"""Calls that may never return: whatever touches a path that a plugin or a foreign server controls (FUSE, NFS).

No system call on such a path can be given a time limit, so it runs in a thread of its own, which is abandoned where it
takes too long. The thread is a daemon: it does not keep this process from exiting.
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

    The function goes on in its thread then, and its result is dropped: it must not change anything that a later call
    relies on. ``doing`` completes "cannot ..." in the error; ``owner`` is whose fault a hang would be, a plugin's id.

    Raises: what the function raises; Unavailable.
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

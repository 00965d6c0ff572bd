"""How a shim takes the output of its task: as much as has come, without interrupting the process for each write.

The shim copies from a pipe into our FIFO whatever is there (at most 4 KiB at once, containerd 1.6). It is woken by each
write into an empty pipe, and the kernel lets whoever wakes up go before whoever runs. So a process that writes line by
line was stopped after each line or few, and both spent most of their time with that; see docs/figures.md.
"""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ("ease_copying",)


def ease_copying(pid: int) -> bool:
    """Whether the shim of this process lets it go on while it writes; nothing depends on it, so it never fails.

    ``pid`` is a task's process, best before its start: it has been forked, so it inherits nothing from its shim any
    more. What is added to a running task later does. A thread that is not scheduled as usual is left as it is.
    """
    try:
        shim = _parent(pid)
        if not _is_shim(shim):
            return False
        _let_others_go_on(shim)
    except (OSError, ValueError):
        return False
    return True


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_shim(pid: int) -> bool:
    word = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    return os.path.basename(word).startswith(b"containerd-shim")


def _let_others_go_on(pid: int) -> None:
    """All its threads get as much time as before, but wait for their turn when they wake up. Source: sched(7)."""
    seen: set[str] = set()
    while new := set(os.listdir(f"/proc/{pid}/task")) - seen:  # a thread inherits from the one that starts it
        seen |= new
        for thread in map(int, new):
            with suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                    os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))

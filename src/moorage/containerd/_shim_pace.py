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

    ``pid`` is a task's process before its start. It is scheduled as usual also where its shim, of several tasks, was
    told this before; what is added to a running task later is not. A shim's thread that is not scheduled as usual is
    left as it is.
    """
    try:
        shim = _parent(pid)
        if not _is_shim(shim):
            return False
        _reschedule(shim, os.SCHED_OTHER, os.SCHED_BATCH)
        _reschedule(pid, os.SCHED_BATCH, os.SCHED_OTHER)
    except (OSError, ValueError):
        return False
    return True


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_shim(pid: int) -> bool:
    word = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    return os.path.basename(word).startswith(b"containerd-shim")


def _reschedule(pid: int, before: int, after: int) -> None:
    """Its threads of one policy get the other. Batch: as much time, but in turn when they wake up. Source: sched(7)."""
    seen: set[str] = set()
    while new := set(os.listdir(f"/proc/{pid}/task")) - seen:  # a thread inherits from the one that starts it
        seen |= new
        for thread in map(int, new):
            with suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) == before:
                    os.sched_setscheduler(thread, after, os.sched_param(0))

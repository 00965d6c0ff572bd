"""How a task's first process is scheduled: by a nice value that is defined, not by whatever started containerd.

Source: OCI runtime specification 1.1, ``process.scheduler``. runc before 1.2 ignores it, so it is set here, on the
process that becomes the container's.
"""

import os
from collections.abc import Mapping
from contextlib import suppress

from moorage.containerd._shim_pace import ease_copying
from moorage.containerd.types import Spec

__all__ = ("find_nice_value", "schedule")


def find_nice_value(spec: Spec) -> int | None:
    """What a spec says; None where it says nothing."""
    process = spec.get("process")
    scheduler = process.get("scheduler") if isinstance(process, Mapping) else None
    nice = scheduler.get("nice") if isinstance(scheduler, Mapping) else None
    return nice if isinstance(nice, int) else None


def schedule(pid: int, nice: int | None) -> None:
    """Set the nice value of a task's process before its start, and how its shim copies. Best effort: never fails."""
    ease_copying(pid)
    if nice is None:
        return
    seen: set[str] = set()
    with suppress(OSError):
        while new := set(os.listdir(f"/proc/{pid}/task")) - seen:  # a thread inherits from the one that starts it
            seen |= new
            for thread in map(int, new):
                with suppress(ProcessLookupError):
                    os.setpriority(os.PRIO_PROCESS, thread, nice)

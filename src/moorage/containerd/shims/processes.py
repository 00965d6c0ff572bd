"""Finding shims, and how they and the processes in them are scheduled.

Nice value and OOM score adjustment are defined, not inherited from what started containerd. runc before 1.2 ignores the
first, and crun before 1.9 ignores a second of 0, so they are set here, on the process that becomes the container's. The
shim copies from a pipe into our FIFO what is in the pipe (at most 4 KiB at once, containerd 1.6). It is woken by each
write into an empty pipe, and the kernel lets a thread that wakes up preempt the one that runs. So a process that writes
line by line was stopped after each line or few, and both spent most of their time with that (docs/figures.md).

Source: OCI runtime specification 1.1, ``process.scheduler``.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise

from msgspec import Struct

from moorage.containerd.types import Spec
from moorage.host import proc
from moorage.host.processes import change_scheduling_policy, is_trusted, set_nice_value
from moorage.systemd.scopes import scope_group

__all__ = (
    "Priorities",
    "cgroups_path",
    "control_group",
    "deprioritize_shim",
    "find_priorities",
    "find_shims",
    "has_pid_namespace",
    "is_first_process",
    "is_shim",
    "schedule",
    "shim_of",
)

_PROGRAMS = ("containerd-shim",)


def is_shim(pid: int) -> bool:
    """Whether this process is a shim of root's now: the number of one that exited may be another program's."""
    return is_trusted(pid, _PROGRAMS)


def shim_of(pid: int) -> int | None:
    """The shim of a container's first process; None for a process that is gone, or is not a shim's child."""
    stat = proc.process_stat(pid)
    return stat.parent if stat is not None and is_shim(stat.parent) else None


def is_first_process(pid: int, namespace: str, address: str, group: str) -> bool:
    """Whether a process is the first one of a container in this control group, of this namespace of this containerd.

    It is process 1 of a pid namespace, and its parent a shim of root's that says so. The pid may have been reused, or
    be of a pid namespace other than that of the calling process. False where that cannot be known, as for a container
    without a pid namespace, and for a process that has exited.
    """
    shim = shim_of(pid)
    if shim is None or proc.has_exited(pid) or not proc.is_process_1_of_a_namespace(pid):
        return False
    options = list(pairwise(proc.command_line(shim)))
    if ("-namespace", namespace) not in options or ("-address", address) not in options:
        return False
    return any(path == group or path.endswith(group) for path in proc.cgroup_memberships(pid).values())


def control_group(spec: Spec) -> str:
    """The path of the control group that a spec names, from the root of a hierarchy; empty where it names none."""
    path = cgroups_path(spec)
    group = scope_group(path) if ":" in path else path
    return group if group.startswith("/") and group.strip("/") else ""


def has_pid_namespace(spec: Spec) -> bool:
    """Whether a spec requests a new pid namespace: the kernel kills all processes in it with the first one."""
    linux = spec.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, Mapping) else None
    return any(
        isinstance(each, Mapping) and each.get("type") == "pid" and not each.get("path") for each in namespaces or ()
    )


def cgroups_path(spec: Spec) -> str:
    """What a spec names as the control group, a path or, with systemd, ``slice:prefix:name``; empty for nothing."""
    linux = spec.get("linux")
    path = linux.get("cgroupsPath") if isinstance(linux, Mapping) else None
    return path if isinstance(path, str) else ""


def find_shims(namespace: str, id: str, address: str | None = None) -> list[tuple[int, list[str]]]:
    """The shims of a container, each with the programs of its child processes; ``address`` names their containerd."""
    expected = [("-namespace", namespace), ("-id", id)] + ([("-address", address)] if address is not None else [])
    found = []
    for pid in proc.pids():
        options = list(pairwise(proc.command_line(pid)))
        # its arguments name the container; only the kernel knows that it is a shim of root's
        if all(option in options for option in expected) and is_shim(pid):
            programs = (_program(child) for child in proc.child_pids(pid))
            found.append((pid, [program for program in programs if program]))
    return found


def _program(pid: int) -> str:
    """The name by which it was called, since runc runs itself from a descriptor and has that number as name meanwhile.

    Empty for one that has exited.
    """
    words = proc.command_line(pid) or [""]
    return os.path.basename(words[0]) or proc.command_name(pid)  # a zombie has only its name


class Priorities(Struct, frozen=True):
    """What a spec says of the first process; None where it says nothing."""

    nice: int | None = None
    oom_score: int | None = None


def find_priorities(spec: Spec) -> Priorities:
    """The nice value and the OOM score adjustment of a spec."""
    process = spec.get("process")
    if not isinstance(process, Mapping):
        return Priorities()
    scheduler, oom_score = process.get("scheduler"), process.get("oomScoreAdj")
    nice = scheduler.get("nice") if isinstance(scheduler, Mapping) else None
    return Priorities(nice if isinstance(nice, int) else None, oom_score if isinstance(oom_score, int) else None)


def schedule(pid: int, priorities: Priorities) -> None:
    """Set the priorities of a task's process before its start, and deprioritize its shim. Best effort: never fails."""
    deprioritize_shim(pid)
    if priorities.nice is not None:
        with suppress(OSError):
            set_nice_value(pid, priorities.nice)
    if priorities.oom_score is not None:
        proc.set_oom_score_adjustment(pid, priorities.oom_score)


def deprioritize_shim(pid: int) -> bool:
    """Schedule the shim of a process as SCHED_BATCH, so that copying output does not preempt the plugin.

    Best effort; True if it succeeded. ``pid`` is a task's process before its start; it is scheduled as usual also where
    its shim, of several tasks, was deprioritized before. Processes that are added to a running task later are not.
    Threads of the shim that are not scheduled as usual are not changed.
    """
    stat = proc.process_stat(pid)
    if stat is None or not os.path.basename((proc.command_line(stat.parent) or [""])[0]).startswith("containerd-shim"):
        return False
    try:
        change_scheduling_policy(stat.parent, os.SCHED_OTHER, os.SCHED_BATCH)
        change_scheduling_policy(pid, os.SCHED_BATCH, os.SCHED_OTHER)
    except OSError:
        return False
    return True

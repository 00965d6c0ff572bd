"""The decisions of one run: what happened comes in, what to do next goes out. Pure: no I/O, no clock, no tasks.

The one idea: nothing that is heard of an exit is believed, everything is asked. An event may be late, doubled, of an
earlier run or of another process; a pidfd may watch a pid that was given away; a lost connection says nothing. Each of
them only leads to the question "what is its status?", and only containerd's answer ends a run. So orders, losses and
doublings of hints cannot do harm, and a missed hint is made up by the next comparison.

    STARTING ──Started──▶ RUNNING ──Answered(stopped or gone)──▶ ENDING ──Removed──▶ OVER (delivered, once)
        └────GaveUp────▶ OVER (never ran, nothing delivered)
"""

from datetime import datetime
from enum import Enum
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from moorage.containerd.types import Status

__all__ = (
    "KILLED",
    "Answered",
    "Died",
    "Do",
    "ExitSeen",
    "GaveUp",
    "Happening",
    "Look",
    "NotRemoved",
    "Phase",
    "Removed",
    "Run",
    "Started",
    "Unanswered",
    "may_replace",
    "step",
)

KILLED = 137
"""The exit code of a process that SIGKILL ended, as runtimes give it."""


class Phase(Enum):
    """Where a run is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    OVER = "over"


class Do(Enum):
    """What the machine wants done."""

    NOTHING = "nothing"
    ASK = "ask containerd for the status"
    ASK_LATER = "ask again after a pause"
    FINISH = "drain, read the OOM counter, delete task, record and directory"
    FINISH_LATER = "try that again after a pause"
    DELIVER = "call the exit handler"


class Started(Struct, frozen=True):
    """The task runs, or ran at least, with this pid."""

    pid: int | None


class GaveUp(Struct, frozen=True):
    """The start failed or was undone, or there was nothing alive to restore."""


class ExitSeen(Struct, frozen=True):
    """An event says that a process of this container id ended: perhaps an earlier run's, perhaps an added one."""

    process_id: str
    pid: int
    code: int | None = None
    exited_at: datetime | None = None


class Died(Struct, frozen=True):
    """The kernel says that the pid has ended."""


class Look(Struct, frozen=True):
    """Something may have been missed: events were lost, or it is simply time to compare."""


class Answered(Struct, frozen=True):
    """Containerd's answer; None is "no such task"."""

    status: Status | None


class Unanswered(Struct, frozen=True):
    """Containerd could not be asked. This is no answer, least of all an exit."""


class Removed(Struct, frozen=True):
    """Everything of the run is removed; code and time as the deletion gave them, None where it could not."""

    code: int | None = None
    exited_at: datetime | None = None
    oom: bool = False


class NotRemoved(Struct, frozen=True):
    """Containerd went away, or a process does not end; the run cannot be closed yet."""


Happening: TypeAlias = Started | GaveUp | ExitSeen | Died | Look | Answered | Unanswered | Removed | NotRemoved


class Run(Struct, frozen=True):
    """What is known of one run."""

    id: str
    phase: Phase = Phase.STARTING
    pid: int | None = None
    early: tuple[int, ...] = ()
    """Pids whose exits were heard before its own pid was known."""

    look_first: bool = False
    """A comparison was asked for while it was starting."""

    dead: bool = False
    """The kernel or a matching event says that it ended; containerd has yet to say so."""

    code: int | None = None
    exited_at: datetime | None = None
    oom: bool = False


def step(run: Run, happening: Happening) -> tuple[Run, Do]:
    """The run after this happening, and what to do. What does not fit the phase changes nothing."""
    match run.phase:
        case Phase.STARTING:
            return _starting(run, happening)
        case Phase.RUNNING:
            return _running(run, happening)
        case Phase.ENDING:
            return _ending(run, happening)
        case Phase.OVER:
            return run, Do.NOTHING


def _starting(run: Run, happening: Happening) -> tuple[Run, Do]:
    match happening:
        case ExitSeen() if happening.process_id == run.id:
            return replace(run, early=(*run.early, happening.pid)), Do.NOTHING
        case Look() | Died():
            return replace(run, look_first=True), Do.NOTHING
        case GaveUp():
            return replace(run, phase=Phase.OVER, early=()), Do.NOTHING
        case Started(pid):
            dead = pid in run.early
            started = replace(run, phase=Phase.RUNNING, pid=pid, early=(), dead=dead)
            return started, Do.ASK if dead or run.look_first else Do.NOTHING
        case _:
            return run, Do.NOTHING


def _running(run: Run, happening: Happening) -> tuple[Run, Do]:
    match happening:
        case ExitSeen() if _is_own(run, happening):
            return replace(run, dead=True), Do.ASK
        case Died():
            return replace(run, dead=True), Do.ASK
        case Look():
            return run, Do.ASK
        case Answered(Status.STOPPED | None):
            return replace(run, phase=Phase.ENDING), Do.FINISH
        case Answered() | Unanswered():
            return run, Do.ASK_LATER if run.dead else Do.NOTHING
        case _:
            return run, Do.NOTHING


def _ending(run: Run, happening: Happening) -> tuple[Run, Do]:
    match happening:
        case Look():
            return run, Do.FINISH
        case NotRemoved():
            return run, Do.FINISH_LATER
        case Removed(code, exited_at, oom):
            # A killed child counts in the same control group; the first process died of it only if it was killed too.
            oom = oom and code == KILLED
            return replace(run, phase=Phase.OVER, code=code, exited_at=exited_at, oom=oom), Do.DELIVER
        case _:
            return run, Do.NOTHING


def _is_own(run: Run, seen: ExitSeen) -> bool:
    """The first process's exit and this run's: an added process has an id of its own, an earlier run another pid."""
    return seen.process_id == run.id and seen.pid == run.pid


def may_replace(status: Status | None) -> bool:
    """Whether what is in the way of a new record may be deleted, given its status (None: no task).

    A task that runs, is paused, or whose shim does not say, is never touched.
    """
    return status in (None, Status.CREATED, Status.STOPPED)

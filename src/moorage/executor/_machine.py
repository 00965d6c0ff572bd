"""The state machine of one run: events in, actions out. Pure: no I/O, no clock, no tasks.

Reports of an exit are hints, never facts. An event may be late, duplicated, of an earlier run or of another process; a
pidfd may refer to a reused pid; a lost connection proves nothing. A hint only triggers a status query, and only
containerd's answer ends a run. So reordered, lost and duplicated hints do no harm, and the next periodic check makes up
for a missed one.

    STARTING ──Started──▶ RUNNING ──StatusKnown(stopped or not found)──▶ EXITED ──Removed──▶ REMOVED (delivered, once)
        └────StartFailed────▶ REMOVED (not started, nothing delivered)

A container may be prepared before: STARTING ──Prepared──▶ PREPARED ──StartRequested──▶ STARTING. A prepared one whose
process exits was never started, so nothing is delivered: PREPARED ──StatusKnown(stopped or not found)──▶ REMOVED.

With ``early``, an exit that is known while its task still exists is delivered in EXITED, before the removal.
"""

from datetime import datetime
from enum import Enum
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from moorage.containerd.types import Status

__all__ = (
    "SIGKILL_EXIT_CODE",
    "Action",
    "CheckRequested",
    "Delivered",
    "ExitKnown",
    "ExitReported",
    "ExitUnknown",
    "Phase",
    "Prepared",
    "ProcessExited",
    "RemovalFailed",
    "Removed",
    "RunEvent",
    "RunState",
    "StartFailed",
    "StartRequested",
    "Started",
    "StatusKnown",
    "StatusUnavailable",
    "is_replaceable",
    "step",
)

SIGKILL_EXIT_CODE = 137
"""The exit code that runtimes report for a process killed by SIGKILL."""


class Phase(Enum):
    """The phase of a run."""

    STARTING = "starting"
    PREPARED = "prepared"
    RUNNING = "running"
    EXITED = "exited"
    REMOVED = "removed"


class Action(Enum):
    """What the caller of the machine does next."""

    NOTHING = "nothing"
    QUERY = "query the status from containerd"
    QUERY_LATER = "query again after a pause"
    REMOVE = "drain, read the OOM counter, delete task, record and directory"
    REMOVE_LATER = "retry the removal after a pause"
    DELIVER = "call the exit handler"
    FIND_EXIT = "drain, read the OOM counter, find the exit while the task exists"
    DISCARD = "remove everything of a container that was prepared and never started"
    RELEASE = "the exit was delivered before, and now everything is removed"


class Started(Struct, frozen=True):
    """The task was started with this pid; it may have exited since."""

    pid: int | None


class Prepared(Struct, frozen=True):
    """The task exists and is not started; its process, with this pid, may have exited since."""

    pid: int


class StartRequested(Struct, frozen=True):
    """A prepared task is about to be started."""


class StartFailed(Struct, frozen=True):
    """The start failed or was undone, or there was no running task to restore."""


class ExitReported(Struct, frozen=True):
    """An event reports the exit of a process of this container id: possibly of an earlier run, or of an exec."""

    process_id: str
    pid: int
    code: int | None = None
    exited_at: datetime | None = None


class ProcessExited(Struct, frozen=True):
    """The kernel reports the exit of the pid."""


class CheckRequested(Struct, frozen=True):
    """Something may have been missed: events were lost, or it is simply time to on_gap."""


class StatusKnown(Struct, frozen=True):
    """Containerd's answer; None means that the task does not exist."""

    status: Status | None


class StatusUnavailable(Struct, frozen=True):
    """Containerd could not be queried. This says nothing about the process."""


class ExitKnown(Struct, frozen=True):
    """The output of a stopped task is drained, and this is how it exited. It still exists."""

    code: int | None = None
    exited_at: datetime | None = None
    oom: bool = False


class ExitUnknown(Struct, frozen=True):
    """Only the removal can say how the task exited, or whether all of its processes have."""


class Delivered(Struct, frozen=True):
    """The exit handler was called before the removal."""


class Removed(Struct, frozen=True):
    """The run's resources are removed; exit code and time as the deletion returned them, None if unknown."""

    code: int | None = None
    exited_at: datetime | None = None
    oom: bool = False


class RemovalFailed(Struct, frozen=True):
    """Containerd is unavailable, or a process does not exit: the removal must be retried."""


RunEvent: TypeAlias = (
    Started
    | Prepared
    | StartRequested
    | StartFailed
    | ExitReported
    | ProcessExited
    | CheckRequested
    | StatusKnown
    | StatusUnavailable
    | ExitKnown
    | ExitUnknown
    | Delivered
    | Removed
    | RemovalFailed
)


class RunState(Struct, frozen=True):
    """The state of one run."""

    id: str
    phase: Phase = Phase.STARTING
    pid: int | None = None
    early: bool = False
    """Whether the exit is delivered as soon as it is known, before the removal."""

    is_delivered: bool = False
    """The exit is delivered; what follows is only the removal."""

    early_pids: tuple[int, ...] = ()
    """Pids whose exits were reported before the run's own pid was known."""

    is_check_pending: bool = False
    """A check was requested while the run was starting."""

    dead: bool = False
    """The kernel or a matching event has reported the exit; containerd has not confirmed it yet."""

    code: int | None = None
    exited_at: datetime | None = None
    oom: bool = False


def step(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
    """The run after this event, and what to do. Events that do not apply to the phase are ignored."""
    match run.phase:
        case Phase.STARTING:
            return _starting(run, event)
        case Phase.PREPARED:
            return _prepared(run, event)
        case Phase.RUNNING:
            return _running(run, event)
        case Phase.EXITED:
            return _exited(run, event)
        case Phase.REMOVED:
            return run, Action.NOTHING


def _starting(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
    match event:
        case ExitReported() if event.process_id == run.id:
            return replace(run, early_pids=(*run.early_pids, event.pid)), Action.NOTHING
        case CheckRequested() | ProcessExited():
            return replace(run, is_check_pending=True), Action.NOTHING
        case StartFailed():
            return replace(run, phase=Phase.REMOVED, early_pids=()), Action.NOTHING
        case Prepared(pid):
            dead = pid in run.early_pids
            prepared = replace(run, phase=Phase.PREPARED, pid=pid, early_pids=(), dead=dead, is_check_pending=False)
            return prepared, Action.QUERY if dead or run.is_check_pending else Action.NOTHING
        case Started(pid):
            dead = pid in run.early_pids
            started = replace(run, phase=Phase.RUNNING, pid=pid, early_pids=(), dead=dead)
            return started, Action.QUERY if dead or run.is_check_pending else Action.NOTHING
        case _:
            return run, Action.NOTHING


def _prepared(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
    match event:
        case StartRequested():
            # A reported exit is not forgotten: it is queried when the task is started.
            return replace(run, phase=Phase.STARTING, dead=False, is_check_pending=run.dead), Action.NOTHING
        case StartFailed():
            return replace(run, phase=Phase.REMOVED), Action.NOTHING
        case StatusKnown(Status.STOPPED | None):
            return replace(run, phase=Phase.REMOVED), Action.DISCARD
        case ExitReported() if _is_own(run, event):
            return replace(run, dead=True), Action.QUERY
        case ProcessExited():
            return replace(run, dead=True), Action.QUERY
        case CheckRequested():
            return run, Action.QUERY
        case StatusKnown() | StatusUnavailable():
            return run, Action.QUERY_LATER if run.dead else Action.NOTHING
        case _:
            return run, Action.NOTHING


def _running(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
    match event:
        case ExitReported() if _is_own(run, event):
            return replace(run, dead=True), Action.QUERY
        case ProcessExited():
            return replace(run, dead=True), Action.QUERY
        case CheckRequested():
            return run, Action.QUERY
        case StatusKnown(Status.STOPPED) if run.early:
            return replace(run, phase=Phase.EXITED), Action.FIND_EXIT
        case StatusKnown(Status.STOPPED | None):
            return replace(run, phase=Phase.EXITED), Action.REMOVE
        case StatusKnown() | StatusUnavailable():
            return run, Action.QUERY_LATER if run.dead else Action.NOTHING
        case _:
            return run, Action.NOTHING


def _exited(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
    match event:
        case CheckRequested() | ExitUnknown() | Delivered():
            return run, Action.REMOVE
        case RemovalFailed():
            return run, Action.REMOVE_LATER
        case ExitKnown(code, exited_at, oom) if not run.is_delivered:
            return replace(_with_exit(run, code, exited_at, oom), is_delivered=True), Action.DELIVER
        case Removed() if run.is_delivered:
            return replace(run, phase=Phase.REMOVED), Action.RELEASE
        case Removed(code, exited_at, oom):
            return replace(_with_exit(run, code, exited_at, oom), phase=Phase.REMOVED), Action.DELIVER
        case _:
            return run, Action.NOTHING


def _with_exit(run: RunState, code: int | None, exited_at: datetime | None, oom: bool) -> RunState:
    # A killed child counts in the same control group; init was OOM-killed only if SIGKILL ended it too.
    return replace(run, code=code, exited_at=exited_at, oom=oom and code == SIGKILL_EXIT_CODE)


def _is_own(run: RunState, seen: ExitReported) -> bool:
    """Whether this is the exit of init of this run: an exec has an id of its own, an earlier run another pid."""
    return seen.process_id == run.id and seen.pid == run.pid


def is_replaceable(status: Status | None) -> bool:
    """Whether an existing container may be deleted to make room, given its status (None: no task).

    A task that is running, paused, or whose status is unknown is never deleted.
    """
    return status in (None, Status.CREATED, Status.STOPPED)

"""Which state a plugin is in, what may happen next, and how long to wait before it is started again. Pure.

The desired state (enabled or not) is apart from the actual state: only the user changes the former, everything else
changes the latter. The diagram in docs/reference/lifecycle.md is made from ``TRANSITIONS`` by ``scripts/diagrams``.
"""

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors

__all__ = (
    "BACK_OFF_FIRST",
    "BACK_OFF_LIMIT",
    "DEFAULT_POLICY",
    "STANDBY_AFTER",
    "STEADY_AFTER",
    "TRANSITIONS",
    "Event",
    "ExitAction",
    "LifecycleState",
    "RestartPolicy",
    "Restarts",
    "Restoration",
    "State",
    "after_exit",
    "back_off",
    "exit_action",
    "move",
    "restoration",
    "standby_delay",
)

BACK_OFF_FIRST = 0.1
"""Seconds before the second restart in a row; the first one comes at once, each later one waits twice as long."""

BACK_OFF_LIMIT = 60.0
"""Longest pause before a restart, in seconds."""

STANDBY_AFTER = 1.0
"""Seconds ready after which the standby of the next run is made: what a plugin does first is not disturbed."""

STEADY_AFTER = 10.0
"""Seconds ready after which an exit counts as the first of its row again."""


class State(Enum):
    """The actual state of a plugin, whatever the desired state is."""

    DISABLED = "disabled"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"
    REMOVING = "removing"


class Event(Enum):
    """What happens to a plugin."""

    START = "start"
    """It is requested: the user's enable or restart, the engine's own start, or the end of a pause."""
    ACCEPTED = "accepted"
    """Its socket accepts a connection."""
    ADOPTED = "adopted"
    """An earlier engine started it, and it lives."""
    REFUSED = "refused"
    """The start that the user requested failed."""
    EXITED = "exited"
    """It exited, or an automatic start failed, and it is to be started again."""
    GAVE_UP = "gave up"
    """It exited, or could not be started, and its policy allows no further attempt."""
    STOP = "stop"
    """It is to end: the user's disable, restart or remove, or the end of the engine."""
    STOPPED = "stopped"
    """Nothing of its run is left."""
    REMOVE = "remove"
    """The user's remove."""


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.DISABLED: {
        Event.START: State.STARTING,
        Event.ADOPTED: State.STARTING,
        Event.STOP: State.STOPPING,
        Event.REMOVE: State.REMOVING,
    },
    State.STARTING: {
        Event.ACCEPTED: State.READY,
        Event.REFUSED: State.STOPPING,
        Event.EXITED: State.RESTARTING,
        Event.GAVE_UP: State.FAILED,
        Event.STOP: State.STOPPING,
    },
    State.READY: {Event.EXITED: State.RESTARTING, Event.GAVE_UP: State.FAILED, Event.STOP: State.STOPPING},
    State.RESTARTING: {Event.START: State.STARTING, Event.STOP: State.STOPPING},
    State.FAILED: {Event.START: State.STARTING, Event.STOP: State.STOPPING},
    State.STOPPING: {Event.STOPPED: State.DISABLED, Event.STOP: State.STOPPING},
    State.REMOVING: {Event.REMOVE: State.REMOVING},
}
"""From a state, by an event, to a state. What is not here cannot happen."""


class Restarts(Enum):
    """When a plugin that exited is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class RestartPolicy(Struct, frozen=True):
    """What to do when a plugin exits by itself, and how long it may take to exit when it is stopped."""

    restarts: Restarts = Restarts.ALWAYS
    most: int | None = None
    """Most restarts in a row; None for no limit."""
    stop_timeout: float | None = None
    """Seconds from TERM to KILL; None for the engine's default."""
    log: str = "file"
    """Where its lines go besides its files: journald, syslog, or file for nowhere else."""
    standby: bool = False
    """Whether the container of its next run is created while the present one runs, so that a restart is quick."""

    def allows_restart(self, *, is_failure: bool, failures: int) -> bool:
        """Whether to start it once more, after this many ends in a row (the present one counted)."""
        if self.restarts is Restarts.NEVER or (self.restarts is Restarts.ON_FAILURE and not is_failure):
            return False
        return self.most is None or failures <= self.most


DEFAULT_POLICY = RestartPolicy()


class LifecycleState(Struct, frozen=True):
    """The state, and what the next pause depends on."""

    state: State = State.DISABLED
    failures: int = 0
    """Ends in a row; one that was ready for ``STEADY_AFTER`` seconds begins a new row."""


def move(life: LifecycleState, event: Event) -> LifecycleState:
    """The state after an event. Raises: Conflict for one that cannot happen in this state."""
    after = TRANSITIONS[life.state].get(event)
    if after is None:
        raise errors.Conflict(f"cannot {event.value} a plugin that is {life.state.value}")
    failures = 0 if after in (State.DISABLED, State.STOPPING) else life.failures
    return replace(life, state=after, failures=failures)


def after_exit(
    life: LifecycleState, policy: RestartPolicy, *, is_failure: bool, ready_seconds: float
) -> LifecycleState:
    """The state of a plugin that exited by itself, or that could not be started, after this long ready."""
    failures = 1 if ready_seconds >= STEADY_AFTER else life.failures + 1
    another = policy.allows_restart(is_failure=is_failure, failures=failures)
    return replace(move(life, Event.EXITED if another else Event.GAVE_UP), failures=failures)


def back_off(failures: int) -> float:
    """Seconds until the next start after this many ends in a row, before jitter."""
    if failures <= 1:
        return 0.0
    return min(BACK_OFF_LIMIT, BACK_OFF_FIRST * 2.0 ** min(failures - 2, 32))


def standby_delay(failures: int) -> float:
    """Seconds ready until a standby is made, after this many ends in a row: a crash loop makes none."""
    return STANDBY_AFTER if failures <= 1 else STEADY_AFTER


class ExitAction(Enum):
    """What the exit of a plugin's present run leads to."""

    NONE = "a job that starts, stops or removes it has seen the exit itself"
    FINISH_STOP = "its stop failed because it did not exit, and now it has"
    RESTART = "it exited by itself: start it again, or give up, as its policy says"


def exit_action(state: State) -> ExitAction:
    """What to do when the present run exits in this state, with no job under way."""
    if state is State.STOPPING:
        return ExitAction.FINISH_STOP
    return ExitAction.RESTART if state is State.READY else ExitAction.NONE


class Restoration(Enum):
    """What an engine does with a plugin when it starts."""

    FINISH_REMOVAL = "a removal was begun"
    ROLL_BACK = "an upgrade was trying out a version, and the one before it is to be in use again"
    TAKE_OVER = "it is enabled, and the container of its last run exists"
    START = "it is enabled, and nothing of it runs"
    CLEAN_UP = "it is disabled, or nothing is to be started: remove what was made for its last run"


def restoration(
    *, is_removing: bool, is_on_trial: bool, is_enabled: bool, has_container: bool, start: bool
) -> Restoration:
    """What to do with a plugin whose record and container are like this; ``start``: what is enabled is started."""
    if is_removing:
        return Restoration.FINISH_REMOVAL
    if is_on_trial:
        return Restoration.ROLL_BACK
    if is_enabled and has_container:
        return Restoration.TAKE_OVER
    return Restoration.START if is_enabled and start else Restoration.CLEAN_UP

"""Which state a plugin is in, what may happen next, and how long to wait before it is started again. Pure.

The user's wish (enabled or not) is kept apart from the state: only the user changes the wish, everything else changes
the state. The diagram in docs/reference/lifecycle.md is made from ``TRANSITIONS`` by ``scripts/diagrams``.
"""

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors

__all__ = (
    "BACK_OFF_FIRST",
    "BACK_OFF_LIMIT",
    "DEFAULT_POLICY",
    "STEADY_AFTER",
    "TRANSITIONS",
    "Event",
    "Life",
    "RestartPolicy",
    "Restarts",
    "State",
    "after_end",
    "back_off",
    "move",
)

BACK_OFF_FIRST = 0.1
"""Seconds before the second restart in a row; the first one comes at once, each later one waits twice as long."""

BACK_OFF_LIMIT = 60.0
"""Longest pause before a restart, in seconds."""

STEADY_AFTER = 10.0
"""Seconds ready after which an end counts as the first of its row again."""


class State(Enum):
    """What a plugin really does, whatever the user wants."""

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
    """Somebody asks for it: the user's enable or restart, the engine's own start, or the end of a pause."""
    ACCEPTED = "accepted"
    """Its socket accepts a connection."""
    ADOPTED = "adopted"
    """An earlier engine started it, and it lives."""
    REFUSED = "refused"
    """The start that the user asked for failed."""
    ENDED = "ended"
    """It ended, or a start that nobody waits for failed, and it is to be started again."""
    GAVE_UP = "gave up"
    """It ended, or could not be started, and its policy wants no further try."""
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
        Event.ENDED: State.RESTARTING,
        Event.GAVE_UP: State.FAILED,
        Event.STOP: State.STOPPING,
    },
    State.READY: {Event.ENDED: State.RESTARTING, Event.GAVE_UP: State.FAILED, Event.STOP: State.STOPPING},
    State.RESTARTING: {Event.START: State.STARTING, Event.STOP: State.STOPPING},
    State.FAILED: {Event.START: State.STARTING, Event.STOP: State.STOPPING},
    State.STOPPING: {Event.STOPPED: State.DISABLED, Event.STOP: State.STOPPING},
    State.REMOVING: {Event.REMOVE: State.REMOVING},
}
"""From a state, by an event, to a state. What is not here cannot happen."""


class Restarts(Enum):
    """When a plugin that ended is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class RestartPolicy(Struct, frozen=True):
    """What to do when a plugin ends by itself, and how long it is given to end when it is told to."""

    restarts: Restarts = Restarts.ALWAYS
    most: int | None = None
    """Most restarts in a row; None for no limit."""
    stop_timeout: float | None = None
    """Seconds from TERM to KILL; None for the engine's default."""

    def wants_another(self, *, is_failure: bool, failures: int) -> bool:
        """Whether to start it once more, after this many ends in a row (the present one counted)."""
        if self.restarts is Restarts.NEVER or (self.restarts is Restarts.ON_FAILURE and not is_failure):
            return False
        return self.most is None or failures <= self.most


DEFAULT_POLICY = RestartPolicy()


class Life(Struct, frozen=True):
    """The state, and what the next pause depends on."""

    state: State = State.DISABLED
    failures: int = 0
    """Ends in a row; one that was ready for ``STEADY_AFTER`` seconds begins a new row."""


def move(life: Life, event: Event) -> Life:
    """The life after an event. Raises: Conflict for one that cannot happen in this state."""
    after = TRANSITIONS[life.state].get(event)
    if after is None:
        raise errors.Conflict(f"cannot {event.value} a plugin that is {life.state.value}")
    failures = 0 if after in (State.DISABLED, State.STOPPING) else life.failures
    return replace(life, state=after, failures=failures)


def after_end(life: Life, policy: RestartPolicy, *, is_failure: bool, ready_seconds: float) -> Life:
    """The life of a plugin that ended by itself, or that could not be started, after this long ready."""
    failures = 1 if ready_seconds >= STEADY_AFTER else life.failures + 1
    another = policy.wants_another(is_failure=is_failure, failures=failures)
    return replace(move(life, Event.ENDED if another else Event.GAVE_UP), failures=failures)


def back_off(failures: int) -> float:
    """Seconds until the next start after this many ends in a row, before jitter."""
    if failures <= 1:
        return 0.0
    return min(BACK_OFF_LIMIT, BACK_OFF_FIRST * 2.0 ** min(failures - 2, 32))

"""What is to be sent to one plugin, or is sent: which job may go now, and when a job has waited long enough."""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Literal

from moorage.proxy.core import calls
from moorage.proxy.core.actions import Call
from moorage.proxy.core.answers import Answer
from moorage.proxy.core.calls import Arguments

__all__ = ("Job", "Jobs", "Purpose", "Stage")

Purpose = Literal["call", "replay", "undo"]
"""A consumer's call; what is said again to a new run; the Unmount of a mount that no consumer received."""


class Stage(Enum):
    """How far a job is."""

    WAITING = "waiting"
    """For the plugin, a slot, or another job of the same mount."""
    FORWARDED = "forwarded"
    """The plugin works on it."""
    SETTLING = "settling"
    """Its connection broke; whether the plugin has exited will be known in a moment."""
    CHECKING = "checking"
    """Answered; paths are compared, or mounts released."""


class Job:
    """One call, of a consumer or the proxy's own. Mutable: the core owns it."""

    call: int | None = None
    """The consumer's call; None once its consumer has left."""

    def __init__(
        self, number: int, path: str, body: bytes | None, arguments: Arguments, *, purpose: Purpose, deadline: float
    ) -> None:
        """``deadline`` is an instant of the monotonic clock, as all times here."""
        self.number = number
        self.path = path
        self.body = body
        self.arguments = arguments
        self.purpose: Purpose = purpose
        self.deadline = deadline
        self.consumer = ""
        self.stage = Stage.WAITING
        self.waits_until: float | None = None
        """Until the plugin must be ready; None while it waits for nothing but a slot."""
        self.not_before = 0.0
        """Of the next attempt to connect."""
        self.refusal = ""
        """Why the last attempt to connect failed."""
        self.attempts = 0
        """How often it was sent."""
        self.attempt = 0
        """Number of the present attempt or check, which events about it name."""
        self.run = -1
        """The run of the plugin that it was sent to."""
        self.known_run = -1
        """Of a StopLogging: the run that its log was started in; -1 if that is not known."""
        self.due: float | None = None
        """When the present stage is over at the latest; None for an endless answer."""
        self.has_started = False
        """Whether its answer passes through to the consumer already."""
        self.is_new = False
        """Of a Mount: whether the consumer did not have it before."""
        self.is_lost = False
        """Of a replay: whether the run that knew of it has exited."""
        self.answer: Answer | None = None
        """Of the plugin, while it is checked."""
        self.host_path = ""
        """Of the mount, while it is checked."""
        self.keys = self._keys()
        """Of two jobs with a key in common, the second one waits until the first is complete."""

    @property
    def mount(self) -> tuple[str, str]:
        """Volume and id."""
        return self.arguments.volume, self.arguments.id

    def _keys(self) -> frozenset[tuple[str, ...]]:
        if self.path in (calls.MOUNT, calls.UNMOUNT):
            own = ("mount", *self.mount)
            return frozenset((own,) if self.purpose == "call" else (own, ("replay", self.arguments.volume)))
        if self.path in (calls.START_LOGGING, calls.STOP_LOGGING):
            return frozenset((("log", self.arguments.file),))
        return frozenset((("metrics",),)) if self.path in (calls.START_METRICS, calls.STOP_METRICS) else frozenset()


class Jobs:
    """All jobs of one plugin."""

    def __init__(self) -> None:
        self.waiting: dict[int, Job] = {}
        """Those that wait, in their order; the proxy's own come first when one is chosen."""
        self.active: dict[int, Job] = {}
        """Those in a later stage."""
        self._by_call: dict[int, Job] = {}
        self._by_attempt: dict[int, Job] = {}
        self._locked: dict[tuple[str, ...], int] = {}
        self._numbers = 0
        self.slots = 0
        """How many are forwarded of those that count."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.active)

    def number(self) -> int:
        """A number that was not used before."""
        self._numbers += 1
        return self._numbers

    def add(self, job: Job, call: Call | None = None) -> None:
        """A new job, which waits."""
        self.waiting[job.number] = job
        if call is not None:
            job.call, job.consumer = call.id, call.consumer
            self._by_call[call.id] = job

    def of_call(self, call: int) -> Job | None:
        """The job of a consumer's call."""
        return self._by_call.get(call)

    def of_attempt(self, attempt: int) -> Job | None:
        """The job whose present attempt or check has this number."""
        return self._by_attempt.get(attempt)

    def has(self, key: tuple[str, ...]) -> bool:
        """Whether a job of the proxy's own for this key waits, or any is active."""
        return key in self._locked or any(job.purpose != "call" and key in job.keys for job in self.waiting.values())

    def all(self) -> Iterator[Job]:
        """Every job; the list may change meanwhile."""
        yield from list(self.waiting.values())
        yield from list(self.active.values())

    def choose(self, at_once: int, is_blocked: Callable[[Job], bool]) -> Job | None:
        """The first job that may be sent now. ``is_blocked`` says that one may not, whatever the others do."""
        is_full = self.slots >= at_once
        seen: set[tuple[str, ...]] = set()
        for own in (True, False):
            for job in self.waiting.values():
                if (job.purpose != "call") is not own or (is_full and calls.is_counted(job.path)):
                    continue
                is_free = not any(key in seen or key in self._locked for key in job.keys)
                seen |= job.keys
                if is_free and not is_blocked(job):
                    return job
        return None

    def start(self, job: Job) -> int:
        """A job is sent: it locks its keys and takes a slot. The number of the attempt."""
        del self.waiting[job.number]
        self.active[job.number] = job
        for key in job.keys:
            self._locked[key] = job.number
        self.slots += calls.is_counted(job.path)
        job.stage = Stage.FORWARDED
        return self.renew(job)

    def renew(self, job: Job) -> int:
        """A new number, so that events about an earlier attempt or check have no effect."""
        self._by_attempt.pop(job.attempt, None)
        job.attempt = self.number()
        self._by_attempt[job.attempt] = job
        return job.attempt

    def leave_plugin(self, job: Job, stage: Stage) -> None:
        """The plugin does not work on it any more; it stays active and locks its keys."""
        if job.stage is Stage.FORWARDED:
            self.slots -= calls.is_counted(job.path)
        job.stage = stage
        self.renew(job)

    def wait(self, job: Job) -> None:
        """A job waits again, before those that came later: an Unmount must not be overtaken by the next Mount."""
        self._release(job)
        job.stage = Stage.WAITING
        self.waiting[job.number] = job
        self.waiting = dict(sorted(self.waiting.items()))

    def remove(self, job: Job) -> None:
        """A job is complete, or is given up."""
        self._release(job)
        self.waiting.pop(job.number, None)
        if job.call is not None:
            self._by_call.pop(job.call, None)

    def detach(self, job: Job) -> None:
        """The consumer has left."""
        if job.call is not None:
            self._by_call.pop(job.call, None)
            job.call = None

    def hand_over(self, giver: Job, taker: Job) -> None:
        """Let the consumer of one job, which is removed, wait for another one, whose consumer has left."""
        call, consumer = giver.call, giver.consumer
        self.remove(giver)
        taker.call, taker.consumer, taker.deadline = call, consumer, giver.deadline
        if call is not None:
            self._by_call[call] = taker

    def _release(self, job: Job) -> None:
        if self.active.pop(job.number, None) is None:
            return
        if job.stage is Stage.FORWARDED:
            self.slots -= calls.is_counted(job.path)
        self._by_attempt.pop(job.attempt, None)
        for key in job.keys:
            if self._locked.get(key) == job.number:
                del self._locked[key]

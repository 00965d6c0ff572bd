"""Random lives of one container id around the executor's decisions, each of them a function of its seed.

The decisions are the real ones (``moorage.executor._machine``); containerd, its event stream, the kernel and our own
process are a model: events get lost, doubled, late or out of order, also those of earlier runs and of added processes;
answers get lost before or after their effect; containerd and the executor are killed and restarted, shims hang or are
killed, pids are used again. At the end everything is up for long enough, and then the promises must be fulfilled.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from moorage.containerd.types import Status
from moorage.executor import _machine as machine
from moorage.executor._machine import Action, ExitReported, Phase, RunEvent

ID = "a"
INVENTED = 137
CODES = (0, 1, 2, 143, INVENTED)
FINAL_POLLS = 40
"""Comparisons after which everything must be settled, when nothing breaks any more."""


RESTLESS = 50
"""Steps after one event from which on the machine is taken for one that never rests."""


class Violation(AssertionError):
    """A promise is broken."""


@dataclass(slots=True)
class LifecycleState:
    """One run as it truly is."""

    pid: int
    is_prepared: bool = False
    """Its program was not started."""
    alive: bool = True
    has_task: bool = True
    """Containerd knows its task."""
    has_files: bool = True
    """Record and directory exist."""
    note: int | None = None
    """The exit code in its directory."""
    code: int | None = None
    """How it truly ended; None where its shim was killed first: then it is unknown."""
    oom: bool = False
    reported: int = 0
    excused: bool = False
    """The executor was killed when all was removed and nothing was reported: the only gap."""


class Simulation:
    """One schedule."""

    def __init__(self, seed: int, log: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self._chance = self.random.random
        self._log = log
        self._up = True
        self._hung = False
        self._calm = False
        self._network: list[ExitReported] = []
        self._inbox: list[RunEvent] = []
        self._later = False
        self._run = machine.RunState(ID)
        self._removed: machine.Removed | None = None
        self._oom = False
        self._owns = False
        self._starting = False
        self._early = self._chance() < 0.5
        """Exits are reported before the removal."""
        self.lives: list[LifecycleState] = []
        self.events = 0

    # the whole

    def play(self, steps: int = 24) -> None:
        """Raises: Violation."""
        self._create()
        for _ in range(steps):
            self._something()
        self._settle()
        self._judge()

    def _something(self) -> None:
        weights = self._chance()
        for limit, action in _ACTIONS:
            if weights < limit:
                action(self)
                return

    def _settle(self) -> None:
        self._calm, self._up, self._hung = True, True, False
        self._say("calm")
        if not self._owns:
            self._restore()
        if self._starting:
            self._start_answered()
        if self._run.phase is Phase.PREPARED and self._chance() < 0.5:
            self._start_or_discard()
        if self._starting:
            self._start_answered()
        if self._chance() < 0.7:
            self._exit()
        for _ in range(FINAL_POLLS):
            while self._inbox:
                self._work()
            if self._run.phase is Phase.REMOVED:
                return
            self._later = False
            self._inbox.append(machine.CheckRequested())

    def _judge(self) -> None:
        for life in self.lives:
            if life.alive:
                self._demand(
                    life.reported == 0 and life.has_task and life.has_files, "it is alive and left alone", life
                )
                phase = Phase.PREPARED if life.is_prepared else Phase.RUNNING
                self._demand(self._run.phase is phase and self._run.pid == life.pid, "it is owned", life)
            elif life.is_prepared:
                self._demand(not life.has_task and not life.has_files, "it is discarded", life)
            else:
                self._demand(life.reported == 1 or life.excused, "its exit is reported once", life)
                self._demand(not life.has_task and not life.has_files, "it has no leftovers", life)

    def _demand(self, is_true: bool, what: str, life: LifecycleState) -> None:
        if not is_true:
            raise Violation(f"{what}: {life}, {self._run}")

    def _say(self, what: str) -> None:
        if self._log is not None:
            self._log(what)

    # our process

    @property
    def _life(self) -> LifecycleState:
        return self.lives[-1]

    def _create(self) -> None:
        # a pid may be that of an earlier run
        pid = self._life.pid if self.lives and self._chance() < 0.2 else 100 + len(self.lives)
        self.lives.append(LifecycleState(pid, is_prepared=self._chance() < 0.25))
        self._take_over()
        self._starting = True
        self._say(f"{'prepare' if self._life.is_prepared else 'create'} pid {pid}")

    def _take_over(self) -> None:
        run = machine.RunState(ID, early=self._early)
        self._run, self._removed, self._oom, self._later = run, None, False, False
        self._owns = True
        self._inbox.clear()

    def _start_answered(self) -> None:
        life = self._life
        self._starting = False
        if not life.is_prepared:
            self._say("started")
            self._inbox.append(machine.Started(life.pid))
        elif self._run.pid is None:
            self._say("prepared")
            self._run, do = machine.step(self._run, machine.Prepared(life.pid))
            if do is not Action.NOTHING:
                self._inbox.append(machine.CheckRequested())
        elif life.alive and life.has_task and not self._answer_is_lost() and not self._hung:
            self._say("started")
            life.is_prepared = False
            self._inbox.append(machine.Started(life.pid))
        else:
            self._undo_start("the start fails")

    def _start_or_discard(self) -> None:
        if self._chance() < 0.7:
            self._say("start")
            self._run, do = machine.step(self._run, machine.StartRequested())
            self._demand(do is Action.NOTHING, "it is started", self._life)
            self._starting = True
        else:
            self._undo_start("discard")

    def _undo_start(self, reason: str) -> None:
        """Remove all of a run that was not started, or whose start has failed; the retries of that are not modelled."""
        self._say(reason)
        self._starting = False
        life = self._life
        self._run, do = machine.step(self._run, machine.StartFailed())
        self._demand(do is Action.NOTHING, "a start that failed has no exit", life)
        life.alive = life.has_task = life.has_files = False
        life.excused = True

    def _restore(self) -> None:
        """As the next process does, until containerd answers all of it."""
        life = self._life
        self._take_over()
        if life.is_prepared:
            self._say("restore finds it was not started")
            life.alive = life.has_task = life.has_files = False
            self._run = machine.RunState(ID, Phase.REMOVED)
            return
        if life.alive and life.has_task:
            self._start_answered()
            return
        self._say("restore finds it dead")
        known = life.note is not None or life.has_task
        code = life.note if life.note is not None else life.code
        if life.has_task or life.has_files:
            life.has_task = life.has_files = False
            if self._early and life.reported:
                pass  # it was reported before its removal, and the next process finds it once more
            elif known:
                self._report(life, code)
            else:
                life.reported += 1  # no task is left to say anything: "not alive" is what there is to know
        elif not life.reported:
            life.excused = True
        self._run = machine.RunState(ID, Phase.REMOVED)

    def _kill_executor(self) -> None:
        if not self._owns or self._starting:
            return
        self._say("the executor is killed")
        self._owns = False
        self._inbox.clear()

    def _restart_executor(self) -> None:
        if not self._owns and self._up and not self._hung:
            self._restore()

    def _report(self, life: LifecycleState, code: int | None) -> None:
        self._say(f"reported {code}")
        life.reported += 1
        self._demand(not life.is_prepared, "no exit is reported of what was not started", life)
        self._demand(not life.alive, "no exit is reported of a process that is alive", life)
        self._demand(life.reported == 1, "no exit is reported twice", life)
        self._demand(code in (None, life.code), "no code is invented", life)

    # what the executor does for its machine

    def _work(self) -> None:
        if not self._owns or not self._inbox:
            return
        event: RunEvent | None = self._inbox.pop(0)
        limit = self.events + RESTLESS
        while event is not None:
            self.events += 1
            if self.events > limit:
                raise Violation(f"it never rests: {self._run}, {event}")
            if self._log is not None:
                self._say(f"  {event}")
            self._run, do = machine.step(self._run, event)
            event = self._do(do)

    def _do(self, do: Action) -> RunEvent | None:
        if do is Action.QUERY:
            return self._query()
        if do is Action.REMOVE:
            return self._finish()
        if do is Action.FIND_EXIT:
            return self._find_exit()
        if do is Action.DELIVER:
            return self._deliver()
        if do is Action.DISCARD:
            self._demand(
                not self._life.alive and self._life.is_prepared, "only what has exited is discarded", self._life
            )
            self._undo_start("discarded")
        elif do is Action.RELEASE:
            self._demand(not self._life.has_task and not self._life.has_files, "it is removed", self._life)
            self._demand(self._life.reported == 1, "its exit was reported before", self._life)
        elif do is not Action.NOTHING:
            self._later = True
        return None

    def _find_exit(self) -> RunEvent:
        life = self._life
        self._demand(not life.alive, "no exit is looked for while it is alive", life)
        if self._answer_is_lost() or self._hung or not life.has_task:
            return machine.ExitUnknown()
        self._oom = self._oom or life.oom
        return machine.ExitKnown(life.code, None, self._oom)

    def _answer_is_lost(self) -> bool:
        return not self._up or (not self._calm and self._chance() < 0.15)

    def _query(self) -> RunEvent:
        if self._answer_is_lost():
            return machine.StatusUnavailable()
        if self._hung:
            return machine.StatusKnown(Status.UNKNOWN)
        life = self._life
        if not life.has_task:
            return machine.StatusKnown(None)
        return machine.StatusKnown(Status.RUNNING if life.alive else Status.STOPPED)

    def _finish(self) -> RunEvent:
        life = self._life
        self._demand(not life.alive, "nothing alive is deleted", life)
        if self._removed is None:
            if self._answer_is_lost() or self._hung:
                return machine.RemovalFailed()
            if life.has_task:
                life.note = life.code
                self._oom = self._oom or life.oom
                life.has_task = False
                if self._answer_is_lost():
                    return machine.RemovalFailed()
            self._removed = machine.Removed(life.note, None, self._oom)
        if self._answer_is_lost():
            return machine.RemovalFailed()
        life.has_files, life.note = False, None
        return self._removed

    def _deliver(self) -> RunEvent | None:
        is_removed = self._run.phase is Phase.REMOVED
        if not self._calm and self._chance() < 0.02:
            self._life.excused = is_removed
            self._kill_executor()
            return None
        self._report(self._life, self._run.code)
        self._demand(
            self._run.oom == (self._life.oom and self._run.code == INVENTED), "the OOM kill is reported", self._life
        )
        if not is_removed and not self._calm and self._chance() < 0.1:
            self._kill_executor()
            return None
        return None if is_removed else machine.Delivered()

    # what happens around it

    def _publish(self, seen: ExitReported) -> None:
        if (self._up and self._chance() < 0.9) or self._chance() < 0.5:
            self._network.append(seen)
            if self._chance() < 0.15:
                self._network.append(seen)

    def _exit(self) -> None:
        life = self._life
        if not life.alive:
            return
        life.alive, life.code = False, self.random.choice(CODES)
        life.oom = life.code == INVENTED and self._chance() < 0.5
        self._say(f"exit {life.code}")
        self._publish(ExitReported(ID, life.pid, life.code))

    def _added_process_exits(self) -> None:
        self._publish(ExitReported("added", self._life.pid, 0))

    def _event_arrives(self) -> None:
        if self._network and self._up:
            seen = self._network.pop(self.random.randrange(len(self._network)))
            if self._owns:
                self._inbox.append(seen)

    def _event_is_lost(self) -> None:
        if self._network:
            self._network.pop(0)

    def _kernel_hint(self) -> None:
        # of this process, or of another one that was given its pid
        if self._owns and (not self._life.alive or self._chance() < 0.1):
            self._inbox.append(machine.ProcessExited())

    def _poll(self) -> None:
        if self._owns and machine.CheckRequested() not in self._inbox:
            self._later = False
            self._inbox.append(machine.CheckRequested())

    def _containerd_goes_or_comes(self) -> None:
        self._up = not self._up
        self._say(f"containerd up: {self._up}")
        if self._up:
            if not self._hung and self._life.alive and self._shim_died:
                self._life.alive, self._life.has_task = False, False
            self._shim_died = False
            self._poll()

    _shim_died = False

    def _shim_hangs_or_goes_on(self) -> None:
        self._hung = not self._hung

    def _shim_is_killed(self) -> None:
        life = self._life
        if not life.has_task or self._hung or self._starting:
            return
        self._say("shim killed")
        if not self._up:
            self._shim_died = True
            return
        if life.alive:
            life.alive, life.code = False, None
        life.has_task = False
        self._publish(ExitReported(ID, life.pid, INVENTED))

    def _go_on(self) -> None:
        if self._starting:
            self._start_answered()
        elif self._run.phase is Phase.PREPARED and self._owns:
            self._start_or_discard()
        elif self._run.phase is Phase.REMOVED and self._owns and len(self.lives) < 3:
            self._create()

    def _give_up(self) -> None:
        """The answer to a start is lost; the undo works."""
        if self._starting and self._up and not self._hung:
            self._undo_start("the answer to the start is lost")


def _limits(*weighted: tuple[int, Callable[[Simulation], None]]) -> list[tuple[float, Callable[[Simulation], None]]]:
    total, sum_so_far, limits = sum(weight for weight, _ in weighted), 0, []
    for weight, action in weighted:
        sum_so_far += weight
        limits.append((sum_so_far / total, action))
    return limits


_ACTIONS = _limits(
    (30, Simulation._work),
    (14, Simulation._event_arrives),
    (14, Simulation._go_on),
    (8, Simulation._exit),
    (6, Simulation._kernel_hint),
    (6, Simulation._poll),
    (6, Simulation._containerd_goes_or_comes),
    (4, Simulation._added_process_exits),
    (4, Simulation._event_is_lost),
    (3, Simulation._shim_hangs_or_goes_on),
    (3, Simulation._shim_is_killed),
    (3, Simulation._kill_executor),
    (6, Simulation._restart_executor),
    (1, Simulation._give_up),
)


def play(seed: int, log: Callable[[str], None] | None = None) -> int:
    """Play the schedule of this seed; how many events the machine decided about. Raises: Violation."""
    simulation = Simulation(seed, log)
    simulation.play()
    return simulation.events


def play_many(seeds: range) -> tuple[int, list[tuple[int, str]]]:
    """Play many; how many events there were, and each seed that failed, with the reason."""
    events, failures = 0, []
    for seed in seeds:
        try:
            events += play(seed)
        except Violation as violation:
            failures.append((seed, str(violation)))
    return events, failures

"""Random lives of one container id around the executor's decisions, each of them a function of its seed.

The decisions are the real ones (``moorage.executor._machine``); containerd, its event stream, the kernel and our own
process are a model: events get lost, doubled, late or out of order, also those of earlier runs and of added processes;
answers get lost before or after their effect; containerd and we are killed and come back, shims hang or are killed,
pids are used again. At the end everything is up for long enough, and then the promises must hold.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from moorage.containerd.types import Status
from moorage.executor import _machine as machine
from moorage.executor._machine import Do, ExitSeen, Happening, Phase

ID = "a"
INVENTED = 137
CODES = (0, 1, 2, 143, INVENTED)
LOOKS_TO_THE_END = 40
"""Comparisons after which everything must be settled, when nothing breaks any more."""


RESTLESS = 50
"""Steps after one happening from which on the machine is taken for one that never rests."""


class Violation(AssertionError):
    """A promise does not hold."""


@dataclass(slots=True)
class Life:
    """One run as it truly is."""

    pid: int
    alive: bool = True
    has_task: bool = True
    """Containerd knows its task."""
    has_files: bool = True
    """Record and directory are there."""
    note: int | None = None
    """The exit code in its directory."""
    code: int | None = None
    """How it truly ended; None where its shim was killed first, and nobody can know."""
    oom: bool = False
    told: int = 0
    excused: bool = False
    """We were killed when all was removed and nobody had been told: the one gap there is."""


class Simulation:
    """One schedule."""

    def __init__(self, seed: int, log: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self._chance = self.random.random
        self._log = log
        self._up = True
        self._hung = False
        self._calm = False
        self._network: list[ExitSeen] = []
        self._inbox: list[Happening] = []
        self._later = False
        self._run = machine.Run(ID)
        self._ended: machine.Removed | None = None
        self._oom = False
        self._holding = False
        self._starting = False
        self.lives: list[Life] = []
        self.happenings = 0

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
        if not self._holding:
            self._restore()
        if self._starting:
            self._start_answered()
        if self._chance() < 0.7:
            self._exit()
        for _ in range(LOOKS_TO_THE_END):
            while self._inbox:
                self._work()
            if self._run.phase is Phase.OVER:
                return
            self._later = False
            self._inbox.append(machine.Look())

    def _judge(self) -> None:
        for life in self.lives:
            if life.alive:
                self._demand(life.told == 0 and life.has_task and life.has_files, "it lives and is left alone", life)
                self._demand(self._run.phase is Phase.RUNNING and self._run.pid == life.pid, "it is held", life)
            else:
                self._demand(life.told == 1 or life.excused, "its exit is told once", life)
                self._demand(not life.has_task and not life.has_files, "nothing of it is left", life)

    def _demand(self, holds: bool, what: str, life: Life) -> None:
        if not holds:
            raise Violation(f"{what}: {life}, {self._run}")

    def _say(self, what: str) -> None:
        if self._log is not None:
            self._log(what)

    # our process

    @property
    def _life(self) -> Life:
        return self.lives[-1]

    def _create(self) -> None:
        # a pid may be that of an earlier run
        pid = self._life.pid if self.lives and self._chance() < 0.2 else 100 + len(self.lives)
        self.lives.append(Life(pid))
        self._begin_to_hold()
        self._starting = True
        self._say(f"create pid {pid}")

    def _begin_to_hold(self) -> None:
        self._run, self._ended, self._oom, self._later = machine.Run(ID), None, False, False
        self._holding = True
        self._inbox.clear()

    def _start_answered(self) -> None:
        self._starting = False
        self._say("started")
        self._inbox.append(machine.Started(self._life.pid))

    def _restore(self) -> None:
        """As the next process does, until containerd answers all of it."""
        life = self._life
        self._begin_to_hold()
        if life.alive and life.has_task:
            self._start_answered()
            return
        self._say("restore finds it dead")
        known = life.note is not None or life.has_task
        code = life.note if life.note is not None else life.code
        if life.has_task or life.has_files:
            life.has_task = life.has_files = False
            if known:
                self._tell(life, code)
            else:
                life.told += 1  # no task is left to say anything: "not alive" is what there is to know
        elif not life.told:
            life.excused = True
        self._run = machine.Run(ID, Phase.OVER)

    def _we_are_killed(self) -> None:
        if not self._holding or self._starting:
            return
        self._say("we are killed")
        self._holding = False
        self._inbox.clear()

    def _we_come_back(self) -> None:
        if not self._holding and self._up and not self._hung:
            self._restore()

    def _tell(self, life: Life, code: int | None) -> None:
        self._say(f"told {code}")
        life.told += 1
        self._demand(not life.alive, "no exit is told of a process that lives", life)
        self._demand(life.told == 1, "no exit is told twice", life)
        self._demand(code in (None, life.code), "no code is invented", life)

    # what the executor does for its machine

    def _work(self) -> None:
        if not self._holding or not self._inbox:
            return
        happening: Happening | None = self._inbox.pop(0)
        limit = self.happenings + RESTLESS
        while happening is not None:
            self.happenings += 1
            if self.happenings > limit:
                raise Violation(f"it never rests: {self._run}, {happening}")
            if self._log is not None:
                self._say(f"  {happening}")
            self._run, do = machine.step(self._run, happening)
            happening = self._do(do)

    def _do(self, do: Do) -> Happening | None:
        if do is Do.ASK:
            return self._ask()
        if do is Do.FINISH:
            return self._finish()
        if do is Do.DELIVER:
            self._deliver()
        elif do is not Do.NOTHING:
            self._later = True
        return None

    def _answer_is_lost(self) -> bool:
        return not self._up or (not self._calm and self._chance() < 0.15)

    def _ask(self) -> Happening:
        if self._answer_is_lost():
            return machine.Unanswered()
        if self._hung:
            return machine.Answered(Status.UNKNOWN)
        life = self._life
        if not life.has_task:
            return machine.Answered(None)
        return machine.Answered(Status.RUNNING if life.alive else Status.STOPPED)

    def _finish(self) -> Happening:
        life = self._life
        self._demand(not life.alive, "nothing that lives is deleted", life)
        if self._ended is None:
            if self._answer_is_lost() or self._hung:
                return machine.NotRemoved()
            if life.has_task:
                life.note = life.code
                self._oom = self._oom or life.oom
                life.has_task = False
                if self._answer_is_lost():
                    return machine.NotRemoved()
            self._ended = machine.Removed(life.note, None, self._oom)
        if self._answer_is_lost():
            return machine.NotRemoved()
        life.has_files, life.note = False, None
        return self._ended

    def _deliver(self) -> None:
        if not self._calm and self._chance() < 0.02:
            self._life.excused = True
            self._we_are_killed()
            return
        self._tell(self._life, self._run.code)
        self._demand(
            self._run.oom == (self._life.oom and self._run.code == INVENTED), "the memory's end is told", self._life
        )

    # what happens around it

    def _publish(self, seen: ExitSeen) -> None:
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
        self._publish(ExitSeen(ID, life.pid, life.code))

    def _added_process_exits(self) -> None:
        self._publish(ExitSeen("added", self._life.pid, 0))

    def _event_arrives(self) -> None:
        if self._network and self._up:
            seen = self._network.pop(self.random.randrange(len(self._network)))
            if self._holding:
                self._inbox.append(seen)

    def _event_is_lost(self) -> None:
        if self._network:
            self._network.pop(0)

    def _kernel_hint(self) -> None:
        # of this process, or of another one that was given its pid
        if self._holding and (not self._life.alive or self._chance() < 0.1):
            self._inbox.append(machine.Died())

    def _look(self) -> None:
        if self._holding and machine.Look() not in self._inbox:
            self._later = False
            self._inbox.append(machine.Look())

    def _containerd_goes_or_comes(self) -> None:
        self._up = not self._up
        self._say(f"containerd up: {self._up}")
        if self._up:
            if not self._hung and self._life.alive and self._shim_died:
                self._life.alive, self._life.has_task = False, False
            self._shim_died = False
            self._look()

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
        self._publish(ExitSeen(ID, life.pid, INVENTED))

    def _go_on(self) -> None:
        if self._starting:
            self._start_answered()
        elif self._run.phase is Phase.OVER and self._holding and len(self.lives) < 3:
            self._create()

    def _give_up(self) -> None:
        """The answer to a start is lost; the undo works."""
        if self._starting and self._up and not self._hung:
            self._starting = False
            life = self._life
            self._run, do = machine.step(self._run, machine.GaveUp())
            self._demand(do is Do.NOTHING, "a start that failed has no exit", life)
            life.alive = life.has_task = life.has_files = False
            life.excused = True


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
    (6, Simulation._look),
    (6, Simulation._containerd_goes_or_comes),
    (4, Simulation._added_process_exits),
    (4, Simulation._event_is_lost),
    (3, Simulation._shim_hangs_or_goes_on),
    (3, Simulation._shim_is_killed),
    (3, Simulation._we_are_killed),
    (6, Simulation._we_come_back),
    (1, Simulation._give_up),
)


def play(seed: int, log: Callable[[str], None] | None = None) -> int:
    """Play the schedule of this seed; how many happenings the machine decided about. Raises: Violation."""
    simulation = Simulation(seed, log)
    simulation.play()
    return simulation.happenings


def play_many(seeds: range) -> tuple[int, list[tuple[int, str]]]:
    """Play many; how many happenings there were, and each seed that failed, with the reason."""
    happenings, failures = 0, []
    for seed in seeds:
        try:
            happenings += play(seed)
        except Violation as violation:
            failures.append((seed, str(violation)))
    return happenings, failures

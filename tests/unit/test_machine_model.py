"""The decisions of a run against a simulated truth: hints get lost, doubled and mixed, containerd comes and goes."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.containerd.types import Status
from moorage.executor._machine import (
    Action,
    CheckRequested,
    Delivered,
    ExitKnown,
    ExitReported,
    ExitUnknown,
    Phase,
    Prepared,
    ProcessExited,
    RemovalFailed,
    Removed,
    RunEvent,
    RunState,
    Started,
    StartFailed,
    StartRequested,
    StatusKnown,
    StatusUnavailable,
    step,
)

pytestmark = pytest.mark.quick

ID, PID, CODE = "a", 7, 3
WHEN = datetime(2026, 1, 1, tzinfo=UTC)

MOVES = (
    *("prepare", "start", "die", "kill shim"),
    *("hear exit", "hear old exit", "hear added exit", "hear kernel", "look", "look again"),
    *("down", "up", "hang", "go on", "lose answer"),
)


@dataclass
class World:
    """One process, its shim and containerd; and an executor's loop around the machine."""

    run: RunState = field(default_factory=lambda: RunState(ID))
    delivered: list[RunState] = field(default_factory=list)
    is_prepared: bool = False
    is_started: bool = False
    discards: int = 0
    is_dead: bool = False
    is_task: bool = True
    shim_was_killed: bool = False
    up: bool = True
    hung: bool = False
    answer_is_lost: bool = False
    queries_later: bool = False
    is_noted: bool = False

    def feed(self, event: RunEvent | None) -> None:
        steps = 0
        while event is not None:
            steps += 1
            assert steps < 50, "it never rests"
            self.run, do = step(self.run, event)
            event = self.act(do)

    def act(self, do: Action) -> RunEvent | None:
        match do:
            case Action.QUERY:
                return self.query()
            case Action.REMOVE:
                return self.remove()
            case Action.QUERY_LATER | Action.REMOVE_LATER:
                self.queries_later = True
            case Action.FIND_EXIT:
                return self.find_exit()
            case Action.DELIVER:
                self.delivered.append(self.run)
                return Delivered() if self.run.phase is Phase.EXITED else None
            case Action.NOTHING:
                pass
            case Action.DISCARD:
                self.discards += 1
                self.is_task = False
            case Action.RELEASE:
                assert self.delivered
                assert not self.is_task
        return None

    def find_exit(self) -> RunEvent:
        assert self.is_dead
        if not self.up or self.hung or not self.is_task:
            return ExitUnknown()
        self.is_noted = True
        return ExitKnown(CODE, WHEN)

    def query(self) -> RunEvent:
        if not self.up:
            return StatusUnavailable()
        if not self.is_task:
            return StatusKnown(None)
        if self.hung:
            return StatusKnown(Status.UNKNOWN)
        if self.is_dead:
            return StatusKnown(Status.STOPPED)
        return StatusKnown(Status.RUNNING if self.is_started or not self.is_prepared else Status.CREATED)

    def remove(self) -> RunEvent:
        if not self.up or (self.hung and self.is_task):
            return RemovalFailed()
        self.is_noted = self.is_noted or self.is_task  # how it ended lies in its directory until all is removed
        self.is_task = False
        if self.answer_is_lost:
            self.answer_is_lost = False
            return RemovalFailed()
        return Removed(CODE, WHEN) if self.is_noted else Removed()

    def move(self, name: str) -> None:
        match name:
            case "prepare" if not self.is_started and not self.is_prepared:
                self.is_prepared = True
                self.feed(Prepared(PID))
            case "start" if self.is_prepared and not self.is_started and self.run.phase is Phase.PREPARED:
                self.feed(StartRequested())
                if self.is_dead:  # containerd refuses it, and the executor removes it
                    self.feed(StartFailed())
                    self.is_task = False
                    return
                self.is_started = True
                self.feed(Started(PID))
            case "start" if not self.is_started and not self.is_prepared:
                self.is_started = True
                self.feed(Started(PID))
            case "die":
                self.is_dead = True
            case "kill shim" if self.is_task:
                self.is_dead = self.shim_was_killed = True
                self.is_task = not self.up
            case "hear exit" if self.is_dead:
                self.feed(ExitReported(ID, PID, 137 if self.shim_was_killed else CODE, WHEN))
            case "hear old exit":
                self.feed(ExitReported(ID, PID + 1, 9, WHEN))
            case "hear added exit":
                self.feed(ExitReported("exec", PID, 9, WHEN))
            case "hear kernel" if self.is_dead:
                self.feed(ProcessExited())
            case "look":
                self.feed(CheckRequested())
            case "look again" if self.queries_later:
                self.queries_later = False
                self.feed(CheckRequested())
            case "down":
                self.up = False
            case "up":
                self.up = True
                if self.shim_was_killed:
                    self.is_task = False  # containerd removes what has no shim before it serves
            case "hang":
                self.hung = True
            case "go on":
                self.hung = False
            case "lose answer":
                self.answer_is_lost = True
            case _:
                pass


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(MOVES), max_size=40), st.booleans())
def test_every_run_that_exited_is_delivered_exactly_once_and_no_other(moves: list[str], early: bool) -> None:
    world = World(RunState(ID, early=early))
    for move in moves:
        world.move(move)
        assert len(world.delivered) <= 1
        assert world.is_dead or not world.delivered, "a living process was called ended"
    for move in ("start", "up", "go on", "look", "look again"):  # in the end everything answers, and a comparison comes
        world.move(move)
    is_discarded = world.is_prepared and not world.is_started
    assert len(world.delivered) == (world.is_dead and not is_discarded)
    assert world.discards <= is_discarded
    assert not (is_discarded and world.is_task)
    assert (world.run.phase is Phase.REMOVED) == world.is_dead
    for run in world.delivered:
        assert run.code == (CODE if world.is_noted else None)
        assert world.is_noted or world.shim_was_killed


@given(st.lists(st.sampled_from([move for move in MOVES if move not in ("die", "kill shim")]), max_size=40))
def test_without_an_end_nothing_is_delivered(moves: list[str]) -> None:
    world = World()
    for move in moves:
        world.move(move)
    assert not world.delivered
    assert not world.discards
    assert world.run.phase in (Phase.STARTING, Phase.PREPARED, Phase.RUNNING)

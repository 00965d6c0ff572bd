"""The decisions of a run, whatever happens in whatever order."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moorage.containerd.types import Status
from moorage.executor._machine import (
    Answered,
    Died,
    Do,
    ExitSeen,
    GaveUp,
    Happening,
    Look,
    NotRemoved,
    Phase,
    Removed,
    Run,
    Started,
    Unanswered,
    may_replace,
    step,
)

pytestmark = pytest.mark.quick

ID, PID, OTHER_PID = "a", 7, 8
WHEN = datetime(2026, 1, 1, tzinfo=UTC)

OWN = ExitSeen(ID, PID, 3, WHEN)
FOREIGN = {
    "of an added process": ExitSeen("exec", PID, 3, WHEN),
    "of an earlier run": ExitSeen(ID, OTHER_PID, 3, WHEN),
}

STARTING = Run(ID)
RUNNING = Run(ID, phase=Phase.RUNNING, pid=PID)
ENDING = replace(RUNNING, phase=Phase.ENDING)
OVER = replace(RUNNING, phase=Phase.OVER, code=3)

# Every phase with every kind of happening: the phase after it, and what is to be done.
TABLE: dict[tuple[Phase, type], tuple[Phase, Do]] = {
    (Phase.STARTING, Started): (Phase.RUNNING, Do.NOTHING),
    (Phase.STARTING, GaveUp): (Phase.OVER, Do.NOTHING),
    (Phase.STARTING, ExitSeen): (Phase.STARTING, Do.NOTHING),
    (Phase.STARTING, Died): (Phase.STARTING, Do.NOTHING),
    (Phase.STARTING, Look): (Phase.STARTING, Do.NOTHING),
    (Phase.STARTING, Answered): (Phase.STARTING, Do.NOTHING),
    (Phase.STARTING, Unanswered): (Phase.STARTING, Do.NOTHING),
    (Phase.STARTING, Removed): (Phase.STARTING, Do.NOTHING),
    (Phase.STARTING, NotRemoved): (Phase.STARTING, Do.NOTHING),
    (Phase.RUNNING, Started): (Phase.RUNNING, Do.NOTHING),
    (Phase.RUNNING, GaveUp): (Phase.RUNNING, Do.NOTHING),
    (Phase.RUNNING, ExitSeen): (Phase.RUNNING, Do.ASK),
    (Phase.RUNNING, Died): (Phase.RUNNING, Do.ASK),
    (Phase.RUNNING, Look): (Phase.RUNNING, Do.ASK),
    (Phase.RUNNING, Answered): (Phase.ENDING, Do.FINISH),
    (Phase.RUNNING, Unanswered): (Phase.RUNNING, Do.NOTHING),
    (Phase.RUNNING, Removed): (Phase.RUNNING, Do.NOTHING),
    (Phase.RUNNING, NotRemoved): (Phase.RUNNING, Do.NOTHING),
    (Phase.ENDING, Started): (Phase.ENDING, Do.NOTHING),
    (Phase.ENDING, GaveUp): (Phase.ENDING, Do.NOTHING),
    (Phase.ENDING, ExitSeen): (Phase.ENDING, Do.NOTHING),
    (Phase.ENDING, Died): (Phase.ENDING, Do.NOTHING),
    (Phase.ENDING, Look): (Phase.ENDING, Do.FINISH),
    (Phase.ENDING, Answered): (Phase.ENDING, Do.NOTHING),
    (Phase.ENDING, Unanswered): (Phase.ENDING, Do.NOTHING),
    (Phase.ENDING, Removed): (Phase.OVER, Do.DELIVER),
    (Phase.ENDING, NotRemoved): (Phase.ENDING, Do.FINISH_LATER),
    **{
        (Phase.OVER, kind): (Phase.OVER, Do.NOTHING)
        for kind in (Started, GaveUp, ExitSeen, Died, Look, Answered, Unanswered, Removed, NotRemoved)
    },
}
RUNS = {Phase.STARTING: STARTING, Phase.RUNNING: RUNNING, Phase.ENDING: ENDING, Phase.OVER: OVER}
ONE_OF_EACH: dict[type, Happening] = {
    Started: Started(PID),
    GaveUp: GaveUp(),
    ExitSeen: OWN,
    Died: Died(),
    Look: Look(),
    Answered: Answered(Status.STOPPED),
    Unanswered: Unanswered(),
    Removed: Removed(3, WHEN),
    NotRemoved: NotRemoved(),
}


@pytest.mark.parametrize(
    ("phase", "kind"),
    list(product(Phase, ONE_OF_EACH)),
    ids=lambda it: it.name if isinstance(it, Phase) else it.__name__,
)
def test_every_phase_knows_what_every_happening_means(phase: Phase, kind: type) -> None:
    run, do = step(RUNS[phase], ONE_OF_EACH[kind])
    assert (run.phase, do) == TABLE[phase, kind]
    if phase is Phase.OVER:
        assert run == OVER


@pytest.mark.parametrize(
    ("status", "phase", "do"),
    [
        (Status.RUNNING, Phase.RUNNING, Do.NOTHING),
        (Status.PAUSED, Phase.RUNNING, Do.NOTHING),
        (Status.PAUSING, Phase.RUNNING, Do.NOTHING),
        (Status.CREATED, Phase.RUNNING, Do.NOTHING),
        (Status.UNKNOWN, Phase.RUNNING, Do.NOTHING),
        (Status.STOPPED, Phase.ENDING, Do.FINISH),
        (None, Phase.ENDING, Do.FINISH),
    ],
)
def test_only_stopped_and_gone_end_a_run(status: Status | None, phase: Phase, do: Do) -> None:
    run, done = step(RUNNING, Answered(status))
    assert (run.phase, done) == (phase, do)


@pytest.mark.parametrize("happening", [Answered(Status.RUNNING), Answered(Status.UNKNOWN), Unanswered()])
@pytest.mark.parametrize("hint", [Died(), OWN])
def test_a_process_that_is_called_dead_is_asked_for_until_containerd_says_so(
    hint: Happening, happening: Happening
) -> None:
    dead, _ = step(RUNNING, hint)
    assert step(dead, happening) == (dead, Do.ASK_LATER)


@pytest.mark.parametrize("seen", list(FOREIGN.values()), ids=list(FOREIGN))
@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.ENDING])
def test_an_exit_of_something_else_changes_nothing(seen: ExitSeen, phase: Phase) -> None:
    assert step(RUNS[phase], seen) == (RUNS[phase], Do.NOTHING)


@pytest.mark.parametrize("seen", list(FOREIGN.values()), ids=list(FOREIGN))
def test_an_exit_of_something_else_while_starting_is_not_taken_for_its_own(seen: ExitSeen) -> None:
    run, _ = step(STARTING, seen)
    run, do = step(run, Started(PID))
    assert (run.phase, run.dead, do) == (Phase.RUNNING, False, Do.NOTHING)


def test_an_exit_that_comes_before_the_pid_is_known_is_asked_for_at_once() -> None:
    run, _ = step(STARTING, ExitSeen(ID, OTHER_PID, 9, WHEN))
    run, _ = step(run, OWN)
    run, do = step(run, Started(PID))
    assert (run.early, run.dead, do) == ((), True, Do.ASK)


@pytest.mark.parametrize("happening", [Look(), Died()])
def test_what_was_asked_while_starting_is_asked_when_started(happening: Happening) -> None:
    run, _ = step(STARTING, happening)
    assert step(run, Started(PID))[1] is Do.ASK


def ended(run: Run, *happenings: Happening) -> Run:
    for happening in happenings:
        run, _ = step(run, happening)
    assert run.phase is Phase.OVER
    return run


def test_the_code_is_what_the_deletion_says() -> None:
    run = ended(RUNNING, replace(OWN, code=9), Answered(Status.STOPPED), Removed(3, WHEN))
    assert (run.code, run.exited_at) == (3, WHEN)


@pytest.mark.parametrize("tries", [0, 1])
@pytest.mark.parametrize("status", [Status.STOPPED, None])
@pytest.mark.parametrize("told", [3, 137])
def test_no_event_is_believed_about_the_code(told: int, status: Status | None, tries: int) -> None:
    run = ended(RUNNING, replace(OWN, code=told), Answered(status), *[NotRemoved()] * tries, Removed())
    assert (run.code, run.exited_at) == (None, None)


@pytest.mark.parametrize(("code", "oom"), [(137, True), (0, False), (1, False), (None, False)])
def test_memory_killed_it_only_if_it_was_killed(code: int | None, oom: bool) -> None:
    assert ended(ENDING, Removed(code, WHEN, oom=True)).oom is oom
    assert ended(ENDING, Removed(code, WHEN, oom=False)).oom is False


@pytest.mark.parametrize("status", [*Status, None])
def test_what_may_live_is_never_replaced(status: Status | None) -> None:
    assert may_replace(status) == (status in (None, Status.CREATED, Status.STOPPED))


times = st.none() | st.integers(0, 9).map(lambda seconds: WHEN + timedelta(seconds=seconds))
codes = st.none() | st.sampled_from([0, 1, 3, 137])
happenings: st.SearchStrategy[Happening] = st.one_of(
    st.builds(Started, st.sampled_from([PID, None])),
    st.builds(GaveUp),
    st.builds(ExitSeen, st.sampled_from([ID, "exec"]), st.sampled_from([PID, OTHER_PID]), codes, times),
    st.builds(Died),
    st.builds(Look),
    st.builds(Answered, st.none() | st.sampled_from(Status)),
    st.builds(Unanswered),
    st.builds(Removed, codes, times, st.booleans()),
    st.builds(NotRemoved),
)


@given(st.lists(happenings, max_size=30))
def test_whatever_comes_an_exit_is_delivered_once_at_most_and_never_without_an_answer(order: list[Happening]) -> None:
    run = Run(ID)
    delivered = 0
    started = gave_up = answered = False
    for happening in order:
        before = run
        run, do = step(run, happening)
        started = started or (isinstance(happening, Started) and before.phase is Phase.STARTING)
        gave_up = gave_up or (isinstance(happening, GaveUp) and before.phase is Phase.STARTING)
        answered = answered or (
            started and isinstance(happening, Answered) and happening.status in (None, Status.STOPPED)
        )
        if do is Do.DELIVER:
            delivered += 1
            assert started, "delivered before it was started"
            assert not gave_up, "delivered though it never began"
            assert answered, "delivered without containerd's word"
            assert isinstance(happening, Removed)
        if before.phase is Phase.OVER:
            assert (run, do) == (before, Do.NOTHING)
        assert (run.phase is Phase.OVER) == bool(delivered or gave_up)
    assert delivered <= 1
    if run.code is not None:
        told = {it.code for it in order if isinstance(it, Removed)}
        assert run.code in told, "invented a code"

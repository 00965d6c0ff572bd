"""The decisions of a run, whatever happens in whatever order."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moorage.containerd.types import Status
from moorage.executor._machine import (
    Action,
    CheckRequested,
    ExitReported,
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
    is_replaceable,
    step,
)

pytestmark = pytest.mark.quick

ID, PID, OTHER_PID = "a", 7, 8
WHEN = datetime(2026, 1, 1, tzinfo=UTC)

OWN = ExitReported(ID, PID, 3, WHEN)
FOREIGN = {
    "of an added process": ExitReported("exec", PID, 3, WHEN),
    "of an earlier run": ExitReported(ID, OTHER_PID, 3, WHEN),
}

STARTING = RunState(ID)
PREPARED = RunState(ID, phase=Phase.PREPARED, pid=PID)
RUNNING = RunState(ID, phase=Phase.RUNNING, pid=PID)
EXITED = replace(RUNNING, phase=Phase.EXITED)
REMOVED = replace(RUNNING, phase=Phase.REMOVED, code=3)

# Every phase with every kind of event: the phase after it, and what is to be done.
TABLE: dict[tuple[Phase, type], tuple[Phase, Action]] = {
    (Phase.STARTING, Started): (Phase.RUNNING, Action.NOTHING),
    (Phase.STARTING, StartFailed): (Phase.REMOVED, Action.NOTHING),
    (Phase.STARTING, ExitReported): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, ProcessExited): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, CheckRequested): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, StatusKnown): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, StatusUnavailable): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, Removed): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, RemovalFailed): (Phase.STARTING, Action.NOTHING),
    (Phase.STARTING, Prepared): (Phase.PREPARED, Action.NOTHING),
    (Phase.STARTING, StartRequested): (Phase.STARTING, Action.NOTHING),
    (Phase.PREPARED, Prepared): (Phase.PREPARED, Action.NOTHING),
    (Phase.PREPARED, StartRequested): (Phase.STARTING, Action.NOTHING),
    (Phase.PREPARED, Started): (Phase.PREPARED, Action.NOTHING),
    (Phase.PREPARED, StartFailed): (Phase.REMOVED, Action.NOTHING),
    (Phase.PREPARED, ExitReported): (Phase.PREPARED, Action.QUERY),
    (Phase.PREPARED, ProcessExited): (Phase.PREPARED, Action.QUERY),
    (Phase.PREPARED, CheckRequested): (Phase.PREPARED, Action.QUERY),
    (Phase.PREPARED, StatusKnown): (Phase.REMOVED, Action.DISCARD),
    (Phase.PREPARED, StatusUnavailable): (Phase.PREPARED, Action.NOTHING),
    (Phase.PREPARED, Removed): (Phase.PREPARED, Action.NOTHING),
    (Phase.PREPARED, RemovalFailed): (Phase.PREPARED, Action.NOTHING),
    (Phase.RUNNING, Prepared): (Phase.RUNNING, Action.NOTHING),
    (Phase.RUNNING, StartRequested): (Phase.RUNNING, Action.NOTHING),
    (Phase.EXITED, Prepared): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, StartRequested): (Phase.EXITED, Action.NOTHING),
    (Phase.RUNNING, Started): (Phase.RUNNING, Action.NOTHING),
    (Phase.RUNNING, StartFailed): (Phase.RUNNING, Action.NOTHING),
    (Phase.RUNNING, ExitReported): (Phase.RUNNING, Action.QUERY),
    (Phase.RUNNING, ProcessExited): (Phase.RUNNING, Action.QUERY),
    (Phase.RUNNING, CheckRequested): (Phase.RUNNING, Action.QUERY),
    (Phase.RUNNING, StatusKnown): (Phase.EXITED, Action.REMOVE),
    (Phase.RUNNING, StatusUnavailable): (Phase.RUNNING, Action.NOTHING),
    (Phase.RUNNING, Removed): (Phase.RUNNING, Action.NOTHING),
    (Phase.RUNNING, RemovalFailed): (Phase.RUNNING, Action.NOTHING),
    (Phase.EXITED, Started): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, StartFailed): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, ExitReported): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, ProcessExited): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, CheckRequested): (Phase.EXITED, Action.REMOVE),
    (Phase.EXITED, StatusKnown): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, StatusUnavailable): (Phase.EXITED, Action.NOTHING),
    (Phase.EXITED, Removed): (Phase.REMOVED, Action.DELIVER),
    (Phase.EXITED, RemovalFailed): (Phase.EXITED, Action.REMOVE_LATER),
    **{
        (Phase.REMOVED, kind): (Phase.REMOVED, Action.NOTHING)
        for kind in (
            Prepared,
            StartRequested,
            Started,
            StartFailed,
            ExitReported,
            ProcessExited,
            CheckRequested,
            StatusKnown,
            StatusUnavailable,
            Removed,
            RemovalFailed,
        )
    },
}
RUNS = {
    Phase.STARTING: STARTING,
    Phase.PREPARED: PREPARED,
    Phase.RUNNING: RUNNING,
    Phase.EXITED: EXITED,
    Phase.REMOVED: REMOVED,
}
ONE_OF_EACH: dict[type, RunEvent] = {
    Prepared: Prepared(PID),
    StartRequested: StartRequested(),
    Started: Started(PID),
    StartFailed: StartFailed(),
    ExitReported: OWN,
    ProcessExited: ProcessExited(),
    CheckRequested: CheckRequested(),
    StatusKnown: StatusKnown(Status.STOPPED),
    StatusUnavailable: StatusUnavailable(),
    Removed: Removed(3, WHEN),
    RemovalFailed: RemovalFailed(),
}


@pytest.mark.parametrize(
    ("phase", "kind"),
    list(product(Phase, ONE_OF_EACH)),
    ids=lambda it: it.name if isinstance(it, Phase) else it.__name__,
)
def test_every_phase_handles_every_event(phase: Phase, kind: type) -> None:
    run, do = step(RUNS[phase], ONE_OF_EACH[kind])
    assert (run.phase, do) == TABLE[phase, kind]
    if phase is Phase.REMOVED:
        assert run == REMOVED


@pytest.mark.parametrize(
    ("status", "phase", "do"),
    [
        (Status.RUNNING, Phase.RUNNING, Action.NOTHING),
        (Status.PAUSED, Phase.RUNNING, Action.NOTHING),
        (Status.PAUSING, Phase.RUNNING, Action.NOTHING),
        (Status.CREATED, Phase.RUNNING, Action.NOTHING),
        (Status.UNKNOWN, Phase.RUNNING, Action.NOTHING),
        (Status.STOPPED, Phase.EXITED, Action.REMOVE),
        (None, Phase.EXITED, Action.REMOVE),
    ],
)
def test_only_stopped_and_missing_end_a_run(status: Status | None, phase: Phase, do: Action) -> None:
    run, done = step(RUNNING, StatusKnown(status))
    assert (run.phase, done) == (phase, do)


@pytest.mark.parametrize("event", [StatusKnown(Status.RUNNING), StatusKnown(Status.UNKNOWN), StatusUnavailable()])
@pytest.mark.parametrize("hint", [ProcessExited(), OWN])
def test_a_process_reported_dead_is_queried_until_containerd_confirms_it(hint: RunEvent, event: RunEvent) -> None:
    dead, _ = step(RUNNING, hint)
    assert step(dead, event) == (dead, Action.QUERY_LATER)


@pytest.mark.parametrize("seen", list(FOREIGN.values()), ids=list(FOREIGN))
@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.EXITED])
def test_an_exit_of_something_else_changes_nothing(seen: ExitReported, phase: Phase) -> None:
    assert step(RUNS[phase], seen) == (RUNS[phase], Action.NOTHING)


@pytest.mark.parametrize("seen", list(FOREIGN.values()), ids=list(FOREIGN))
def test_an_exit_of_something_else_while_starting_is_not_taken_for_its_own(seen: ExitReported) -> None:
    run, _ = step(STARTING, seen)
    run, do = step(run, Started(PID))
    assert (run.phase, run.dead, do) == (Phase.RUNNING, False, Action.NOTHING)


def test_an_exit_before_the_pid_is_known_is_queried_at_once() -> None:
    run, _ = step(STARTING, ExitReported(ID, OTHER_PID, 9, WHEN))
    run, _ = step(run, OWN)
    run, do = step(run, Started(PID))
    assert (run.early_pids, run.dead, do) == ((), True, Action.QUERY)


@pytest.mark.parametrize("event", [CheckRequested(), ProcessExited()])
def test_what_was_requested_while_starting_is_done_when_started(event: RunEvent) -> None:
    run, _ = step(STARTING, event)
    assert step(run, Started(PID))[1] is Action.QUERY


@pytest.mark.parametrize("hint", [ProcessExited(), OWN])
def test_e17_an_exit_that_is_reported_of_a_prepared_process_is_not_forgotten_by_its_start(hint: RunEvent) -> None:
    run, _ = step(PREPARED, hint)
    assert step(run, StatusKnown(Status.UNKNOWN)) == (run, Action.QUERY_LATER)
    run, _ = step(run, StartRequested())
    assert step(run, Started(PID))[1] is Action.QUERY


@pytest.mark.parametrize("status", [Status.CREATED, Status.RUNNING, Status.PAUSED, Status.UNKNOWN])
def test_e17_only_stopped_and_missing_discard_what_is_prepared(status: Status) -> None:
    assert step(PREPARED, StatusKnown(status)) == (PREPARED, Action.NOTHING)
    assert step(PREPARED, StatusKnown(None))[1] is Action.DISCARD


def test_e17_an_exit_before_the_pid_of_a_prepared_process_is_known_is_queried_at_once() -> None:
    run, _ = step(STARTING, OWN)
    assert step(run, Prepared(PID))[1] is Action.QUERY


def finished(run: RunState, *events: RunEvent) -> RunState:
    for event in events:
        run, _ = step(run, event)
    assert run.phase is Phase.REMOVED
    return run


def test_the_code_is_what_the_deletion_says() -> None:
    run = finished(RUNNING, replace(OWN, code=9), StatusKnown(Status.STOPPED), Removed(3, WHEN))
    assert (run.code, run.exited_at) == (3, WHEN)


@pytest.mark.parametrize("tries", [0, 1])
@pytest.mark.parametrize("status", [Status.STOPPED, None])
@pytest.mark.parametrize("exit_code", [3, 137])
def test_no_event_is_believed_about_the_code(exit_code: int, status: Status | None, tries: int) -> None:
    run = finished(RUNNING, replace(OWN, code=exit_code), StatusKnown(status), *[RemovalFailed()] * tries, Removed())
    assert (run.code, run.exited_at) == (None, None)


@pytest.mark.parametrize(("code", "oom"), [(137, True), (0, False), (1, False), (None, False)])
def test_memory_killed_it_only_if_it_was_killed(code: int | None, oom: bool) -> None:
    assert finished(EXITED, Removed(code, WHEN, oom=True)).oom is oom
    assert finished(EXITED, Removed(code, WHEN, oom=False)).oom is False


@pytest.mark.parametrize("status", [*Status, None])
def test_what_may_live_is_never_replaced(status: Status | None) -> None:
    assert is_replaceable(status) == (status in (None, Status.CREATED, Status.STOPPED))


times = st.none() | st.integers(0, 9).map(lambda seconds: WHEN + timedelta(seconds=seconds))
codes = st.none() | st.sampled_from([0, 1, 3, 137])
events: st.SearchStrategy[RunEvent] = st.one_of(
    st.builds(Started, st.sampled_from([PID, None])),
    st.builds(StartFailed),
    st.builds(Prepared, st.just(PID)),
    st.builds(StartRequested),
    st.builds(ExitReported, st.sampled_from([ID, "exec"]), st.sampled_from([PID, OTHER_PID]), codes, times),
    st.builds(ProcessExited),
    st.builds(CheckRequested),
    st.builds(StatusKnown, st.none() | st.sampled_from(Status)),
    st.builds(StatusUnavailable),
    st.builds(Removed, codes, times, st.booleans()),
    st.builds(RemovalFailed),
)


@given(st.lists(events, max_size=30))
def test_whatever_comes_an_exit_is_delivered_once_at_most_and_never_without_an_answer(order: list[RunEvent]) -> None:
    run = RunState(ID)
    delivered = 0
    started = gave_up = answered = False
    for event in order:
        before = run
        run, do = step(run, event)
        started = started or (isinstance(event, Started) and before.phase is Phase.STARTING)
        never = isinstance(event, StartFailed) and before.phase in (Phase.STARTING, Phase.PREPARED)
        gave_up = gave_up or never or do is Action.DISCARD
        answered = answered or (started and isinstance(event, StatusKnown) and event.status in (None, Status.STOPPED))
        if do is Action.DELIVER:
            delivered += 1
            assert started, "delivered before it was started"
            assert not gave_up, "delivered though it never began"
            assert answered, "delivered without containerd's word"
            assert isinstance(event, Removed)
        if before.phase is Phase.REMOVED:
            assert (run, do) == (before, Action.NOTHING)
        assert (run.phase is Phase.REMOVED) == bool(delivered or gave_up)
    assert delivered <= 1
    if run.code is not None:
        exit_code = {it.code for it in order if isinstance(it, Removed)}
        assert run.code in exit_code, "invented a code"

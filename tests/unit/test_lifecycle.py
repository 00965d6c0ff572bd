"""The state table: what may follow what, and how long is waited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.engine.lifecycle import (
    BACK_OFF_FIRST,
    BACK_OFF_LIMIT,
    STEADY_AFTER,
    TRANSITIONS,
    Event,
    ExitAction,
    LifecycleState,
    RestartPolicy,
    Restarts,
    Restoration,
    State,
    after_exit,
    back_off,
    exit_action,
    move,
    restoration,
)


def test_m01_every_state_has_a_row_and_every_event_a_use() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_m01_any_order_of_events_is_a_walk_in_the_table_or_a_conflict(events: list[Event]) -> None:
    life = LifecycleState()
    for event in events:
        if event in TRANSITIONS[life.state]:
            after = move(life, event)
            assert after.state is TRANSITIONS[life.state][event]
            life = after
        else:
            with pytest.raises(errors.Conflict, match=life.state.value):
                move(life, event)


def test_m01_from_every_state_but_removing_a_stop_leads_to_disabled() -> None:
    for state in set(State) - {State.REMOVING}:
        stopping = move(LifecycleState(state, failures=3), Event.STOP)
        assert move(stopping, Event.STOPPED) == LifecycleState(State.DISABLED, failures=0)


def test_m01_nothing_leads_out_of_removing() -> None:
    assert set(TRANSITIONS[State.REMOVING].values()) == {State.REMOVING}


def test_m05_pauses_double_from_none_up_to_a_minute() -> None:
    assert [back_off(failures) for failures in (0, 1, 2, 3, 4)] == [0.0, 0.0, 0.1, 0.2, 0.4]
    assert BACK_OFF_FIRST == 0.1
    assert back_off(11) == pytest.approx(51.2)
    assert {back_off(failures) for failures in (12, 100, 10_000)} == {BACK_OFF_LIMIT}


def test_case_005_a_plugin_that_lives_a_second_is_started_at_most_14_times_in_two_minutes() -> None:
    at, starts, life = 0.0, 1, LifecycleState(State.READY)
    while True:
        at += 1.0
        life = after_exit(life, RestartPolicy(), is_failure=True, ready_seconds=1.0)
        at += back_off(life.failures) * 0.5  # the shortest that jitter makes of it
        if at > 120:
            break
        starts += 1
        life = LifecycleState(State.READY, life.failures)
    assert starts <= 14


def test_m05_ten_seconds_ready_begin_a_new_row() -> None:
    ready = LifecycleState(State.READY, failures=7)
    exited = after_exit(ready, RestartPolicy(), is_failure=True, ready_seconds=STEADY_AFTER)
    assert exited == LifecycleState(State.RESTARTING, failures=1)
    exited = after_exit(
        LifecycleState(State.READY, failures=7), RestartPolicy(), is_failure=True, ready_seconds=STEADY_AFTER - 0.1
    )
    assert exited == LifecycleState(State.RESTARTING, failures=8)


@pytest.mark.parametrize(
    ("policy", "is_failure", "failures", "after"),
    [
        (RestartPolicy(), False, 0, State.RESTARTING),
        (RestartPolicy(Restarts.NEVER), True, 0, State.FAILED),
        (RestartPolicy(Restarts.ON_FAILURE), False, 0, State.FAILED),
        (RestartPolicy(Restarts.ON_FAILURE), True, 0, State.RESTARTING),
        (RestartPolicy(most=2), True, 1, State.RESTARTING),
        (RestartPolicy(most=2), True, 2, State.FAILED),
    ],
)
def test_m05_the_policy_decides(policy: RestartPolicy, is_failure: bool, failures: int, after: State) -> None:
    exited = after_exit(LifecycleState(State.READY, failures), policy, is_failure=is_failure, ready_seconds=0.0)
    assert (exited.state, exited.failures) == (after, failures + 1)


@pytest.mark.parametrize("state", State)
def test_m12_an_exit_is_handled_where_no_job_handles_it(state: State) -> None:
    expected = {State.READY: ExitAction.RESTART, State.STOPPING: ExitAction.FINISH_STOP}
    assert exit_action(state) is expected.get(state, ExitAction.NONE)


@pytest.mark.parametrize(
    ("is_removing", "is_on_trial", "is_enabled", "has_container", "start", "expected"),
    [
        (True, True, False, True, True, Restoration.FINISH_REMOVAL),
        (False, True, True, True, True, Restoration.ROLL_BACK),
        (False, True, False, False, False, Restoration.ROLL_BACK),
        (False, False, True, True, True, Restoration.TAKE_OVER),
        (False, False, True, True, False, Restoration.TAKE_OVER),  # to be stopped
        (False, False, True, False, True, Restoration.START),
        (False, False, True, False, False, Restoration.CLEAN_UP),
        (False, False, False, True, True, Restoration.CLEAN_UP),  # an orphan of a disable that was cut off
    ],
)
def test_m16_what_an_engine_does_with_a_plugin_when_it_starts(
    is_removing: bool, is_on_trial: bool, is_enabled: bool, has_container: bool, start: bool, expected: Restoration
) -> None:
    found = restoration(
        is_removing=is_removing,
        is_on_trial=is_on_trial,
        is_enabled=is_enabled,
        has_container=has_container,
        start=start,
    )
    assert found is expected

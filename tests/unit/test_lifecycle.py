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
    Life,
    RestartPolicy,
    Restarts,
    State,
    after_end,
    back_off,
    move,
)


def test_m01_every_state_has_a_row_and_every_event_a_use() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_m01_any_order_of_events_is_a_walk_in_the_table_or_a_conflict(events: list[Event]) -> None:
    life = Life()
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
        stopping = move(Life(state, failures=3), Event.STOP)
        assert move(stopping, Event.STOPPED) == Life(State.DISABLED, failures=0)


def test_m01_nothing_leads_out_of_removing() -> None:
    assert set(TRANSITIONS[State.REMOVING].values()) == {State.REMOVING}


def test_m05_pauses_double_from_none_up_to_a_minute() -> None:
    assert [back_off(failures) for failures in (0, 1, 2, 3, 4)] == [0.0, 0.0, 0.1, 0.2, 0.4]
    assert BACK_OFF_FIRST == 0.1
    assert back_off(11) == pytest.approx(51.2)
    assert {back_off(failures) for failures in (12, 100, 10_000)} == {BACK_OFF_LIMIT}


def test_case_005_a_plugin_that_lives_a_second_is_started_at_most_14_times_in_two_minutes() -> None:
    at, starts, life = 0.0, 1, Life(State.READY)
    while True:
        at += 1.0
        life = after_end(life, RestartPolicy(), is_failure=True, ready_seconds=1.0)
        at += back_off(life.failures) * 0.5  # the shortest that jitter makes of it
        if at > 120:
            break
        starts += 1
        life = Life(State.READY, life.failures)
    assert starts <= 14


def test_m05_ten_seconds_ready_begin_a_new_row() -> None:
    ended = after_end(Life(State.READY, failures=7), RestartPolicy(), is_failure=True, ready_seconds=STEADY_AFTER)
    assert ended == Life(State.RESTARTING, failures=1)
    ended = after_end(Life(State.READY, failures=7), RestartPolicy(), is_failure=True, ready_seconds=STEADY_AFTER - 0.1)
    assert ended == Life(State.RESTARTING, failures=8)


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
    ended = after_end(Life(State.READY, failures), policy, is_failure=is_failure, ready_seconds=0.0)
    assert (ended.state, ended.failures) == (after, failures + 1)

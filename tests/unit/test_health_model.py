"""The decisions of health checks."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.health.model import (
    HealthCheck,
    HealthPolicy,
    HealthResult,
    HealthState,
    HealthStatus,
    after_result,
    check_health_policy,
    next_pause,
)

CONNECT = HealthCheck("connect")
POLICY = HealthPolicy((CONNECT,), interval=30, start_period=10, failures=3)


def result(*, is_passed: bool, text: str = "") -> HealthResult:
    return HealthResult(datetime.now(UTC), 0.01, is_passed, text)


def follow(policy: HealthPolicy, *results: tuple[float, bool]) -> HealthState:
    state = HealthState()
    for seconds, is_passed in results:
        state = after_result(policy, state, result(is_passed=is_passed), seconds)
    return state


def test_h02_a_plugin_is_starting_until_a_check_has_passed() -> None:
    assert HealthState().status is HealthStatus.STARTING
    assert follow(POLICY, (0, True)).status is HealthStatus.HEALTHY


def test_h01_failures_in_the_start_period_do_not_count() -> None:
    assert follow(POLICY, *[(second, False) for second in range(10)]).failures == 0
    assert follow(POLICY, (9.9, False), (10, False), (11, False)).status is HealthStatus.STARTING
    assert follow(POLICY, (10, False), (11, False), (12, False)).status is HealthStatus.UNHEALTHY


def test_h01_a_failure_in_the_start_period_counts_once_a_check_has_passed() -> None:
    state = follow(POLICY, (1, True), (2, False), (3, False), (4, False))
    assert state.status is HealthStatus.UNHEALTHY
    assert state.was_healthy


def test_h01_a_plugin_is_unhealthy_after_exactly_the_configured_failures() -> None:
    for failures in (1, 2, 5):
        policy = HealthPolicy((CONNECT,), start_period=0, failures=failures)
        assert follow(policy, *[(1, False)] * (failures - 1)).status is HealthStatus.STARTING
        assert follow(policy, *[(1, False)] * failures).status is HealthStatus.UNHEALTHY


def test_h02_a_check_that_passes_makes_an_unhealthy_plugin_healthy() -> None:
    state = follow(POLICY, *[(20, False)] * 5, (21, True))
    assert (state.status, state.failures) == (HealthStatus.HEALTHY, 0)


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=40))
def test_h02_the_last_five_results_are_shown(results: list[tuple[float, bool]]) -> None:
    state = follow(POLICY, *results)
    assert [each.is_passed for each in state.results] == [is_passed for _, is_passed in results][-5:]
    if results and results[-1][1]:
        assert state.status is HealthStatus.HEALTHY
    if state.status is HealthStatus.UNHEALTHY:
        assert not any(is_passed for _, is_passed in results[-POLICY.failures :])


def test_h05_checks_come_quickly_until_the_first_one_has_passed() -> None:
    assert next_pause(POLICY, HealthState()) == 1
    assert next_pause(POLICY, HealthState(HealthStatus.HEALTHY)) == 30
    assert next_pause(POLICY, HealthState(HealthStatus.UNHEALTHY)) == 30


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (HealthPolicy((HealthCheck("call"),)), "needs a method"),
        (HealthPolicy((HealthCheck("call", "a b"),)), "needs a method"),
        (HealthPolicy((HealthCheck("command"),)), "needs a command"),
        (HealthPolicy((CONNECT,), interval=0), "the interval of a health check cannot be 0 s"),
        (HealthPolicy((CONNECT,), timeout=float("nan")), "the timeout of a health check cannot be nan s"),
        (HealthPolicy((CONNECT,), start_period=-1), "start period"),
        (HealthPolicy((CONNECT,), failures=0), "after 0 failed checks"),
    ],
)
def test_h01_a_policy_that_no_plugin_can_have_is_refused(policy: HealthPolicy, text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        check_health_policy(policy)

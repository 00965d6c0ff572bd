"""What health checks decide: the policy, the status after each check, and what an unhealthy plugin leads to. Pure.

Ready means that a socket accepted once; a driver whose back end is gone still accepts. The status has the words of
Docker's and podman's health checks. Times are seconds. Source: rows H01 to H05.
"""

from datetime import datetime
from enum import Enum
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors

__all__ = (
    "NO_HEALTH",
    "HealthAction",
    "HealthCheck",
    "HealthPolicy",
    "HealthResult",
    "HealthState",
    "HealthStatus",
    "after_result",
    "check_health_policy",
    "next_pause",
)

_SHOWN = 5
"""Results of a plugin that are shown."""
_STARTING_PAUSE = 1.0
"""Longest pause between two checks until the first one has passed, so that a caller does not wait for the interval."""
_MOST_SECONDS = 86400.0
_MOST_FAILURES = 1000
_LEAST_INTERVAL = 1.0

HealthAction = Literal["none", "kill", "restart"]
"""What follows when a plugin becomes unhealthy: nothing, SIGKILL (its restart policy decides what follows), a stop and
a start that counts as a restart."""


class HealthStatus(Enum):
    """Whether a plugin works."""

    STARTING = "starting"
    """No check has passed since it became ready, and too few have failed."""
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class HealthCheck(Struct, frozen=True):
    """One check. It passes where every part of it passes."""

    kind: Literal["connect", "call", "command"]
    """``connect``: the socket accepts a connection. ``call``: the plugin answers a call with 200 and without an error.
    ``command``: a process inside the plugin exits with 0."""
    method: str = ""
    """Of a call: ``VolumeDriver.List``."""
    command: tuple[str, ...] = ()


class HealthPolicy(Struct, frozen=True):
    """Which checks a plugin has, and what follows from them."""

    checks: tuple[HealthCheck, ...] = ()
    interval: float = 30.0
    timeout: float = 5.0
    """Of each check; one that takes longer has failed."""
    start_period: float = 10.0
    """From ready; failures in it do not count, unless a check has passed before."""
    failures: int = 3
    """In a row, until it is unhealthy."""
    on_failure: HealthAction = "none"


NO_HEALTH = HealthPolicy()


class HealthResult(Struct, frozen=True):
    """One check that was made."""

    at: datetime
    seconds: float
    is_passed: bool
    text: str
    """Why it failed, or what it printed; empty where there is nothing to say."""


class HealthState(Struct, frozen=True):
    """What is known of a plugin's health since it became ready."""

    status: HealthStatus = HealthStatus.STARTING
    failures: int = 0
    """That counted, in a row."""
    results: tuple[HealthResult, ...] = ()
    """The last five, the newest last."""
    was_healthy: bool = False
    """Whether a check has passed since it became ready."""


def after_result(policy: HealthPolicy, state: HealthState, result: HealthResult, ready_seconds: float) -> HealthState:
    """The state after a check that began when the plugin had been ready for this long."""
    results = (*state.results, result)[-_SHOWN:]
    if result.is_passed:
        return HealthState(HealthStatus.HEALTHY, 0, results, was_healthy=True)
    if not state.was_healthy and ready_seconds < policy.start_period:
        return replace(state, results=results)
    failures = state.failures + 1
    status = HealthStatus.UNHEALTHY if failures >= policy.failures else state.status
    return replace(state, status=status, failures=failures, results=results)


def next_pause(policy: HealthPolicy, state: HealthState) -> float:
    """Seconds from the end of a check to the next one."""
    if state.status is HealthStatus.STARTING:
        return min(policy.interval, _STARTING_PAUSE)
    return policy.interval


def check_health_policy(policy: HealthPolicy) -> None:
    """Raises: Invalid for a policy that no plugin can have."""
    for check in policy.checks:
        if check.kind == "call" and (not check.method or any(each.isspace() for each in check.method)):
            raise errors.Invalid("a health check by a call needs a method, as in VolumeDriver.List")
        if check.kind == "command" and not any(check.command):
            raise errors.Invalid("a health check by a command needs a command")
    for name, value, least in (
        ("interval", policy.interval, _LEAST_INTERVAL),
        ("timeout", policy.timeout, 0.1),
        ("start period", policy.start_period, 0.0),
    ):
        if not least <= value <= _MOST_SECONDS:
            raise errors.Invalid(
                f"the {name} of a health check cannot be {value:g} s: {least:g} to {_MOST_SECONDS:g} are possible"
            )
    if not 1 <= policy.failures <= _MOST_FAILURES:
        raise errors.Invalid(
            f"a plugin cannot be unhealthy after {policy.failures} failed checks: 1 to {_MOST_FAILURES} are possible"
        )

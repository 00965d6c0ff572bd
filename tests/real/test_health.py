"""Health checks of plugins on a real engine."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import EngineProcess, Refused, config, engine
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

QUICK = {"Interval": 1, "Timeout": 0.5, "StartPeriod": 0, "Failures": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("health")) as running:
        yield running


@pytest.fixture
def name(made: EngineProcess, request: pytest.FixtureRequest) -> Iterator[str]:
    found = f"p{abs(hash(request.node.name)) % 10**8}"
    yield found
    if any(each["Name"].startswith(found) for each in made.plugins()):
        made.remove(found, force=True)


def add(made: EngineProcess, name: str, *arguments: str, **health: Any) -> None:
    """A plugin that is enabled, with these health checks."""
    made.create(name, config(*arguments))
    made.request_own("PUT", name, "policy", {"health": {**QUICK, **health}})
    made.enable(name)


def status(made: EngineProcess, name: str) -> str:
    health = made.more(name)["Health"]
    return str(health["Status"]) if health else ""


def events(made: EngineProcess, name: str, since: float) -> list[str]:
    _, raw = made.request("GET", f"/events?since={since:.6f}&until={time.time():.6f}")
    found = [json.loads(line) for line in raw.splitlines()]
    return [each["Action"] for each in found if each["Actor"]["Attributes"]["name"].startswith(name)]


CALL = {"Kind": "call", "Method": "health"}


def command(*words: str) -> dict[str, object]:
    return {"Kind": "command", "Command": ["/actor", *words]}


@pytest.mark.parametrize("check", [{"Kind": "connect"}, CALL, command("end=0")], ids=["connect", "call", "command"])
def test_h01_h02_a_plugin_whose_checks_pass_is_healthy(
    made: EngineProcess, name: str, check: dict[str, object]
) -> None:
    since = time.time()
    add(made, name, Checks=[check])
    made.wait_until(lambda: status(made, name) == "healthy", "it is healthy")
    health = made.more(name)["Health"]
    assert health["FailingStreak"] == 0
    assert health["Log"][-1]["ExitCode"] == 0
    assert "health_status: healthy" in events(made, name, since)


def test_h01_a_plugin_has_no_checks_by_default(made: EngineProcess, name: str) -> None:
    made.create(name)
    made.enable(name)
    assert made.more(name)["Health"] is None
    assert made.more(name)["Policy"]["Health"]["Checks"] == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("check", "text"),
    [
        ({"Kind": "call", "Method": "err/sick"}, "err/sick: sick"),
        (command("err=it hurts", "end=7"), "/actor: exit status 7: it hurts"),
        (command("never"), "/actor: no result within 0.5 s"),
        ({"Kind": "command", "Command": ["/nothing"]}, "cannot run /nothing"),
    ],
)
def test_h01_h02_a_plugin_is_unhealthy_after_exactly_so_many_failures(
    made: EngineProcess, name: str, check: dict[str, object], text: str
) -> None:
    since = time.time()
    add(made, name, Checks=[check])
    made.wait_until(lambda: status(made, name) == "unhealthy", "it is unhealthy")
    health = made.more(name)["Health"]
    assert [each["Output"] for each in health["Log"] if text not in each["Output"]] == []
    assert health["FailingStreak"] >= 3
    assert events(made, name, since).count("health_status: unhealthy") == 1
    assert made.state(name) == "ready"  # nothing follows by default
    assert made.more(name)["Restarts"] == 0


def test_h03_h04_one_that_accepts_and_never_answers_is_restarted_and_delays_no_other(
    made: EngineProcess, name: str
) -> None:
    other = f"{name}other"
    add(made, other, Checks=[CALL])
    add(made, name, "wedge", Checks=[CALL], OnFailure="restart")
    pid = made.more(name)["Pid"]
    since = time.time()
    made.until_restarted(name, 1)
    assert made.more(name)["Pid"] != pid
    more = made.more(name)
    assert "unhealthy: health: no result within 0.5 s" in more["LastExit"]["Error"]
    done = events(made, name, since)
    assert done.index("health_status: unhealthy") < done.index("restart")
    made.wait_until(lambda: len(made.more(other)["Health"]["Log"]) == 5, "five checks of the other one")
    log = made.more(other)["Health"]["Log"]
    assert {each["ExitCode"] for each in log} == {0}
    made.remove(other, force=True)


def test_h03_restarts_for_health_have_a_back_off(made: EngineProcess, name: str) -> None:
    add(made, name, "sick=1", Checks=[CALL], Failures=1, OnFailure="restart")
    made.wait_until(lambda: made.more(name)["Restarts"] >= 4, "four restarts")
    _, raw = made.request("GET", f"/events?since=0&until={time.time():.6f}")
    assert b'"backoff"' in raw


def test_h03_kill_leaves_the_rest_to_the_restart_policy(made: EngineProcess, name: str) -> None:
    made.create(name, config("sick=1"))
    made.request_own(
        "PUT", name, "policy", {"restarts": "never", "health": {**QUICK, "Checks": [CALL], "OnFailure": "kill"}}
    )
    made.enable(name)
    made.until(name, "failed")
    assert made.more(name)["LastExit"]["Signal"] == "SIGKILL"
    assert made.more(name)["Health"] is None


def test_h03_a_plugin_that_recovers_is_healthy_again(made: EngineProcess, name: str) -> None:
    add(made, name, "sick=2", Checks=[CALL], Failures=1, OnFailure="restart")
    made.until_restarted(name, 1)  # the first check passes, the second fails, and a new process answers again
    made.wait_until(lambda: status(made, name) == "healthy", "it is healthy again")


def test_h01_a_change_of_the_checks_applies_at_once(made: EngineProcess, name: str) -> None:
    add(made, name, Checks=[{"Kind": "call", "Method": "err/sick"}])
    made.wait_until(lambda: status(made, name) == "unhealthy", "it is unhealthy")
    made.request_own("PUT", name, "policy", {"health": {"Checks": [CALL]}})
    made.wait_until(lambda: status(made, name) == "healthy", "it is healthy")
    made.request_own("PUT", name, "policy", {"health": {"Checks": []}})
    assert made.more(name)["Health"] is None


def test_h01_checks_stay_over_a_restart_of_the_engine(tmp_path: Path) -> None:
    with engine(tmp_path) as own:
        add(own, "p", Checks=[CALL])
        own.end()
        own.start()
        own.until("p", "ready")
        own.wait_until(lambda: status(own, "p") == "healthy", "it is healthy")


@pytest.mark.parametrize(
    ("health", "text"),
    [
        ({"Interval": 0.5}, "the interval of a health check cannot be 0.5 s: 1 to 86400 are possible"),
        ({"Failures": 0}, "after 0 failed checks"),
        ({"Checks": [{"Kind": "call"}]}, "needs a method"),
        ({"Checks": [{"Kind": "dream"}]}, "dream"),
        ({"OnFailure": "explode"}, "explode"),
    ],
)
def test_h01_checks_that_cannot_be_are_refused(
    made: EngineProcess, name: str, health: dict[str, object], text: str
) -> None:
    made.create(name)
    with pytest.raises(Refused, match=r"^400: ") as refused:
        made.request_own("PUT", name, "policy", {"health": health})
    assert text in refused.value.message
    assert made.more(name)["Policy"]["Health"]["Checks"] == []


def test_h05_wait_returns_when_it_is_healthy_or_with_the_reason(made: EngineProcess, name: str) -> None:
    add(made, name, Checks=[CALL])
    made.request_own("POST", name, "wait?timeout=30")
    assert status(made, name) == "healthy"
    made.request_own("PUT", name, "policy", {"health": {"Checks": [{"Kind": "call", "Method": "err/sick"}]}})
    with pytest.raises(Refused, match=r"is unhealthy: err/sick: sick"):
        made.request_own("POST", name, "wait?timeout=30")
    made.request_own("PUT", name, "policy", {"health": {"Checks": [command("never")], "Timeout": limit(60)}})
    with pytest.raises(Refused, match=r"is not healthy after 0\.3 s"):
        made.request_own("POST", name, "wait?timeout=0.3")
    made.disable(name)
    with pytest.raises(Refused, match=r"^409: .*it is disabled"):
        made.request_own("POST", name, "wait?timeout=30")


def test_h04_no_check_runs_while_it_stops(made: EngineProcess, name: str) -> None:
    add(made, name, "ignore-term", Checks=[CALL], Failures=1, OnFailure="restart")
    made.wait_until(lambda: status(made, name) == "healthy", "it is healthy")
    made.request_own("PUT", name, "policy", {"stop_timeout": 3})
    made.disable(name)
    assert made.state(name) == "disabled"
    assert made.more(name)["Health"] is None
    assert made.more(name)["Restarts"] == 0

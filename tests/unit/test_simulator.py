from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.containerd.types import Status
from moorage.executor import _machine as machine
from moorage.executor._machine import Action, Phase, RunEvent, RunState
from support import simulate, simulator, traces
from support.simulator import Violation

SCHEDULES = 10_000
TRACES = sorted((Path(__file__).parents[1] / "data" / "traces").glob("*.json"))

Step = Callable[[RunState, RunEvent], tuple[RunState, Action]]


def test_e43_no_promise_is_broken_in_any_schedule() -> None:
    events, failures = simulator.play_many(range(SCHEDULES))
    assert not failures, f"again, in words: scripts/simulate --seed {failures[0][0]}"
    assert events > SCHEDULES


def play_all() -> None:
    for seed in range(SCHEDULES):
        simulator.play(seed)


def test_a_schedule_is_the_same_every_time() -> None:
    reported: list[list[str]] = [[], []]
    for lines in reported:
        simulator.play(7, lines.append)
    assert reported[0] == reported[1]


def believes_events(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        if isinstance(event, machine.ExitReported) and run.phase is Phase.RUNNING:
            return step(run, machine.StatusKnown(Status.STOPPED))
        return step(run, event)

    return broken


def takes_silence_for_an_exit(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        return step(run, machine.StatusKnown(None) if isinstance(event, machine.StatusUnavailable) else event)

    return broken


def never_polls(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        return (run, Action.NOTHING) if isinstance(event, machine.CheckRequested) else step(run, event)

    return broken


def reports_again(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        again = run.phase is Phase.REMOVED and run.pid is not None and isinstance(event, machine.CheckRequested)
        return (run, Action.DELIVER) if again else step(run, event)

    return broken


def reports_what_was_not_started(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        after, do = step(run, event)
        return after, Action.DELIVER if do is Action.DISCARD else do

    return broken


def leaves_what_was_not_started(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        after, do = step(run, event)
        return after, Action.NOTHING if do is Action.DISCARD else do

    return broken


def discards_at_each_hint(step: Step) -> Step:
    def broken(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        is_hint = run.phase is Phase.PREPARED and isinstance(event, machine.ProcessExited)
        return step(run, machine.StatusKnown(None) if is_hint else event)

    return broken


WRONG = [
    *(believes_events, takes_silence_for_an_exit, never_polls, reports_again),
    *(reports_what_was_not_started, leaves_what_was_not_started, discards_at_each_hint),
]


@pytest.mark.parametrize("break_it", WRONG)
def test_a_machine_that_is_wrong_is_caught(break_it: Callable[[Step], Step], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "step", break_it(machine.step))
    with pytest.raises(Violation):
        play_all()


def test_the_command_plays_many_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--schedules", "200"]) == 0
    assert "200 schedules" in capsys.readouterr().out
    assert simulate.main(["--seed", "3"]) == 0
    assert "every promise holds" in capsys.readouterr().out


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_real_run_played_again_is_decided_as_it_was(path: Path) -> None:
    for trace in traces.read(path):
        traces.replay(trace)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_case_101_doubled_hints_in_a_real_run_deliver_nothing_twice(path: Path) -> None:
    for trace in traces.read(path):
        run, delivered = RunState(trace.id), 0
        for event, _ in trace.steps:
            hints = 1 + isinstance(event, machine.ExitReported | machine.ProcessExited | machine.CheckRequested)
            for _ in range(hints):
                run, do = machine.step(run, event)
                delivered += do is Action.DELIVER
        assert delivered == sum(do is Action.DELIVER for _, do in trace.steps)
        assert run.code == traces.replay(trace).code


def test_there_are_traces_of_real_runs() -> None:
    assert len(TRACES) >= 5

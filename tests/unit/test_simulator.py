from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.containerd.types import Status
from moorage.executor import _machine as machine
from moorage.executor._machine import Do, Happening, Phase, Run
from support import simulate, simulator, traces
from support.simulator import Violation

SCHEDULES = 10_000
TRACES = sorted((Path(__file__).parents[1] / "data" / "traces").glob("*.json"))

Step = Callable[[Run, Happening], tuple[Run, Do]]


def test_e43_no_promise_is_broken_in_any_schedule() -> None:
    happenings, failures = simulator.play_many(range(SCHEDULES))
    assert not failures, f"again, in words: scripts/simulate --seed {failures[0][0]}"
    assert happenings > SCHEDULES


def play_all() -> None:
    for seed in range(SCHEDULES):
        simulator.play(seed)


def test_a_schedule_is_the_same_every_time() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        simulator.play(7, lines.append)
    assert told[0] == told[1]


def believes_events(step: Step) -> Step:
    def broken(run: Run, happening: Happening) -> tuple[Run, Do]:
        if isinstance(happening, machine.ExitSeen) and run.phase is Phase.RUNNING:
            return step(run, machine.Answered(Status.STOPPED))
        return step(run, happening)

    return broken


def takes_silence_for_an_exit(step: Step) -> Step:
    def broken(run: Run, happening: Happening) -> tuple[Run, Do]:
        return step(run, machine.Answered(None) if isinstance(happening, machine.Unanswered) else happening)

    return broken


def never_looks(step: Step) -> Step:
    def broken(run: Run, happening: Happening) -> tuple[Run, Do]:
        return (run, Do.NOTHING) if isinstance(happening, machine.Look) else step(run, happening)

    return broken


def tells_again(step: Step) -> Step:
    def broken(run: Run, happening: Happening) -> tuple[Run, Do]:
        again = run.phase is Phase.OVER and run.pid is not None and isinstance(happening, machine.Look)
        return (run, Do.DELIVER) if again else step(run, happening)

    return broken


@pytest.mark.parametrize("break_it", [believes_events, takes_silence_for_an_exit, never_looks, tells_again])
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
        run, delivered = Run(trace.id), 0
        for happening, _ in trace.steps:
            hints = 1 + isinstance(happening, machine.ExitSeen | machine.Died | machine.Look)
            for _ in range(hints):
                run, do = machine.step(run, happening)
                delivered += do is Do.DELIVER
        assert delivered == sum(do is Do.DELIVER for _, do in trace.steps)
        assert run.code == traces.replay(trace).code


def test_there_are_traces_of_real_runs() -> None:
    assert len(TRACES) >= 5

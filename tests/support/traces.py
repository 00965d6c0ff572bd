"""The machine's events in real runs, and its decisions: written as JSON, and played again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from moorage.containerd.types import Status
from moorage.executor import _machine as machine
from moorage.executor._machine import Action, RunEvent, RunState

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        machine.Started,
        machine.StartFailed,
        machine.ExitReported,
        machine.ProcessExited,
        machine.CheckRequested,
        machine.StatusKnown,
        machine.StatusUnavailable,
        machine.Removed,
        machine.RemovalFailed,
    )
}


@dataclass(frozen=True)
class Trace:
    """One run."""

    id: str
    steps: list[tuple[RunEvent, Action]]


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.name
    return value.isoformat() if isinstance(value, datetime) else value


def write(path: Path, traces: list[Trace]) -> None:
    """Write the traces of one test."""
    runs = [
        {
            "id": trace.id,
            "steps": [
                [type(it).__name__, {name: _plain(value) for name, value in asdict(it).items()}, do.name]
                for it, do in trace.steps
            ],
        }
        for trace in traces
    ]
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    path.write_text(f"[\n  {lines}\n]\n")


def read(path: Path) -> list[Trace]:
    """The traces of a file."""
    return [
        Trace(run["id"], [(_event(kind, fields), Action[do]) for kind, fields, do in run["steps"]])
        for run in json.loads(path.read_text())
    ]


def _event(kind: str, fields: dict[str, Any]) -> RunEvent:
    if fields.get("exited_at"):
        fields["exited_at"] = datetime.fromisoformat(fields["exited_at"])
    if fields.get("status"):
        fields["status"] = Status[fields["status"]]
    event: RunEvent = _KINDS[kind](**fields)
    return event


def replay(trace: Trace) -> RunState:
    """The finished run. Raises: AssertionError where the machine decides otherwise than it did."""
    run = RunState(trace.id)
    for number, (event, do) in enumerate(trace.steps):
        run, decided = machine.step(run, event)
        assert decided is do, f"step {number}, {event}: {decided}, was {do}"
    return run


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Write the events of every run inside the block."""
    step = machine.step
    traces: list[Trace] = []
    latest: dict[int, Trace] = {}  # by identity of the run as it is now
    seen_runs: list[RunState] = []  # so that no identity is used twice

    def record(run: RunState, event: RunEvent) -> tuple[RunState, Action]:
        after, do = step(run, event)
        trace = latest.pop(id(run), None)
        if trace is None:
            trace = Trace(run.id, [])
            traces.append(trace)
        trace.steps.append((event, do))
        latest[id(after)] = trace
        seen_runs.append(after)
        return after, do

    machine.step = record
    try:
        yield
    finally:
        machine.step = step
        write(path, traces)

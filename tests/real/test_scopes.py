"""Programs in scopes, with real processes: where a scope cannot be created, and what becomes of the program."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from moorage.host.cgroups import CGROUP_ROOT
from moorage.systemd import scopes
from moorage.systemd.scopes import SystemdScope, start_daemon, start_program

pytestmark = pytest.mark.real

PROGRAM = ("/bin/sleep", "1000")
Spawn = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]
FAILS = SystemdScope("moorage-x.scope", ("/bin/sh", "-c", "echo cannot reach the bus >&2; exit 3", "--"))
HANGS = SystemdScope("moorage-x.scope", ("/bin/sh", "-c", "exec sleep 1000", "--"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text("of before\n")
    return path


@pytest.fixture
def spawn(output: Path) -> Iterator[Spawn]:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
        with open(output, "ab") as file:
            started.append(subprocess.Popen(command, stdout=file, stderr=file))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def executable(pid: int) -> str:
    return os.path.basename(os.readlink(f"/proc/{pid}/exe"))


@pytest.fixture
def real_scope() -> Iterator[SystemdScope]:
    """A control group with the name of a scope, entered as systemd-run does: by itself, and then it executes."""
    hierarchy = next(path for path in (CGROUP_ROOT / "pids", CGROUP_ROOT) if (path / "cgroup.procs").exists())
    group = hierarchy / f"moorage-test-{os.getpid()}.scope"
    enter = f'mkdir {group}; echo $$ >{group}/cgroup.procs; exec "$@"'
    yield SystemdScope(group.name, ("/bin/sh", "-ec", enter, "--"))
    if group.exists():
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        while (group / "cgroup.procs").read_text():
            pass
        group.rmdir()


def test_a_program_in_a_scope_has_the_pid_of_what_was_started(
    spawn: Spawn, output: Path, real_scope: SystemdScope, caplog: pytest.LogCaptureFixture
) -> None:
    child = start_program(PROGRAM, real_scope, spawn, output)
    assert real_scope.unit in Path(f"/proc/{child.pid}/cgroup").read_text()
    while executable(child.pid) != "sleep":
        assert child.poll() is None
    assert not caplog.records
    child.kill()
    child.wait()


def test_a_program_runs_without_a_scope_where_none_is_created_and_one_warning_has_the_reason(
    spawn: Spawn, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = start_program(PROGRAM, FAILS, spawn, output)
    assert child.poll() is None
    assert executable(child.pid) == "sleep"
    [message] = caplog.messages
    assert message == (
        "cannot create moorage-x.scope (cannot reach the bus); the program runs in the control group of this engine, "
        "and systemd counts it as a part of that unit"
    )


def test_systemd_that_does_not_answer_delays_a_start_and_does_not_prevent_it(
    spawn: Spawn, output: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "_WITHIN", 0.1)
    child = start_program(PROGRAM, HANGS, spawn, output)
    assert child.args == [*PROGRAM] or child.args == PROGRAM
    assert "(systemd did not create it within 0.1 s)" in caplog.text


def test_a_daemon_is_started_without_a_scope_where_none_is_created(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, runs = tmp_path / "log", []

    def run(command: Sequence[str], within: float | None) -> int:
        runs.append(command)
        with open(output, "wb") as file:
            return subprocess.run(command, stdout=file, stderr=file, check=False, timeout=within).returncode

    assert start_daemon(("/bin/true",), FAILS, run, output) == 0
    assert "(cannot reach the bus)" in caplog.text
    monkeypatch.setattr(scopes, "_WITHIN", 0.1)
    assert start_daemon(("/bin/true",), HANGS, run, output) == 0
    assert "within 0.1 s" in caplog.text
    assert start_daemon(("/bin/false",), None, run, output) == 1
    assert [list(each)[-1] for each in runs] == ["/bin/true"] * 4 + ["/bin/false"]


@pytest.mark.needs("systemd-run")
@pytest.mark.skipif(scopes.is_process_1(), reason="systemd is process 1 here, and would create the scope")
def test_the_real_systemd_run_without_systemd_is_one_warning(
    spawn: Spawn, output: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "_BOOTED", tmp_path)
    child = start_program(PROGRAM, scopes.make_scope("containerd", "a test"), spawn, output)
    assert executable(child.pid) == "sleep"
    [message] = caplog.messages
    assert "has not been booted with systemd" in message or "connect" in message

"""Case 220: what fails again and again takes no more room than what fails once."""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from moorage.containerd.containerd_process import LOG_LIMIT, RUNTIME_LOG_LIMIT, truncate_log
from support.engines import EngineProcess, Refused, config, engine

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("p")
        made.create("never", config("end=3"))
        made.enable("p")
        yield made


def run_time_bytes(house: EngineProcess) -> int:
    """Bytes of the files in the run-time directory, without what plugins have in their roots."""
    total = 0
    for base, directories, files in os.walk(house.exec_root):
        directories[:] = [each for each in directories if each not in ("root", "runtime-root")]
        for name in files:
            with suppress(FileNotFoundError):
                total += Path(base, name).lstat().st_size
    return total


def fail_to_execute(house: EngineProcess, rounds: int) -> None:
    exec_request = json.dumps({"command": ["/no/such/program"], "env": [], "tty": False}).encode()
    body = struct.pack(">BI", 0, len(exec_request)) + exec_request
    for _ in range(rounds):
        status, answer = house.request(
            "POST", "/moorage/v1/plugins/p/exec", body, headers={"Content-Type": "application/vnd.moorage.exec"}
        )
        assert status == 400, answer
        assert b"no such file" in answer


def test_case_220_the_log_of_a_runtime_is_bounded_however_often_exec_fails(house: EngineProcess) -> None:
    logs = list((house.exec_root / "containerd").rglob("log.json"))
    (log,) = [path for path in logs if path.parent.name.startswith(house.inspect("p")["Id"])]
    os.truncate(log, 0)
    fail_to_execute(house, 1)
    assert 0 < log.stat().st_size < RUNTIME_LOG_LIMIT
    with log.open("ab") as file:  # as after some hundred failures, which take a while
        file.write(b'{"level":"error","msg":"x","time":"2026-01-01T00:00:00Z"}\n' * 1000)
    fail_to_execute(house, 1)
    assert log.stat().st_size < RUNTIME_LOG_LIMIT
    fail_to_execute(house, 1)  # what failed is reported from the new log
    assert house.state("p") == "ready"


def test_case_220_failing_commands_leave_no_files_behind(house: EngineProcess) -> None:
    def fail() -> None:
        with suppress(Refused):
            house.enable("never")
        fail_to_execute(house, 3)

    fail()
    files = sorted(house.exec_root.rglob("*"))
    size = run_time_bytes(house)
    for _ in range(10):
        fail()
    assert sorted(house.exec_root.rglob("*")) == files
    assert run_time_bytes(house) - size < 40 * 1024  # the runtime's log, which is cut later


def test_case_220_the_log_of_containerd_is_cut_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "containerd.log"
    with path.open("ab") as writer:
        writer.write(b"x" * (LOG_LIMIT + 1))
        writer.flush()
        truncate_log(path)
        assert path.stat().st_size == 0
        assert (tmp_path / "containerd.log.1").stat().st_size == LOG_LIMIT + 1
        writer.write(b"new")
        writer.flush()
        assert path.read_bytes() == b"new"
        truncate_log(path)
        assert path.read_bytes() == b"new"

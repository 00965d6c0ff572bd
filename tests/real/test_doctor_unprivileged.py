"""`moorage doctor` for a user without privileges: a check that needs root says so, and the others are done."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage.runs.host_security import HostSecurity
from support.doctor import ONLY_WHERE_WRONG, SUBJECTS
from support.limits import limit
from support.local_user import USER, open_to_all

pytestmark = pytest.mark.real

UNKNOWN = "unknown, needs root"

ALWAYS = {"overlay", *(["AppArmor"] if HostSecurity().has_apparmor() else [])}
"""What only root can check on this machine, whatever the data directory is."""

Findings = dict[str, tuple[str, str, str]]


def doctor(**environment: str) -> Findings:
    """What it finds as a user who is in no group."""
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    command = [*user, sys.executable, "-m", "moorage", "--json", "doctor"]
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(60), env=env, cwd="/")
    assert (done.returncode, done.stderr) == (1, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["subject"] for each in found} - {"leftovers", *ONLY_WHERE_WRONG} == set(SUBJECTS)
    return {each["subject"]: (each["verdict"], each["text"], each["advice"]) for each in found}


def unknown(found: Findings) -> set[str]:
    return {
        subject
        for subject, (verdict, text, advice) in found.items()
        if text.startswith(UNKNOWN) and verdict == "warning" and advice == "run moorage with sudo"
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    open_to_all(tmp_path)
    return tmp_path


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


def private(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def test_d14_a_data_directory_of_root_makes_only_its_checks_unknown(base: Path) -> None:
    data = private(base / "data")
    (data / "containerd").mkdir()
    (data / "engine.json").write_text("{}")
    found = doctor(MOORAGE_ROOT=str(data), MOORAGE_EXEC_ROOT=str(base / "run"))
    assert unknown(found) >= {"containerd's databases", "overlay", "engine"}
    assert found["data directory"][0] == "ok"
    assert found["permissions"] == ("wrong", "does not run as root", "run moorage with sudo")
    assert found["control groups"][0] == found["runtime"][0] == "ok"
    assert str(data) in found["engine"][1]


def test_d14_a_data_directory_below_a_directory_of_root_is_unknown(base: Path) -> None:
    above = private(base / "above")
    found = doctor(MOORAGE_ROOT=str(above / "a/b"), MOORAGE_EXEC_ROOT=str(base / "run"))
    assert unknown(found) >= {"data directory", "containerd's databases", "overlay", "engine"}
    assert found["data directory"][1] == f"{UNKNOWN} ({above}/a/b: Permission denied)"


def test_d14_a_socket_below_a_directory_of_root_is_unknown_and_not_absent(base: Path) -> None:
    run = private(base / "run")
    with listening(run / "moorage.sock"):
        found = doctor(MOORAGE_ROOT=str(base / "data"), MOORAGE_EXEC_ROOT=str(run))
    assert unknown(found) >= {"engine", "engine socket"}
    assert found["data directory"][0] == "ok"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_d14_an_engine_whose_lock_only_root_can_try_is_unknown_and_not_killed(base: Path, mode: int) -> None:
    data = base / "data"
    data.mkdir()
    (data / "engine.json").write_text("{}")
    (data / "lock").write_text("1\n")
    (data / "lock").chmod(mode)
    with listening(base / "moorage.sock"):
        pass  # nothing listens there any more
    (base / "moorage.sock").chmod(0o666)
    found = doctor(MOORAGE_ROOT=str(data), MOORAGE_HOST=f"unix://{base}/moorage.sock")
    assert unknown(found) == {"engine"} | ALWAYS
    assert found["engine socket"][0] == "wrong", "everybody may use it"


def test_d14_leftovers_are_unknown_where_only_root_can_list_it(base: Path) -> None:
    data = base / "data"
    data.mkdir()
    private(data / "set-aside")
    found = doctor(MOORAGE_ROOT=str(data), MOORAGE_EXEC_ROOT=str(base / "run"))
    assert "leftovers" in unknown(found)
    assert unknown(found) == {"leftovers"} | ALWAYS


def test_d14_people_see_one_line_for_each(base: Path) -> None:
    data = private(base / "data")
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    env = {"PATH": os.environ["PATH"], "MOORAGE_ROOT": str(data), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*user, sys.executable, "-m", "moorage", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(60), env=env, cwd="/")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith(f"warning  overlay: {UNKNOWN}"))
    assert lines[at + 1] == "         → run moorage with sudo"
    assert lines[-1].partition(":")[0] == "ok       init program"

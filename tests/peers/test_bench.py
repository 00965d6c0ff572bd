import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.report import LINES

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.extensive,
    pytest.mark.needs("root", "containerd", "runc", "dockerd", "static-cc"),
]


def test_a_quick_run_measures_every_line_and_says_on_what(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "all", "--quick", "--plugins", "2", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": "tests"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert [line.what for line in LINES if not result["figures"].get(line.own)] == []
    assert [line.what for line in LINES if line.peer and not result["figures"].get(line.peer)] == []
    assert result["command"].startswith("scripts/bench all --rounds 1 --plugins 2 ")
    assert result["machine"]["cores"] == os.cpu_count()
    assert "| enable, plugin listens at once " in done.stdout


def test_h04_the_cost_of_a_health_check_is_measured_for_each_kind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "health", "--plugins", "2", "--seconds", "2", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": "tests"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert set(result["figures"]) == {"call", "connect", "command"}
    assert all(each["checks_per_second"] > 0 for each in result["figures"].values())
    assert result["command"] == "scripts/bench health --plugins 2 --seconds 2"

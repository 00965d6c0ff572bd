"""What docs/ shows of the code is what the code says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_m01_a05_the_diagram_of_the_states_and_the_table_of_calls_are_current() -> None:
    script = ROOT / "scripts/_diagrams.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script, "--check"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

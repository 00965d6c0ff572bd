"""What docs/ shows of the code is what the code says."""

import os
import subprocess
import sys
from pathlib import Path

from _diagrams import calls

from moorage.api.routes import ROUTES

ROOT = Path(__file__).parents[2]


def test_m01_a05_the_diagram_of_the_states_and_the_table_of_calls_are_current() -> None:
    script = ROOT / "scripts/_diagrams.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script, "--check"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a05_the_table_of_calls_has_every_status_of_a_success() -> None:
    holders = next(
        line for line in calls().splitlines() if line.startswith("| `POST /moorage/v1/plugins/{name}/holders`")
    )
    assert holders.endswith("| 201, 200 |"), "201 for a holder, 200 for one that is attached"


def test_a05_ids_of_operations_are_unique_and_made_of_method_and_path() -> None:
    ids = [route.operation for route in ROUTES]
    assert len(set(ids)) == len(ids)
    assert {"get_plugins", "post_plugins_name_enable", "delete_plugins_name"} <= set(ids)

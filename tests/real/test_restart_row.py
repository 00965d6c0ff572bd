"""Failures in a row, where the engine that saw the plugin become ready is not the one that sees it exit."""

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from moorage.engine.lifecycle import STEADY_AFTER
from support import leftovers
from support.engines import EngineProcess, config, engine, kill
from support.limits import limit

pytestmark = pytest.mark.real


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made


def crashed_once(own: EngineProcess) -> Any:
    """Start a plugin that may fail once in a row, let it do that, and return what is known of its second run."""
    own.create("p")
    own.request_own("PUT", "p", "policy", {"restarts": "on-failure", "most": 1})
    own.enable("p")
    own.crash("p", 7)
    own.until_restarted("p", 1)
    return own.more("p")


def wait_until_steady(more: Any) -> None:
    """Until the run has lasted as long as begins a new row, which counts from when it was ready."""
    age = (datetime.now(UTC) - datetime.fromisoformat(more["StartedAt"])).total_seconds()
    time.sleep(max(0.0, STEADY_AFTER + limit(0.5) - age))


def test_m05_a_run_that_lasted_over_a_restart_of_the_engine_begins_a_new_row(own: EngineProcess) -> None:
    more = crashed_once(own)
    time.sleep(STEADY_AFTER / 2)
    own.end(signal.SIGKILL)
    own.start()
    wait_until_steady(more)
    assert own.until("p", "ready")["Pid"] == more["Pid"]
    own.crash("p", 7)
    own.until_restarted("p", 2)
    own.crash("p", 7)  # at once: the second in a row
    own.until("p", "failed")


def test_m05_a_run_that_lasted_and_exited_without_an_engine_begins_a_new_row(own: EngineProcess) -> None:
    more = crashed_once(own)
    own.end(signal.SIGKILL)
    wait_until_steady(more)
    kill([more["Pid"]])
    own.start()
    own.until_restarted("p", 2)


def test_m05_a_short_run_that_exited_without_an_engine_belongs_to_the_row(own: EngineProcess) -> None:
    more = crashed_once(own)
    own.end(signal.SIGKILL)
    os.kill(more["Pid"], signal.SIGKILL)
    own.start()
    own.until("p", "failed")


def test_m05_a_run_that_was_never_ready_and_exited_without_an_engine_belongs_to_the_row(own: EngineProcess) -> None:
    own.create("p", config(env=[{"name": "A", "settable": ["value"]}]))
    own.request_own("PUT", "p", "policy", {"restarts": "on-failure", "most": 1})
    own.enable("p")
    own.end()
    record = own.root / "plugins" / next(iter(os.listdir(own.root / "plugins"))) / "plugin.json"
    document = json.loads(record.read_text())
    document["config"] = document["config"].replace('"/actor"', '"/actor", "never"')
    record.write_text(json.dumps(document))
    kill(leftovers.processes_in(document["id"]))
    own.start(wait=False)
    own.until("p", "starting")
    own.wait_until(lambda: own.more("p")["Pid"], "its process runs")
    more = own.more("p")
    own.end(signal.SIGKILL)
    wait_until_steady(more)
    kill([more["Pid"]])
    own.start()
    assert own.until("p", "failed")["Restarts"] == 1

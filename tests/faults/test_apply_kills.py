"""The engine killed in the middle of an apply with five changes: the next apply ends as an undisturbed one."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apply_files import moorage_command, push_version, run_moorage
from support.engines import EngineProcess, engine
from support.limits import limit
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc", "docker-registry")]

KILLS = 40 if os.environ.get("MOORAGE_FAULTS") == "full" else 4
"""Kills of one apply, at moments spread evenly over the time that it takes."""
ENV = [{"name": "A", "value": "0", "settable": ["value"]}]
BEFORE = """plugins:
- {reference: R/f:1, name: upgraded, settings: {A: 1}}
- {reference: R/f:1, name: set, settings: {A: 1}}
- {reference: R/f:1, name: enabled, enabled: false}
- {reference: R/f:1, name: removed}
"""
AFTER = """plugins:
- {reference: R/f:2, name: upgraded, settings: {A: 2}}
- {reference: R/f:1, name: set, settings: {A: 2}, policy: {restart: on-failure}}
- {reference: R/f:1, name: enabled}
- {reference: R/f:2, name: installed, settings: {A: 3}}
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path, timeouts={"ready": limit(30)}) as made:
        yield made


def state(house: EngineProcess) -> list[tuple[object, ...]]:
    """What an apply decides of each plugin; each one that is enabled answers."""
    for each in house.plugins():
        if each["Enabled"]:
            house.until(each["Name"], "ready")
            assert house.call(each["Name"], "env")
    return [
        (
            each["Name"],
            each["Enabled"],
            each["Config"]["Description"],
            each["Settings"]["Env"],
            each["Moorage"]["Policy"]["Restarts"],
            each["Moorage"]["AppliedBy"],
        )
        for each in house.plugins()
    ]


def test_f05_the_engine_killed_at_any_moment_of_an_apply_with_five_changes(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    for tag in ("1", "2"):
        push_version(house, f"{registry.host}/t/f:{tag}", description=tag, env=ENV)
    file = tmp_path / "plugins.yaml"

    def write(text: str) -> None:
        file.write_text(text.replace("R/", f"{registry.host}/t/"))

    def begin() -> None:
        for each in house.plugins():
            house.remove(each["Name"], force=True)
        write(BEFORE)
        run_moorage(house, "apply", "-f", str(file))
        write(AFTER)

    begin()
    began_at = time.monotonic()
    run_moorage(house, "apply", "--prune", "-f", str(file))
    seconds = time.monotonic() - began_at
    undisturbed = state(house)
    assert [each[0] for each in undisturbed] == ["enabled:latest", "installed:latest", "set:latest", "upgraded:latest"]
    for at in range(KILLS):
        begin()
        command = moorage_command(house.socket, "apply", "--prune", "-f", str(file))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as apply:
            time.sleep(seconds * (at + 0.5) / KILLS)  # the moment of the kill is what is tried here
            house.end(signal.SIGKILL)
            apply.wait(limit(60))
        house.start()
        run_moorage(house, "apply", "--prune", "-f", str(file))
        assert state(house) == undisturbed
        assert run_moorage(house, "apply", "--check", "--prune", "-f", str(file)).returncode == 0

"""The engine killed, or requested to stop a plugin, whose last run is still being removed while the next one runs."""

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moorage.plugins import container_of_group
from moorage.runs.removal import find_control_groups
from support import engine_window, leftovers
from support.engines import EngineProcess, kill
from support.foreground import wait_until
from support.limits import limit

FULL = os.environ.get("MOORAGE_FAULTS") == "full"

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]
if FULL:
    pytestmark.append(pytest.mark.timeout(limit(1800)))

AWAITS = 40
"""So many awaits an engine makes at least, from the report of an exit until the next run is ready."""
STEP = 1 if FULL else 9
"""Every so many of them are tried."""

IDS: list[str] = []
"""The id of the plugin of this test, also when it is removed."""

Points = Callable[[str, object], None]
"""Writes how many points there were into the report (``--junitxml``)."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine that runs, with a plugin p that is ready."""
    made = EngineProcess(tmp_path, timeouts={"ready": limit(30)})
    try:
        made.start()
        made.create("p")
        made.enable("p")
        IDS[:] = [record(made)["id"]]
        yield made
    finally:
        made.preamble = ""
        if made.child is not None and made.child.poll() is None:
            made.end(signal.SIGKILL)
        made.child = None
        made.close()


@pytest.fixture
def delayed(own: EngineProcess, tmp_path: Path) -> Iterator[Path]:
    """Exited runs are not removed before a file ``released`` is in this directory."""
    directory = tmp_path / "delayed"
    directory.mkdir()
    own.end()
    own.preamble = engine_window.preamble(f"delay_removals({str(directory)!r})")
    own.start()
    own.until("p", "ready")
    yield directory
    (directory / "released").touch()


def record(own: EngineProcess) -> Any:
    """The record of the plugin."""
    (path,) = own.root.glob("plugins/*/plugin.json")
    return json.loads(path.read_text())


def containers(own: EngineProcess) -> dict[str, set[str]]:
    """The containers of the plugin, as everything that has one of each says."""
    address = str(own.exec_root / "containerd/c.sock")
    listed = subprocess.run(
        ["ctr", "-a", address, "-n", "plugins.moby", "containers", "ls", "-q"], capture_output=True, text=True
    ).stdout.split()
    shims = [leftovers.command_line(pid) for pid in leftovers.shims("plugins.moby")]
    tasks = own.exec_root / "containerd/s/io.containerd.runtime.v2.task/plugins.moby"
    return {
        "records": set(listed),
        "shims": {words[words.index(b"-id") + 1].decode() for words in shims if address.encode() in words},
        "directories": names(own.exec_root / "bundles/plugins.moby"),
        "tasks": names(tasks),
        "runtime": names(own.exec_root / "runtime-root/plugins.moby"),
        "groups": {container_of_group(group) for id in IDS for group in find_control_groups(id)},
    }


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory)) if directory.exists() else set()


def mounts(own: EngineProcess) -> list[str]:
    return leftovers.mounts_below(own.exec_root / "p")


def has_only(own: EngineProcess, *expected: str, exited: str = "") -> None:
    """Wait until of the plugin there are these containers, and no part of another one. Of the one that has exited,
    systemd removes the scope itself.
    """
    found: dict[str, set[str]] = {}
    parts = {part: set(expected) for part in containers(own)}
    if own.info()["CgroupDriver"] == "systemd":
        parts["groups"] = set(expected) - {exited}

    def is_so() -> bool:
        found.update(containers(own))
        return found == parts

    try:
        wait_until(is_so, f"only {expected} exists")
    except AssertionError:
        raise AssertionError(f"instead of only {expected}: {found}") from None


def present(own: EngineProcess) -> str:
    it = record(own)
    return f"{it['id']}.{it['run']}"


def is_dead(own: EngineProcess) -> bool:
    assert own.child is not None
    return own.child.poll() is not None


def program_pid(own: EngineProcess) -> int | None:
    """The pid of the plugin's program; None also where the runtime has not begun it."""
    found = leftovers.processes_in(record(own)["id"])
    programs = [pid for pid in found if leftovers.command_line(pid)[0] == b"/actor"]
    assert len(programs) <= 1
    return programs[0] if programs else None


def check_after_crash(own: EngineProcess, what: object) -> Any:
    """Wait until the plugin is ready after one crash: that is counted once, and nothing of the old run exists."""
    more = own.until("p", "ready")
    assert (more["Restarts"], more["LastExit"]["Code"]) == (1, 137), what
    has_only(own, present(own))
    assert len(mounts(own)) == 1
    return more


def test_i17_killed_at_every_await_of_the_window_the_next_engine_has_the_next_run(
    own: EngineProcess, tmp_path: Path, record_property: Points
) -> None:
    at, is_killed, taken_over, armed = 0, True, 0, tmp_path / "armed"
    while is_killed:
        own.end()
        own.preamble = engine_window.preamble(f"kill_at({at}, {str(armed)!r})")
        own.start()
        own.disable("p")
        own.enable("p")
        old, pid = present(own), own.more("p")["Pid"]
        armed.touch()
        kill([pid])
        wait_until(partial(is_killed_or_done, own, old), "the engine is killed, or the old run is gone")
        armed.unlink()
        is_killed = is_dead(own)
        if is_killed:
            own.child, pid = None, program_pid(own)
            own.start()
        more = check_after_crash(own, at)
        assert pid == more["Pid"] or pid is None or not is_killed
        taken_over += is_killed and pid is not None
        at += STEP
    assert at > AWAITS
    assert taken_over
    record_property("points", at // STEP)
    own.end()
    own.preamble = ""
    own.start()
    own.disable("p")
    has_only(own)
    assert mounts(own) == []


def is_killed_or_done(own: EngineProcess, old: str) -> bool:
    """Whether the engine is killed, or the plugin is ready again and nothing of its old run exists."""
    if is_dead(own):
        return True
    with suppress(OSError, http.client.HTTPException):
        return present(own) != old and own.state("p") == "ready" and old not in set().union(*containers(own).values())
    return False


def crash_and_delay(own: EngineProcess, delayed: Path) -> str:
    """Crash the plugin, and wait until the next run is ready beside the old one; the container of that."""
    old = present(own)
    kill([own.more("p")["Pid"]])
    own.until_restarted("p", 1)
    wait_until((delayed / old).exists, "the removal of the old run has begun")
    has_only(own, old, present(own), exited=old)
    return old


def is_deaf(own: EngineProcess) -> bool:
    """Whether the engine answers no request."""
    try:
        own.request("GET", "/info")
    except (OSError, http.client.HTTPException):
        return True
    return False


STOPS: dict[str, Callable[[EngineProcess], None]] = {
    "disable": lambda own: own.disable("p"),
    "remove": lambda own: own.remove("p", force=True),
    "restart": lambda own: own.request_own("POST", "p", "restart"),
    "down": EngineProcess.down,
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", STOPS)
def test_i17_a_stop_in_the_window_returns_after_every_removal(own: EngineProcess, delayed: Path, what: str) -> None:
    old = crash_and_delay(own, delayed)
    new = present(own)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(STOPS[what], own)
        if what == "down":  # the engine exits first, and another one stops what runs
            wait_until(lambda: is_deaf(own), "the engine is being stopped")
        else:
            wait_until((delayed / new).exists, "the next run is being removed, too")
            assert {old, new} <= set().union(*containers(own).values())
            wait_until(lambda: mounts(own) == [], "its root is unmounted meanwhile: nothing uses it any more")
        assert not answer.done()
        (delayed / "released").touch()
        answer.result()
    if what == "restart":
        has_only(own, present(own))
        own.disable("p")
    if what == "down":
        assert own.left() == [], "nothing is there when it returns"
    else:
        has_only(own)
        assert mounts(own) == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", STOPS)
def test_i17_a_stop_by_the_engine_after_one_killed_in_the_window_removes_every_run(
    own: EngineProcess, delayed: Path, what: str
) -> None:
    crash_and_delay(own, delayed)
    own.end(signal.SIGKILL)
    own.preamble = ""
    if what != "down":
        own.start()
    STOPS[what](own)
    if what == "restart":
        has_only(own, present(own))
        own.disable("p")
    if what == "down":
        assert own.left() == [], "nothing is there when it returns"
    else:
        has_only(own)
        assert mounts(own) == []


def test_i17_containerd_killed_in_the_window_costs_neither_run(own: EngineProcess, delayed: Path) -> None:
    crash_and_delay(own, delayed)
    pid = own.more("p")["Pid"]
    kill([int((own.exec_root / "containerd/pid").read_text())])
    own.wait_until(lambda: own.request("GET", "/info")[0] == 200 and not own.info()["Moorage"]["Problem"], "containerd")
    (delayed / "released").touch()
    has_only(own, present(own))
    more = own.until("p", "ready")
    assert (more["Pid"], more["Restarts"], more["LastExit"]["Code"]) == (pid, 1, 137)


def test_i17_a_plugin_that_exits_again_and_again_has_two_runs_at_most(own: EngineProcess, delayed: Path) -> None:
    """The removal of the first run is delayed: the second one may run meanwhile, and a third one has to wait."""
    old = crash_and_delay(own, delayed)
    second = present(own)
    kill([own.more("p")["Pid"]])
    wait_until((delayed / second).exists, "the exit of the second run is reported")
    own.until("p", "starting")
    assert containers(own)["records"] == {old, second}
    (delayed / "released").touch()
    own.until_restarted("p", 2)
    has_only(own, present(own))


@pytest.mark.parametrize("is_restart", [False, True])
def test_m05_a_run_that_a_killed_engine_had_not_started_is_no_exit(
    own: EngineProcess, tmp_path: Path, is_restart: bool
) -> None:
    armed = tmp_path / "armed"
    own.request_own("PUT", "p", "policy", {"restarts": "on-failure", "most": 1})
    if not is_restart:
        own.disable("p")
    own.end()
    own.preamble = engine_window.preamble(f"kill_before_start({str(armed)!r})")
    own.start()
    armed.touch()
    if is_restart:
        kill([own.until("p", "ready")["Pid"]])
    else:
        with suppress(OSError, http.client.HTTPException):
            own.enable("p")
    wait_until(lambda: is_dead(own), "the engine is killed")
    own.child, own.preamble = None, ""
    own.start()
    more = own.until("p", "ready")
    assert more["Restarts"] == is_restart
    assert (more["LastExit"] or {}).get("Code") == (137 if is_restart else None)
    assert own.inspect("p")["Enabled"]
    has_only(own, present(own))

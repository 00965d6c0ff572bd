"""`moorage run --watch`: the plugin is run again when its directory changes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.foreground import ANSWER, LISTEN, Machine, Run, make_plugin, wait_until
from support.limits import limit
from support.local_user import open_to_all

pytestmark = pytest.mark.real


def events(run: Run, kind: str, count: int) -> None:
    """Wait for so many events of a kind."""
    wait_until(lambda: len(run.all(kind)) >= count or run.child.poll() is not None, f"{count} {kind}")
    assert len(run.all(kind)) == count, (run.events, run.stderr)


def test_h03_a_change_of_the_directory_starts_the_plugin_again(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", f"print(open('/version').read(), flush=True)\n{ANSWER}")
    (plugin / "rootfs/version").write_text("1")
    run = machine.start("--watch", plugin)
    events(run, "ready", 1)
    for number in range(20):  # a build that writes many files leads to one start
        (plugin / f"rootfs/file{number}").write_text("x")
    (plugin / "rootfs/version").write_text("2")
    events(run, "ready", 2)
    assert [event["line"] for event in run.all("output")] == ["1", "2"]
    kinds = [event["event"] for event in run.events if event["event"] != "output"]
    whole = ["starting", "started", "ready", "exit", "gone"]
    assert kinds == [*whole, "changed", *whole[:3]]
    assert run.end(signal.SIGINT) == 130
    assert run.stderr == ""


def test_h03_what_cannot_be_run_is_waited_for(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", LISTEN + "os._exit(3)\n")
    right = (plugin / "config.json").read_text()
    run = machine.start("--watch", plugin)
    events(run, "waiting", 1)
    assert (run.all("waiting")[0]["error"], run.exit["code"]) == ("", 3)
    (plugin / "config.json").write_text("{")
    events(run, "waiting", 2)
    assert "config.json" in run.all("waiting")[1]["error"]
    (plugin / "config.json").unlink()
    events(run, "waiting", 3)
    assert "there is no config.json" in run.all("waiting")[2]["error"]
    document = json.loads(right)
    document["entrypoint"][-1] = ANSWER
    (plugin / "config.json").write_text(json.dumps(document))
    events(run, "ready", 1)
    os.chmod(plugin / "rootfs", 0o711)
    events(run, "ready", 2)
    assert run.end(signal.SIGTERM) == 143
    machine.note()


def test_h03_ctrl_c_ends_the_waiting_and_a_wrong_machine_is_no_reason_to_wait(machine: Machine, tmp_path: Path) -> None:
    run = machine.start("--watch", tmp_path / "absent")
    events(run, "waiting", 1)
    assert "there is no plugin at" in run.all("waiting")[0]["error"]
    assert run.end(signal.SIGINT) == 130
    plugin = open_to_all(make_plugin(tmp_path / "it", ANSWER))
    command = machine.command(
        "setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "moorage", "run", "--watch", plugin
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "moorage: cannot run a plugin: mounts and control groups need root; run this with sudo",
    )
    for words in (("--keep",), ("--print-spec",)):
        assert machine.moorage("run", "--watch", *words, plugin).returncode == 2

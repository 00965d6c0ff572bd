"""Processes that were added by exec, while containerd does not answer: none is forgotten."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import wait_until
from support.leftovers import is_alive
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

HOST = [
    {"name": each.strip("/"), "source": each, "destination": each, "type": "bind", "options": ["rbind", "ro"]}
    for each in ("/usr", "/bin", "/lib", "/lib64")
]
QUICK = {"added_process_removal": limit(1.0), "added_process_exit": limit(1.0), "task_rpc": limit(1.0)}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine with one plugin that has the host's programs, and short time limits for containerd."""
    with engine(tmp_path, timeouts=QUICK) as own:
        own.create("p", config(mounts=HOST))
        own.enable("p")
        yield own


@contextmanager
def added(made: EngineProcess) -> Iterator["subprocess.Popen[bytes]"]:
    """A client whose command runs in the plugin."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{made.socket}", "exec", "p", "sleep", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        try:
            wait_until(lambda: sleepers(made), "the sleep")
            yield client
        finally:
            client.kill()


def sleepers(made: EngineProcess) -> list[int]:
    found = made.more("p")["Processes"]
    return [each["Pid"] for each in found if each["Command"] == "sleep 1000"]


def traces(made: EngineProcess) -> list[Path]:
    return list((made.exec_root / "p").glob("*/exec-*"))


def containerd(made: EngineProcess) -> int:
    return int((made.exec_root / "containerd/pid").read_text())


def test_d14_a_process_whose_caller_leaves_while_containerd_hangs_is_killed_later(made: EngineProcess) -> None:
    with added(made) as client:
        (pid,) = sleepers(made)
        os.kill(containerd(made), signal.SIGSTOP)
        try:
            client.kill()
            wait_until(lambda: "cannot remove process" in made.log.read_text(), "the removal that fails")
            assert is_alive(pid)
            assert traces(made)
        finally:
            os.kill(containerd(made), signal.SIGCONT)
        wait_until(lambda: not is_alive(pid), "the end of the process")
    wait_until(lambda: not traces(made), "nothing is left of it")
    assert made.more("p")["State"] == "ready"


def test_d14_a_process_whose_caller_leaves_while_containerd_is_killed_is_killed_later(made: EngineProcess) -> None:
    with added(made) as client:
        (pid,) = sleepers(made)
        os.kill(containerd(made), signal.SIGKILL)
        client.kill()
        wait_until(lambda: not is_alive(pid), "the end of the process")
    wait_until(lambda: not traces(made), "nothing is left of it")
    made.until("p", "ready")


def test_d14_a_process_that_was_starting_when_containerd_was_killed_is_killed_later(tmp_path: Path) -> None:
    runtime = tmp_path / "runc"  # the shim kills it with containerd, and does not know what it has started
    runtime.write_text('#!/bin/sh\ncase " $* " in *" exec "*) runc "$@"; exec sleep 2000 ;; esac\nexec runc "$@"\n')
    runtime.chmod(0o755)
    with engine(tmp_path, timeouts=QUICK, runtime=str(runtime)) as own:
        own.create("p", config(mounts=HOST))
        own.enable("p")
        with added(own) as client:
            (pid,) = sleepers(own)
            os.kill(containerd(own), signal.SIGKILL)
            client.kill()
            wait_until(lambda: not traces(own), "nothing is left of it")
        assert not is_alive(pid)
        own.until("p", "ready")


def test_d14_a_process_of_an_engine_that_was_killed_is_killed_after_an_outage(made: EngineProcess) -> None:
    with added(made) as client:
        (pid,) = sleepers(made)
        assert made.end(signal.SIGKILL) == -signal.SIGKILL
        client.kill()
    assert is_alive(pid)
    assert traces(made)
    made.start()
    wait_until(lambda: not is_alive(pid), "the end of the process")
    wait_until(lambda: not traces(made), "nothing is left of it")

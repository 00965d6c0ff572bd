"""An engine with --no-live-restore stops its plugins whichever signal ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.host.files import try_lock
from support.engines import config, engine
from support.leftovers import is_alive
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM, signal.SIGRTMIN + 1])
def test_d14_without_live_restore_each_signal_that_terminates_stops_the_plugins(tmp_path: Path, number: int) -> None:
    with engine(tmp_path, live_restore=False) as made:
        made.create("p", config())
        made.enable("p")
        pid = made.more("p")["Pid"]
        assert made.end(number) == 0, made.log.read_text()[-2000:]
        assert not is_alive(pid)
        assert made.left() == []
        made.start()  # it is enabled still
        made.until("p", "ready")


def test_d14_with_live_restore_such_a_signal_leaves_the_plugins_running(tmp_path: Path) -> None:
    with engine(tmp_path) as made:
        made.create("p")
        made.enable("p")
        pid = made.more("p")["Pid"]
        assert made.end(signal.SIGQUIT) == 0
        assert is_alive(pid)
        made.start()
        assert made.until("p", "ready")["Pid"] == pid


def test_d14_an_engine_has_its_data_to_itself_until_its_plugins_have_stopped(tmp_path: Path) -> None:
    with engine(tmp_path, live_restore=False) as made:
        made.create("p", config())
        made.enable("p")
        pid = made.more("p")["Pid"]
        assert made.child is not None
        made.child.send_signal(signal.SIGTERM)
        lock = None
        while lock is None and made.child.poll() is None:
            lock = try_lock(made.root / "lock")
        assert not is_alive(pid)
        if lock is not None:
            os.close(lock)
        assert made.child.wait(limit(30)) == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("live_restore", [True, False])
def test_d14_a_second_down_waits_for_the_first(tmp_path: Path, *, live_restore: bool) -> None:
    with engine(tmp_path, live_restore=live_restore) as made:
        made.create("p", config("ignore-term"))
        made.enable("p")
        where = ["--root", str(made.root), "--exec-root", str(made.exec_root)]
        command = [sys.executable, "-m", "moorage", "down", *where]
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        exits = [(each.communicate(timeout=limit(60))[1], each.returncode) for each in both]
        assert [status for _, status in exits] == [0, 0], exits
        assert made.left() == []

"""An engine with --no-live-restore stops its plugins whichever signal ends it."""

import signal
from pathlib import Path

import pytest

from support.engines import config, engine
from support.leftovers import is_alive

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


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

"""Which signals ask a program to stop, compared with what this kernel does by default."""

import os
import signal
import subprocess
import sys

import pytest

from moorage._lib.stop_signals import FAULTS, TERMINATING, signal_name
from support.limits import limit

pytestmark = pytest.mark.quick

_UNSTOPPABLE = {signal.SIGKILL}
_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}

_RECEIVE = """
import anyio, logging, os, sys
from moorage._lib.stop_signals import stop_signals
logging.basicConfig(level=logging.INFO, format="%(message)s")
async def main():
    async with stop_signals("stopping what runs") as stop:
        with stop.scope:
            os.kill(os.getpid(), int(sys.argv[1]))
            await anyio.sleep(30)
        print("shut down")
anyio.run(main, backend_options={"use_uvloop": sys.argv[2] == "uvloop"})
"""


def _default_action(number: int) -> int | None:
    """The status of a child with default actions that gets a signal; None if it keeps running (then it is killed)."""
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def test_d14_every_signal_that_terminates_by_default_is_listed() -> None:
    deadly = {number for number in signal.valid_signals() if _default_action(number) is not None}
    assert deadly == {*TERMINATING, *FAULTS, *_UNSTOPPABLE, *_IGNORED_BY_PYTHON}
    assert not set(TERMINATING) & set(FAULTS)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["HUP", "QUIT", "USR1", "PWR", "RTMIN", "RTMIN+1", "RTMAX"])
def test_d14_a_signal_that_terminates_starts_the_shutdown(name: str, loop: str) -> None:
    base, _, offset = name.partition("+")
    number = getattr(signal, f"SIG{base}") + int(offset or 0)
    command = [sys.executable, "-c", _RECEIVE, str(int(number)), loop]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(60))
    assert (done.returncode, done.stdout) == (0, "shut down\n"), done.stderr
    assert done.stderr == f"got SIG{name}, stopping what runs\n"


def test_d14_a_hangup_that_the_starter_ignores_stays_ignored() -> None:
    command = ["nohup", sys.executable, "-c", _RECEIVE.replace("sleep(30)", "sleep(0.1)"), "1", "asyncio"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(60))
    assert (done.returncode, done.stdout) == (0, "shut down\n"), done.stderr
    assert "got SIGHUP" not in done.stderr


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "SIGHUP"), (15, "SIGTERM"), (signal.SIGRTMIN, "SIGRTMIN"), (signal.SIGRTMIN + 3, "SIGRTMIN+3")],
)
def test_d14_signals_have_names_also_where_python_has_none(number: int, name: str) -> None:
    assert signal_name(number) == name

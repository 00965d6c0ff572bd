"""Output that another process continues to write after the plugin's own has exited."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import wait_until
from support.leftovers import is_alive

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

CUT_OFF = "moorage: the output was cut off here: another process had it open after the plugin exited"


@contextmanager
def opened_stream(pid: int, stream: int) -> Iterator[int]:
    """A descriptor of a process's output that outlives it, as a child outside its control group has it."""
    descriptor = os.open(f"/proc/{pid}/fd/{stream}", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lines(house: EngineProcess, name: str) -> list[str]:
    return [each["text"] for each in house.logs(name)]


@pytest.mark.parametrize("stream", [1, 2])
def test_case_241_output_that_is_cut_off_says_so(house: EngineProcess, stream: int) -> None:
    name = f"p{stream}"
    house.create(name, config("out=begun"))
    house.enable(name)
    with opened_stream(house.more(name)["Pid"], stream) as descriptor:
        os.write(descriptor, b"before\n")
        house.crash(name, 3)
        os.write(descriptor, b"late\n")
        house.until_restarted(name, 1)
        wait_until(lambda: CUT_OFF in lines(house, name), "the log says so")
    shown = lines(house, name)
    assert shown[:3] == ["begun", "before", "late"]
    assert shown.count(CUT_OFF) == 1
    house.remove(name, force=True)


def test_case_241_a_whole_output_says_nothing(house: EngineProcess) -> None:
    house.create("whole", config("out=begun"))
    house.enable("whole")
    house.crash("whole", 3)
    house.until_restarted("whole", 1)
    house.disable("whole")
    assert lines(house, "whole") == ["begun", "begun"]
    house.remove("whole", force=True)


def test_case_241_while_the_engine_is_not_running(tmp_path: Path) -> None:
    with engine(tmp_path) as own:
        own.create("p")
        own.enable("p")
        pid = own.more("p")["Pid"]
        with opened_stream(pid, 1):
            own.end()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_alive(pid), "it has exited")
            own.start()
            wait_until(lambda: CUT_OFF in lines(own, "p"), "the log says so")
        own.remove("p", force=True)

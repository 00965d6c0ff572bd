"""Output that never depends on the engine: engine and log keeper killed, stopped and gone while plugins write."""

import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from moorage.logs.reader import Line, PluginLog
from support import leftovers
from support.engines import EngineProcess, UnixConnection, config, engine, kill
from support.foreground import wait_until
from support.kills import stop
from support.limits import limit
from support.pipes import keeper_pid

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]

FULL = os.environ.get("MOORAGE_FAULTS") == "full"
OUTAGE_SECONDS = 60.0 if FULL else 4.0
"""Seconds that the engine is dead."""
KILLS = 30 if FULL else 2
PLUGINS = 30 if FULL else 10
FLOOD = "flood=10000000"  # bytes a second, in lines of 1 KiB


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made


def keeper_of(house: EngineProcess) -> int:
    return keeper_pid(house.exec_root / "keeper")


def log_of(house: EngineProcess, name: str) -> PluginLog:
    """A plugin's log, as it is on disk; requested while the engine runs, read whenever."""
    return PluginLog(house.root / "logs" / house.inspect(name)["Id"])


def newest(log: PluginLog) -> Line:
    (line,) = log.last_lines(1)
    return line


def grows(log: PluginLog) -> None:
    """Return when a line was written after this was called."""
    now = datetime.now(UTC)
    wait_until(lambda: log.last_lines(1) and newest(log).at > now, "the log goes on", limit(30))


def start_writing(house: EngineProcess, name: str, *what: str) -> tuple[int, PluginLog]:
    house.create(name, config(*what))
    house.enable(name)
    return int(house.more(name)["Pid"]), log_of(house, name)


@contextmanager
def answering(house: EngineProcess, name: str) -> Iterator[Callable[[], int]]:
    """Call the plugin again and again, on its own socket; every call is answered. How many were so far."""
    socket, done = Path(house.more(name)["Socket"]), threading.Event()
    answers: list[int] = []
    failures: list[Exception] = []

    def send() -> None:
        try:
            while not done.wait(0.05):
                connection = UnixConnection(socket, timeout=limit(10))
                connection.request("POST", "/Plugin.Activate")
                assert json.loads(connection.getresponse().read()) == {"Implements": ["VolumeDriver"]}
                connection.close()
                answers.append(1)
        except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield lambda: len(answers)
        so_far = len(answers)
        wait_until(lambda: len(answers) > so_far or failures, "one more answer")
    finally:
        done.set()
        thread.join()
    assert not failures


def test_m09_case_031_a_plugin_that_writes_10_mb_a_second_answers_while_the_engine_is_dead(
    house: EngineProcess,
) -> None:
    pid, log = start_writing(house, "p", FLOOD)
    keeper = keeper_of(house)
    with answering(house, "p") as answers:
        house.end(signal.SIGKILL)
        before, started = answers(), time.monotonic()
        while time.monotonic() - started < OUTAGE_SECONDS:
            grows(log)
            time.sleep(0.2)
        assert (
            answers() - before > OUTAGE_SECONDS / 5
        )  # a busy machine answers less than the twenty a second that are requested
        grows(log)
        house.start()
        house.until("p", "ready")
        grows(log)
    assert house.more("p")["Pid"] == pid
    assert keeper_of(house) == keeper
    house.disable("p")
    assert sum(path.stat().st_size for path in log.directory.iterdir()) < 2 * log.most_bytes


def test_m09_a_suspended_engine_and_a_stopping_one_delay_nothing(house: EngineProcess) -> None:
    _, log = start_writing(house, "p", FLOOD)
    assert house.child is not None
    with answering(house, "p"):
        stop(house.child.pid)
        time.sleep(2)
        grows(log)
        house.child.send_signal(signal.SIGCONT)
        house.end(signal.SIGTERM)
        time.sleep(1)
        grows(log)
        house.start()
        house.until("p", "ready")
        grows(log)


def test_m09_a_killed_keeper_is_started_again_and_its_plugins_write_on(house: EngineProcess) -> None:
    _, log = start_writing(house, "p", FLOOD)
    with answering(house, "p"):
        for _ in range(3):
            old = keeper_of(house)
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: keeper_of(house) != old, "another keeper")  # noqa: B023 - waited for here
            grows(log)
    assert "has exited; starting it again" in house.log.read_text()
    house.disable("p")


def test_m09_keeper_and_engine_killed_at_once_the_next_engine_puts_it_right(house: EngineProcess) -> None:
    pid, log = start_writing(house, "p", FLOOD)
    kill([keeper_of(house)])
    house.end(signal.SIGKILL)
    kill([keeper_of(house)])  # one that was started in between
    time.sleep(1)
    house.start()
    house.until("p", "ready")
    grows(log)
    assert house.more("p")["Pid"] == pid
    with answering(house, "p"):
        grows(log)


def test_m09_a_keeper_that_hangs_is_replaced_when_the_next_plugin_needs_it(house: EngineProcess) -> None:
    _, log = start_writing(house, "p", "count=100")
    old = keeper_of(house)
    stop(old)
    house.create("q", config("out=hello"))
    house.enable("q")
    house.until("q", "ready")
    assert keeper_of(house) != old
    grows(log)


def test_m09_lines_are_in_order_and_once_over_kills_of_both(house: EngineProcess) -> None:
    _, log = start_writing(house, "p", "count=2000")
    dice = random.Random(31)
    for _ in range(KILLS):
        time.sleep(dice.uniform(0, 0.5))
        victim = dice.choice(["engine", "keeper", "both"])
        if victim in ("keeper", "both"):
            kill([keeper_of(house)])
        if victim in ("engine", "both"):
            house.end(signal.SIGKILL)
            time.sleep(dice.uniform(0, 0.5))
            house.start()
            house.until("p", "ready")
        grows(log)
    found = [int(line.text) for line in log.last_lines(10**9)]
    assert found[0] == 0
    steps = [(one, other) for one, other in itertools.pairwise(found) if other != one + 1]
    # what a keeper has read and not yet written goes with it, no more: one read, and half a line
    assert len(steps) <= KILLS * 2
    assert all(one < other < one + 50_000 for one, other in steps)


def test_m09_many_plugins_write_on_without_the_engine(house: EngineProcess) -> None:
    logs = [start_writing(house, f"p{number}", "count=200")[1] for number in range(PLUGINS)]
    house.end(signal.SIGKILL)
    time.sleep(2)
    for log in logs:
        grows(log)
    house.start()
    house.wait_until(
        lambda: all(each["Moorage"]["State"] == "ready" for each in house.plugins()), "all of them", limit(60)
    )
    for log in logs:
        grows(log)
        found = [int(line.text) for line in log.last_lines(10**9)]
        assert found == list(range(found[0], found[0] + len(found)))


def test_m09_a_full_disk_of_logs_stops_no_plugin(tmp_path: Path) -> None:
    logs = tmp_path / "small"
    logs.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "logs").symlink_to(logs)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "logs", logs], check=True)
    try:
        with engine(tmp_path) as house:
            ballast = logs / "ballast"
            ballast.write_bytes(b"x" * 1_900_000)
            _, log = start_writing(house, "p", FLOOD)
            with answering(house, "p") as answers:
                before = answers()
                wait_until(lambda: answers() > before + 20, "answers on a full disk")
                ballast.unlink()
                wait_until(
                    lambda: any("were dropped: No space" in line.text for line in log.last_lines(10**9)), "a word"
                )
            house.remove("p", force=True)
    finally:
        subprocess.run(["umount", "-l", logs], check=True)


def test_m18_down_ends_the_keeper_after_the_plugins_also_where_it_was_killed(house: EngineProcess) -> None:
    start_writing(house, "p", "ignore-term", "count=1000")
    house.end(signal.SIGKILL)
    kill([keeper_of(house)])
    log = PluginLog(next((house.root / "logs").iterdir()))
    house.down()
    assert house.left() == []
    assert not leftovers.is_alive(keeper_of(house))
    found = [int(line.text) for line in log.last_lines(10**9)]
    assert len(found) > 100

"""What the service manager hears, over a real datagram socket."""

import dataclasses
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex

import anyio
import pytest
from blockbuster import blockbuster_ctx
from msgspec.structs import replace

from moorage._lib.journal import JournalFormatter, is_journal, prefixed
from moorage._lib.notify import ServiceManager
from moorage.engine.lifecycle import State
from moorage.engine.values import EngineInfo, PluginView
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config
from moorage.service_manager import notify_service_manager, status_line
from moorage.timeouts import Timeouts
from support.fake_backend import FakeBackend
from support.service_manager import Notifications, service_manager

pytestmark = pytest.mark.anyio

QUICK = dataclasses.replace(Timeouts(), notify=0.05)


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@moorage-test-{token_hex(8)}"


@pytest.fixture
def notifications(address: str) -> Iterator[Notifications]:
    with service_manager(address) as listening:
        yield listening


@contextmanager
def strict() -> Iterator[None]:
    with blockbuster_ctx("moorage"):
        yield


def with_plugins(*states: State) -> FakeBackend:
    backend = FakeBackend()
    config = parse_config(b'{"entrypoint": ["/p"], "interface": {"socket": "p.sock"}}').config
    settings = effective_settings(config, NO_OVERRIDES)
    views = [
        PluginView(f"{at}" * 64, f"p{at}:1", f"p{at}:1", False, each, config, settings)
        for at, each in enumerate(states)
    ]
    backend.plugins = {view.id: view for view in views}
    return backend


class Disconnected(FakeBackend):
    """One that has lost its containerd."""

    def info(self) -> EngineInfo:
        return replace(super().info(), problem="containerd is away")


class Bound(FakeBackend):
    """One whose plugins end with it."""

    def info(self) -> EngineInfo:
        return replace(super().info(), live_restore=False)


def test_a_status_counts_plugins_by_what_they_do() -> None:
    assert status_line(with_plugins()) == "no plugins"
    assert status_line(with_plugins(State.READY)) == "1 plugin: 1 ready"
    states = (State.FAILED, State.READY, State.DISABLED, State.READY)
    assert status_line(with_plugins(*states)) == "4 plugins: 1 disabled, 2 ready, 1 failed"
    assert status_line(Disconnected()) == "no plugins; containerd is away"


async def test_ready_then_what_changes_then_stopping(notifications: Notifications, address: str) -> None:
    engine, manager = with_plugins(State.READY), ServiceManager({"NOTIFY_SOCKET": address})
    with strict():
        async with notify_service_manager(manager, engine, QUICK):
            await anyio.wait_all_tasks_blocked()
            assert notifications.next(0) == {"READY": "1", "STATUS": "1 plugin: 1 ready"}
            (id,) = engine.plugins
            engine.plugins[id] = replace(engine.plugins[id], state=State.FAILED)  # no event: it is looked for
            await anyio.sleep(4 * QUICK.notify)
            assert notifications.waiting() == [{"STATUS": "1 plugin: 1 failed"}]
        assert notifications.waiting() == [
            {"STOPPING": "1", "STATUS": "leaving the plugins to the next engine or to `moorage down`"}
        ]
    assert notifications.senders == {os.getpid()}


async def test_m08_without_live_restore_its_last_words_are_that_plugins_end(
    notifications: Notifications, address: str
) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    async with notify_service_manager(manager, Bound(), QUICK):
        await anyio.wait_all_tasks_blocked()
        assert notifications.next(0)["READY"] == "1"
    assert notifications.waiting()[-1] == {"STOPPING": "1", "STATUS": "ending the plugins"}


class Unsettled(FakeBackend):
    """One that has not found out yet what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.is_settled = anyio.Event()

    async def settle(self) -> None:
        await self.is_settled.wait()


async def test_case_247_ready_waits_for_what_runs_and_stopping_comes_without_it(
    notifications: Notifications, address: str
) -> None:
    engine, manager = Unsettled(), ServiceManager({"NOTIFY_SOCKET": address})
    async with notify_service_manager(manager, engine, Timeouts()):
        await anyio.wait_all_tasks_blocked()
        assert notifications.waiting() == []
        engine.is_settled.set()
        await anyio.wait_all_tasks_blocked()
        assert notifications.next(0)["READY"] == "1"
    notifications.waiting()
    async with notify_service_manager(manager, Unsettled(), Timeouts()):
        await anyio.wait_all_tasks_blocked()
    assert [set(each) for each in notifications.waiting()] == [{"STOPPING", "STATUS"}]


async def test_case_247_ready_is_reported_after_a_bound_where_containerd_does_not_come(
    notifications: Notifications, address: str
) -> None:
    async with notify_service_manager(ServiceManager({"NOTIFY_SOCKET": address}), Unsettled(), Timeouts(announce=0.01)):
        while not (sent := notifications.waiting()):  # noqa: ASYNC110 - a socket that the loop does not know
            await anyio.sleep(0.01)
        assert sent[0]["READY"] == "1"


async def test_an_event_is_reported_at_once(notifications: Notifications, address: str) -> None:
    engine, manager = with_plugins(State.READY), ServiceManager({"NOTIFY_SOCKET": address})
    async with notify_service_manager(manager, engine, Timeouts()):
        await anyio.wait_all_tasks_blocked()
        engine.plugins.clear()
        engine.event_log.publish("remove", "0", "p0:1")
        await anyio.wait_all_tasks_blocked()
        assert notifications.waiting()[-1] == {"STATUS": "no plugins"}


async def test_the_watchdog_is_fed_twice_in_its_time_and_not_by_a_loop_that_hangs(
    notifications: Notifications, address: str
) -> None:
    period = 0.4
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": f"{period * 1e6:.0f}", "WATCHDOG_PID": str(os.getpid())}
    manager = ServiceManager(environment)
    assert (manager.beat, environment) == (period / 2, {})
    async with notify_service_manager(manager, with_plugins(), QUICK):
        await anyio.sleep(2.25 * period)
        beats = [message for message in notifications.waiting() if "WATCHDOG" in message]
        assert 2 <= len(beats) <= 5
        time.sleep(2 * period)  # noqa: ASYNC251 - the loop hangs
        assert notifications.waiting() == []


async def test_a_watchdog_of_another_process_is_ignored(notifications: Notifications, address: str) -> None:
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    assert ServiceManager(environment).beat == 0
    assert ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "soon"}).beat == 0
    assert ServiceManager({"WATCHDOG_USEC": "1000000"}).beat == 0


async def test_nothing_is_done_where_no_manager_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": f"{tmp_path}/no"}):
        manager = ServiceManager(environment)
        assert not await manager.notify(1.0, READY=1)
        async with notify_service_manager(manager, with_plugins(), QUICK):
            await anyio.wait_all_tasks_blocked()


async def test_a_message_waits_for_room_as_long_as_it_may(notifications: Notifications, address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    sent = 0
    while await manager.notify(0.0, STATUS=sent):
        sent += 1
    assert sent > 0  # the manager's queue is full
    assert not await manager.notify(0.05, READY=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(manager.notify, 10.0, READY=1))
        await anyio.wait_all_tasks_blocked()
        notifications.waiting()
    assert notifications.waiting() == [{"READY": "1"}]


async def test_a_status_of_several_lines_is_reported_as_one(notifications: Notifications, address: str) -> None:
    await ServiceManager({"NOTIFY_SOCKET": address}).notify(1.0, STATUS="first\nREADY=0")
    assert notifications.next() == {"STATUS": "first READY=0"}


def test_each_line_bears_its_priority() -> None:
    levels = {10: 7, 20: 6, 30: 4, 40: 3, 50: 2}
    assert {level: prefixed(level, "x") for level in levels} == {level: f"<{p}>x" for level, p in levels.items()}
    record = logging.LogRecord("moorage.x", logging.ERROR, "f", 1, "two\n%s", ("lines",), None)
    assert JournalFormatter("%(name)s: %(message)s").format(record) == "<3>moorage.x: two\n<3>  lines"


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        status = os.fstat(log.fileno())
        assert is_journal(log.fileno(), f"{status.st_dev}:{status.st_ino}")
        for other in (None, "", "8:1", f"{status.st_ino}:{status.st_dev}"):
            assert not is_journal(log.fileno(), other)
    assert not is_journal(987, "8:1")


@pytest.mark.parametrize("is_journal_stream", [True, False])
def test_an_error_of_the_command_line_bears_its_priority_in_the_journal_only(
    tmp_path: Path, is_journal_stream: bool
) -> None:
    near, far = socket.socketpair()
    with near, far:
        status = os.fstat(far.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if is_journal_stream else "1:2"
        environment = {"JOURNAL_STREAM": stream, "PYTHONPATH": os.pathsep.join(sys.path)}
        words = ["--host", str(tmp_path / "none"), "enable", "x"]
        subprocess.run([sys.executable, "-m", "moorage", *words], env=environment, stderr=far.fileno(), check=False)
        said = near.recv(10000).decode()
    assert said.startswith("<3>moorage: cannot reach" if is_journal_stream else "moorage: cannot reach")

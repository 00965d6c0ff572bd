"""Rows that only show against a real containerd that goes away, shims that are killed or slow, and time."""

import logging
import os
import signal
import time

import anyio
import pytest

from moorage.containerd.types import Status
from moorage.timeouts import Timeouts
from support.kills import kill, kill_containerd, replace_containerd, stopped
from support.places import Place
from support.scenes import FULL, ID, KILLED, scene
from support.victim import victim
from support.waiting import PATIENCE_SECONDS, eventually, settled

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(600 if FULL else 120)]

NEVER = -1
SHORT_OUTAGE, LONG_OUTAGE = 2.0, 20.0  # after the first containerd is told of an exit by the shim, after the second not
SHIM_LOAD_SECONDS = 6.5  # longer than containerd's own bound of 5 s on a shim that it finds at its start


@pytest.mark.parametrize(
    "seconds", [0.0, SHORT_OUTAGE, pytest.param(LONG_OUTAGE, marks=pytest.mark.skipif(not FULL, reason="20 s"))]
)
async def test_e43_case_004_an_exit_while_containerd_is_away_is_told_once(place: Place, seconds: float) -> None:
    async with scene(place) as it:
        await it.create()
        pid = await it.pid()
        await kill_containerd(place.containerd)
        await kill(pid)
        await anyio.sleep(seconds)  # the length of the outage is what is tried
        assert not it.exits.seen, "without containerd's word nothing is told"
        await place.containerd.ensure()
        await eventually(lambda: it.exits.seen)
        await place.assert_nothing_left()
        assert [(exit.code, exit.pid) for exit in it.exits.seen] == [(KILLED, pid)]


async def test_e43_an_exit_while_our_process_stands_still_is_told_once(place: Place) -> None:
    async with scene(place) as it:
        await it.create()
        pid = await it.pid()
    async with victim(place) as it_again:
        with anyio.fail_after(PATIENCE_SECONDS + 60):
            await it_again.begin("exit", NEVER)
            child = await it_again.ready()
            with stopped(child):
                await kill(pid)
                await anyio.sleep(60 if FULL else 1)  # the time that it stands still is what is tried
            fate = await it_again.end()
    assert (fate.killed, fate.told) == (False, [KILLED])
    await place.assert_nothing_left()


async def test_e44_case_035_ten_restarts_of_containerd_are_no_exit(place: Place) -> None:
    async with scene(place) as it:
        await it.create()
        pid = await it.pid()
        for _ in range(10):
            before = it.proxy.subscriptions
            await replace_containerd(place.containerd)
            await eventually(lambda: it.proxy.subscriptions == before + 1)  # noqa: B023 - awaited in this round
            assert await it.executor.is_running(ID)
            assert await it.pid() == pid
        assert not it.exits.seen
        assert (await it.end()).pid == pid


async def test_e44_a_shim_that_is_slow_when_containerd_comes_back_keeps_its_container(place: Place) -> None:
    async with scene(place) as it:
        await it.create()
        pid = await it.pid()
        with stopped(*place.shims(ID)):
            await kill_containerd(place.containerd)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(place.containerd.ensure)
                await anyio.sleep(SHIM_LOAD_SECONDS)  # how slow it is is what is tried
                for shim in place.shims(ID):
                    os.kill(shim, signal.SIGCONT)
        assert await it.pid() == pid
        assert not it.exits.seen
        await it.end()


async def test_e44_a_shim_that_hangs_is_no_exit_and_its_exit_is_told_when_it_goes_on(place: Place) -> None:
    async with scene(place, Timeouts(reconcile=0.2)) as it:
        await it.create()
        pid = await it.pid()
        with stopped(*place.shims(ID)):
            async with place.containers() as containers:
                assert await containers.status(ID) is Status.UNKNOWN
            await kill(pid)
            async with place.containers() as containers:
                assert await containers.status(ID) is Status.UNKNOWN
            assert not it.exits.seen
        await eventually(lambda: it.exits.seen)
        await place.assert_nothing_left()
        assert [exit.code for exit in it.exits.seen] == [KILLED]


def said(caplog: pytest.LogCaptureFixture, word: str = "") -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "moorage.executor.watch"]
    return [message for message in messages if word in message]


async def test_e45_case_036_an_outage_costs_little_and_ends_with_one_subscription(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = 120.0 if FULL else 2.0
    async with scene(place) as it:
        await it.create()
        caplog.set_level(logging.INFO, "moorage.executor")
        it.proxy.refuse()
        await settled()
        used = time.process_time()
        await anyio.sleep(seconds)  # the length of the outage is what is tried
        share = (time.process_time() - used) / seconds
        before = it.proxy.subscriptions
        await it.proxy.listen()
        await eventually(lambda: it.proxy.subscriptions > before)
        assert await it.executor.is_running(ID)
        assert it.proxy.subscriptions == before + 1
        await eventually(lambda: said(caplog) != said(caplog, "away"))
        assert [len(said(caplog, word)) for word in ("", "away", "back")] == [2, 1, 1]
        assert share < 0.02 or not FULL, f"{share:.1%} of a processor"
        await it.end()


async def test_e45_quick_restarts_end_with_one_subscription(place: Place) -> None:
    async with scene(place) as it:
        for _ in range(20 if FULL else 6):
            before = it.proxy.subscriptions
            it.proxy.cut()
            await eventually(lambda: it.proxy.subscriptions > before)  # noqa: B023 - awaited in this round
        await settled()
        before = it.proxy.subscriptions
        await it.create()
        await it.end()
        assert it.proxy.subscriptions == before


@pytest.mark.parametrize("command", ["exec tail /dev/zero", "tail /dev/zero; exit 7"])
async def test_e47_case_099_an_end_for_want_of_memory_is_told_as_one(place: Place, command: str) -> None:
    limit = {"resources": {"memory": {"limit": 32 * 1024 * 1024}}}
    of_init = command.startswith("exec")
    async with scene(place) as it:
        await it.executor.create(ID, place.shell(ID, command, linux=limit), *it.two_sinks())
        await eventually(lambda: it.exits.seen)
        await place.assert_nothing_left()
        (exit,) = it.exits.seen
        assert (exit.code, exit.oom) == ((KILLED, True) if of_init else (7, False))


@pytest.mark.parametrize("is_up", [True, False])
async def test_e49_a_killed_shim_is_one_exit_without_a_code_and_the_id_is_free(place: Place, is_up: bool) -> None:
    async with scene(place) as it:
        await it.create()
        pid = await it.pid()
        if not is_up:
            await kill_containerd(place.containerd)
        for shim in place.shims(ID):
            await kill(shim)
        if not is_up:
            assert not it.exits.seen
            await place.containerd.ensure()
        await eventually(lambda: it.exits.seen)
        await place.assert_nothing_left()
        assert [(exit.code, exit.signal, exit.pid) for exit in it.exits.seen] == [(None, None, pid)]
        await it.create()
        assert (await it.end()).code == KILLED

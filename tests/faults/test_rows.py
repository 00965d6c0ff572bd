"""Rows that only show against a real containerd that becomes unavailable, shims that are killed or slow, and time."""

import logging
import os
import signal
import time

import anyio
import pytest

from moorage.containerd.types import Status
from moorage.timeouts import Timeouts
from support.conditions import TIMEOUT_SECONDS, eventually, settled
from support.kills import kill, kill_containerd, replace_containerd, stopped
from support.limits import limit
from support.operation_process import operation_process
from support.scenario import FULL, ID, KILLED, scenario
from support.workspace import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.timeout(limit(600 if FULL else 120))]

NEVER = -1
SHORT_OUTAGE, LONG_OUTAGE = 2.0, 20.0  # after the first the shim reports an exit to containerd, after the second not
SHIM_LOAD_SECONDS = 6.5  # longer than containerd's own bound of 5 s on a shim that it finds at its start


@pytest.mark.parametrize(
    "seconds", [0.0, SHORT_OUTAGE, pytest.param(LONG_OUTAGE, marks=pytest.mark.skipif(not FULL, reason="20 s"))]
)
async def test_e43_case_004_an_exit_while_containerd_is_unavailable_is_reported_once(
    workspace: Workspace, seconds: float
) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
        await kill_containerd(workspace.containerd)
        await kill(pid)
        await anyio.sleep(seconds)  # the length of the outage is what is tried
        assert not it.exits.seen, "without containerd's word nothing is told"
        await workspace.containerd.ensure()
        await eventually(lambda: it.exits.seen)
        await workspace.assert_nothing_left()
        assert [(exit.code, exit.pid) for exit in it.exits.seen] == [(KILLED, pid)]


async def test_e43_an_exit_while_our_process_stands_still_is_reported_once(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
    async with operation_process(workspace) as it_again:
        with anyio.fail_after(TIMEOUT_SECONDS + limit(60)):
            await it_again.begin("exit", NEVER)
            child = await it_again.ready()
            with stopped(child):
                await kill(pid)
                await anyio.sleep(60 if FULL else 1)  # the time that it stands still is what is tried
            child_exit = await it_again.end()
    assert (child_exit.killed, child_exit.reported) == (False, [KILLED])
    await workspace.assert_nothing_left()


@pytest.mark.extensive
async def test_e44_case_035_ten_restarts_of_containerd_are_no_exit(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
        for _ in range(10):
            before = it.proxy.subscriptions
            await replace_containerd(workspace.containerd)
            await eventually(lambda: it.proxy.subscriptions == before + 1)  # noqa: B023 - awaited in this round
            assert await it.executor.is_running(ID)
            assert await it.pid() == pid
        assert not it.exits.seen
        assert (await it.end()).pid == pid


async def test_e44_a_shim_that_is_slow_when_containerd_comes_back_keeps_its_container(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
        with stopped(*workspace.shims(ID)):
            await kill_containerd(workspace.containerd)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(workspace.containerd.ensure)
                await anyio.sleep(SHIM_LOAD_SECONDS)  # how slow it is is what is tried
                for shim in workspace.shims(ID):
                    os.kill(shim, signal.SIGCONT)
        assert await it.pid() == pid
        assert not it.exits.seen
        await it.end()


async def test_e44_a_shim_that_hangs_is_no_exit_and_its_exit_is_reported_when_it_continues(
    workspace: Workspace,
) -> None:
    async with scenario(workspace, Timeouts(reconcile=0.2)) as it:
        await it.create()
        pid = await it.pid()
        with stopped(*workspace.shims(ID)):
            async with workspace.containers() as containers:
                assert await containers.status(ID) is Status.UNKNOWN
            await kill(pid)
            async with workspace.containers() as containers:
                assert await containers.status(ID) is Status.UNKNOWN
            assert not it.exits.seen
        await eventually(lambda: it.exits.seen)
        await workspace.assert_nothing_left()
        assert [exit.code for exit in it.exits.seen] == [KILLED]


def said(caplog: pytest.LogCaptureFixture, word: str = "") -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "moorage.executor.watch"]
    return [message for message in messages if word in message]


async def test_e45_case_036_an_outage_costs_little_and_ends_with_one_subscription(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = 120.0 if FULL else 2.0
    async with scenario(workspace) as it:
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
        await eventually(lambda: said(caplog) != said(caplog, "is unavailable"))
        assert [len(said(caplog, word)) for word in ("", "is unavailable", "available again")] == [2, 1, 1]
        assert share < 0.02 or not FULL, f"{share:.1%} of a processor"
        await it.end()


async def test_e45_quick_restarts_end_with_one_subscription(workspace: Workspace) -> None:
    async with scenario(workspace) as it:
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
async def test_e47_case_099_a_kill_by_the_oom_killer_is_reported_as_one(workspace: Workspace, command: str) -> None:
    memory = {"resources": {"memory": {"limit": 32 * 1024 * 1024}}}
    of_init = command.startswith("exec")
    async with scenario(workspace) as it:
        await it.executor.create(ID, workspace.shell(ID, command, linux=memory), *it.two_sinks())
        await eventually(lambda: it.exits.seen)
        await workspace.assert_nothing_left()
        (exit,) = it.exits.seen
        assert (exit.code, exit.oom) == ((KILLED, True) if of_init else (7, False))


@pytest.mark.parametrize("is_up", [True, False])
async def test_e49_a_killed_shim_is_one_exit_without_a_code_and_the_id_is_free(
    workspace: Workspace, is_up: bool
) -> None:
    async with scenario(workspace) as it:
        await it.create()
        pid = await it.pid()
        if not is_up:
            await kill_containerd(workspace.containerd)
        for shim in workspace.shims(ID):
            await kill(shim)
        if not is_up:
            assert not it.exits.seen
            await workspace.containerd.ensure()
        await eventually(lambda: it.exits.seen)
        await workspace.assert_nothing_left()
        assert [(exit.code, exit.signal, exit.pid) for exit in it.exits.seen] == [(None, None, pid)]
        await it.create()
        assert (await it.end()).code == KILLED

"""Containers whose specs name one group share a shim, which is made once, whatever becomes of the one before it."""

import os
import shutil
import signal

import anyio
import pytest

from moorage.containerd.types import RuntimeOptions
from support import leftovers
from support.conditions import eventually
from support.harness import Harness, harness
from support.kills import replace_containerd
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]

GROUP = {"io.containerd.runc.v2.group": "all"}
IDS = tuple("abcdef")

SLOW_SHIM = """#!/bin/sh
# A shim whose start takes as long as on a busy machine, before it makes its socket and after. Two at once are noted.
case " $* " in *" start "*)
    mkdir {here}/starts || echo "$*" >> {here}/overlaps
    sleep 0.05
    {shim} "$@"
    status=$?
    sleep 0.1
    rmdir {here}/starts
    exit $status
esac
exec {shim} "$@"
"""


def slow_shim(workspace: Workspace) -> RuntimeOptions:
    """A runtime whose shims start slowly."""
    shim = workspace.root / "containerd-shim-slow-v2"
    shim.write_text(SLOW_SHIM.format(here=workspace.root, shim=shutil.which("containerd-shim-runc-v2")))
    shim.chmod(0o755)
    return RuntimeOptions(name=str(shim), root=workspace.runtime.root)


def starts_at_once(workspace: Workspace) -> list[str]:
    """The starts of a slow shim that began while another one was under way."""
    noted = workspace.root / "overlaps"
    return noted.read_text().splitlines() if noted.exists() else []


async def create(it: Harness, id: str) -> None:
    spec = {**it.workspace.shell(id, "exec sleep 1000000"), "annotations": GROUP}
    await it.executor.create(id, spec, *it.pair())


async def create_at_once(it: Harness, *ids: str) -> None:
    async with anyio.create_task_group() as tasks:
        for id in ids:
            tasks.start_soon(create, it, id)


async def pids(it: Harness) -> dict[str, int]:
    return {task.container_id: task.pid for task in await it.client.list_tasks()}


async def end(it: Harness, *ids: str) -> None:
    """Kill what runs, and return when all of it is removed."""
    before = {id: len(it.exits.of(id)) for id in ids}
    for id in ids:
        await it.kill(id)
    await eventually(lambda: all(len(it.exits.of(id)) > count for id, count in before.items()))


async def test_the_first_of_a_group_make_one_shim(workspace: Workspace) -> None:
    async with harness(workspace, runtime=slow_shim(workspace)) as it:
        await create_at_once(it, *IDS)
        assert len(workspace.shims()) == 1
        await end(it, *IDS)
    assert starts_at_once(workspace) == []


async def test_e49_those_that_come_back_after_their_shim_was_killed_make_one_shim(workspace: Workspace) -> None:
    async with harness(workspace, runtime=slow_shim(workspace)) as it:
        await create_at_once(it, *IDS)
        for round in range(1, 4):
            (shim,) = workspace.shims()
            os.kill(shim, signal.SIGKILL)
            async with anyio.create_task_group() as tasks:
                for id in IDS:  # each as soon as its own exit is reported, whatever became of the others
                    tasks.start_soon(come_back, it, id, round)
            assert len(workspace.shims()) == 1
        before = await pids(it)
        await replace_containerd(workspace.containerd)
        assert await pids(it) == before
        assert all(leftovers.is_alive(pid) for pid in before.values())
        await end(it, *IDS)
    assert starts_at_once(workspace) == []


async def come_back(it: Harness, id: str, round: int) -> None:
    await eventually(lambda: len(it.exits.of(id)) == round)
    await create(it, id)


async def test_one_that_comes_while_the_last_one_goes_gets_a_shim_that_stays(workspace: Workspace) -> None:
    async with harness(workspace, runtime=slow_shim(workspace)) as it:
        await create(it, "a")
        for going, coming in zip("abcdea", "bcdeab", strict=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end, it, going)
                tasks.start_soon(create, it, coming)
        assert len(workspace.shims()) == 1
        before = await pids(it)
        await replace_containerd(workspace.containerd)
        assert await pids(it) == before
        await end(it, "b")


async def test_one_whose_creation_fails_takes_no_shim_from_the_next(workspace: Workspace) -> None:
    async with harness(workspace, runtime=slow_shim(workspace)) as it:
        for id in IDS:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail, it, f"x{id}")
                tasks.start_soon(create, it, id)
            assert len(workspace.shims()) == 1
            await end(it, id)


async def fail(it: Harness, id: str) -> None:
    spec = it.workspace.command(id, ["/does/not/exist"])
    with pytest.raises(Exception, match="no such file"):
        await it.executor.create(id, {**spec, "annotations": GROUP}, *it.pair())

"""Random calls of the client while containerd is killed again and again; scripts/soak client does it for longer."""

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from moorage import errors
from moorage.containerd import Client, subscribe
from support.fixtures import session as session
from support.fixtures import workspace as workspace
from support.kills import replace_containerd
from support.limits import limit
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.extensive, pytest.mark.anyio]

SECONDS = float(os.environ.get("MOORAGE_SOAK_SECONDS", "40"))
PAUSE = min(20.0, SECONDS / 5)
"""Seconds between two kills."""


async def chunks(offset: int) -> AsyncIterator[bytes]:
    yield b"x" * (1 << 20)


async def run(client: Client, workspace: Workspace, id: str) -> None:
    await client.create_container(id, workspace.shell(id, "exit 3"), workspace.runtime)
    await client.create_task(id)
    await client.start_task(id)
    await client.wait(id, within=limit(30))
    await client.delete_task(id)
    await client.delete_container(id)


async def first_event(client: Client) -> None:
    with anyio.move_on_after(0.2):
        async with subscribe(client, ".*") as envelopes:
            await anext(envelopes)


async def write(client: Client, name: str) -> None:
    await client.storage.create_lease(name)
    await client.storage.under(name).write_content(name, chunks)
    await client.storage.delete_lease(name)


async def snapshot(client: Client, name: str) -> None:
    await client.storage.prepare_snapshot("native", name)
    await client.storage.snapshot_usage("native", name)
    await client.storage.remove_snapshot("native", name)


@pytest.mark.timeout(limit(SECONDS + 240))
async def test_i21_every_failure_while_containerd_is_killed_is_a_kind(workspace: Workspace) -> None:
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    others: list[BaseException] = []
    numbers = iter(range(10**9))

    async with workspace.client() as client:

        def calls() -> dict[str, Callable[[], Awaitable[object]]]:
            name = f"n{next(numbers)}"
            return {
                "run": lambda: run(client, workspace, name),
                "events": lambda: first_event(client),
                "write": lambda: write(client, name),
                "snapshot": lambda: snapshot(client, name),
                "version": client.version,
                "list": client.list_tasks,
                "content": client.storage.list_content,
                "metrics": lambda: client.metrics(name),
                "cancelled": lambda: cancelled(client),
            }

        async def work(seed: int) -> None:
            choose = random.Random(seed)
            while True:
                made = calls()
                kind = choose.choice(sorted(made))
                try:
                    await made[kind]()
                    done[kind] += 1
                except errors.MoorageError as error:
                    failed[f"{kind}: {type(error).__name__}"] += 1
                    await anyio.sleep(0.05)
                except Exception as error:  # noqa: BLE001 - what the test looks for
                    others.append(error)

        with anyio.move_on_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                for seed in range(12):
                    tasks.start_soon(work, seed)
                while True:
                    await anyio.sleep(PAUSE)
                    await replace_containerd(workspace.containerd)
        await workspace.containerd.ensure()
        assert (await client.version()).version, "and the client works afterwards"
    sys.stdout.write(f"done {dict(done)}\nfailed {dict(failed)}\n")
    await clear(workspace)
    assert others == []
    assert done.keys() >= {"run", "events", "write", "snapshot", "version", "list"}
    assert any(name.endswith(("Unavailable", "Busy")) for name in failed)


async def cancelled(client: Client) -> None:
    with anyio.move_on_after(0.0005):
        await client.list_containers()


async def clear(workspace: Workspace) -> None:
    """Remove what calls that failed half-way have left: this is no business of the client."""
    async with workspace.client() as client, workspace.containers() as containers:
        ids = {each.container_id for each in await client.list_tasks()} | {x.id for x in await client.list_containers()}
        for id in ids:
            await containers.delete_task(id)
            with suppress(errors.NotFound):
                await client.delete_container(id)
        for each in await client.storage.list_snapshots("native"):
            await client.storage.remove_snapshot("native", each.name)
        for lease in await client.storage.list_leases():
            await client.storage.delete_lease(lease)
        await client.storage.collect()
        for record in await client.list_containers():
            await client.delete_container(record.id)
    for directory in workspace.task_directories.glob("*"):  # of tasks that containerd was killed with
        shutil.rmtree(directory)

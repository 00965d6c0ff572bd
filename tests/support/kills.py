"""What else breaks: containerd, a shim or a container's process is killed, or stopped for a while."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moorage.containerd.client import Client
from moorage.containerd.supervisor import PrivateContainerd
from moorage.containerd.types import Status
from moorage.host.processes import wait_for_exit
from support.conditions import eventually


async def kill(pid: int) -> None:
    """SIGKILL, and wait for the end."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    await wait_for_exit(pid)


async def kill_task(client: Client, id: str) -> None:
    """SIGKILL the first process of a container, and wait until containerd knows: its shim reaps a moment later."""
    os.kill((await client.get_task(id)).pid, signal.SIGKILL)

    async def is_known() -> bool:
        return (await client.get_task(id)).status is Status.STOPPED

    await eventually(is_known)


async def kill_containerd(containerd: PrivateContainerd) -> None:
    """SIGKILL containerd; its containers and shims keep running."""
    pid = containerd.find()
    if pid is not None:
        await kill(pid)


async def replace_containerd(containerd: PrivateContainerd) -> None:
    """SIGKILL containerd and start another instead."""
    await kill_containerd(containerd)
    await containerd.ensure()


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """The processes stand still inside the block."""
    try:
        for pid in pids:
            stop(pid)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def stop(pid: int) -> None:
    """SIGSTOP, and wait until the process stands still: each of its threads stops at its own next step."""
    os.kill(pid, signal.SIGSTOP)
    while not _stands_still(pid):
        os.sched_yield()


def _stands_still(pid: int) -> bool:
    try:
        stats = [Path(f"/proc/{pid}/task/{thread}/stat").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return True  # it has ended
    return all(stat.rpartition(") ")[2].startswith(("T", "Z")) for stat in stats)

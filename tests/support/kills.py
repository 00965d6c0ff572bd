"""What else breaks: containerd, a shim or a container's process is killed, or stopped for a while."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from moorage._lib.pidfd import wait_for_end
from moorage.containerd.supervisor import PrivateContainerd


async def kill(pid: int) -> None:
    """SIGKILL, and wait for the end."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    await wait_for_end(pid)


async def kill_containerd(containerd: PrivateContainerd) -> None:
    """SIGKILL containerd; its containers and shims live on."""
    pid = containerd.find()
    if pid is not None:
        await kill(pid)


async def replace_containerd(containerd: PrivateContainerd) -> None:
    """SIGKILL containerd and start another in its place."""
    await kill_containerd(containerd)
    await containerd.ensure()


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """The processes stand still inside the block."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

"""An executor on a real containerd that reports exits before the removal, as an engine has it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from moorage.containerd import connect
from moorage.containerd.containers import BundledContainers
from moorage.embedding import runtime_below
from moorage.executor import Executor, ExitHandler, open_executor
from moorage.timeouts import Timeouts

NEXT = "b"
"""The run that is created when the exit of the other one is reported."""


@asynccontextmanager
async def early_executor(
    address: str, root: Path, handler: ExitHandler, namespace: str, timeouts: Timeouts
) -> AsyncIterator[Executor]:
    """An executor with ``exits_early`` over the containerd at this socket."""
    runtime = runtime_below(root)
    async with connect(address, namespace, timeouts) as client:
        containers = BundledContainers(client, root, runtime=runtime, timeouts=timeouts)
        async with open_executor(containers, handler, runtime=runtime, timeouts=timeouts, exits_early=True) as executor:
            yield executor

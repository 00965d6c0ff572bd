"""Opens an executor, and closes it at the end of a block."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage.containerd.types import RuntimeOptions
from moorage.executor.executor import Executor
from moorage.executor.protocols import ContainerClient, ExitHandler
from moorage.host.processes import wait_for_exit
from moorage.timeouts import DEFAULT, ExecutorTimeouts

__all__ = ("open_executor",)


@asynccontextmanager
async def open_executor(
    client: ContainerClient,
    exit_handler: ExitHandler,
    *,
    runtime: RuntimeOptions,
    timeouts: ExecutorTimeouts = DEFAULT,
    wait_for_exit: Callable[[int], Awaitable[None]] = wait_for_exit,
    exits_early: bool = False,
) -> AsyncIterator[Executor]:
    """An executor over this client, closed with ``aclose`` at the end of the block.

    With ``exits_early`` the handler is called as soon as the output of a run that exited is drained, its exit is known
    and no process of it is left; the executor removes it afterwards. The id can be used again after ``wait_removed``,
    and a ``restore`` by the next process may find the same exit again. For callers with a new id for each run.

    ``wait_for_exit`` returns when the process with a pid has exited; simulations replace it.

    Raises: the kind of the cause, as "cannot create containerd exec client: ...", if containerd cannot be reached.
    """
    executor = Executor(client, exit_handler, runtime, timeouts, wait_for_exit, exits_early)
    async with background_tasks() as tasks:
        failure: errors.MoorageError | None = await tasks.start(executor._serve)
        if failure is not None:
            raise type(failure)(f"cannot create containerd exec client: {failure}") from failure
        try:
            yield executor
        finally:
            with anyio.CancelScope(shield=True):
                await executor.aclose()

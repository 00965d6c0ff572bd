"""Background tasks for the length of a block, and the event loop that they need."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from moorage import errors

__all__ = ("background_tasks", "require_asyncio", "side_by_side")


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """A task group that is cancelled at the end of the block.

    What the block raises is raised as itself, not in an ExceptionGroup: the user of a context manager need not know
    that it runs tasks. A task that fails cancels the block, and its error is raised in a group, as always.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:  # noqa: BLE001 - raised again below, outside the group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def side_by_side(*jobs: Callable[[], Awaitable[None]]) -> None:
    """Do these at the same time, and return when all are done: one that fails interrupts no other.

    Raises: what the first of them that failed has raised, in the order of the arguments.
    """
    failures: dict[int, Exception] = {}

    async def run(number: int, job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except Exception as error:  # noqa: BLE001 - raised again below, outside the group
            failures[number] = error

    async with anyio.create_task_group() as tasks:
        for number, job in enumerate(jobs):
            tasks.start_soon(run, number, job)
    if failures:
        raise failures[min(failures)]


def require_asyncio(purpose: str) -> None:
    """Raises: Unsupported, "cannot <purpose>: ...", where no event loop of asyncio runs, as under trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise errors.Unsupported(
            f"cannot {purpose}: an event loop of asyncio is required (anyio.run, asyncio.run); trio is not supported"
        ) from error

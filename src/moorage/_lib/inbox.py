"""One inbox per key: the jobs of a key run one at a time and in order, different keys run side by side.

A key costs a task only while it has jobs, so thousands of idle keys cost nothing.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

__all__ = ("Inboxes",)

Key = TypeVar("Key")
Job = Callable[[], Awaitable[None]]


class Inboxes(Generic[Key]):
    """Inboxes whose workers live in the given task group."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._waiting: dict[Key, deque[Job]] = {}

    def put(self, key: Key, job: Job) -> None:
        """Queue a job and go on. The job must not raise: nobody would hear it but the task group."""
        if key in self._waiting:
            self._waiting[key].append(job)
        else:
            self._waiting[key] = deque([job])
            self._tasks.start_soon(self._work, key)

    async def run(self, key: Key, job: Job) -> None:
        """Queue a job and wait for its end; what it raises is raised here.

        A caller that is cancelled stops waiting; the job goes on, because it may be half-way.
        """
        done = anyio.Event()
        failure: list[Exception] = []

        async def report() -> None:
            try:
                await job()
            except Exception as error:  # noqa: BLE001 - handed to the caller, who waits for it
                failure.append(error)
            finally:
                done.set()

        self.put(key, report)
        await done.wait()
        if failure:
            raise failure[0]

    async def _work(self, key: Key) -> None:
        jobs = self._waiting[key]
        try:
            while jobs:
                await jobs.popleft()()
        finally:
            del self._waiting[key]

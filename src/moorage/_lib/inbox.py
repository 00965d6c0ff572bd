"""One inbox per key: the jobs of a key run one at a time and in order, different keys run side by side.

A key costs a task only while it has jobs, so thousands of idle keys cost nothing.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from moorage import errors

__all__ = ("Inboxes",)

Key = TypeVar("Key")
Job = Callable[[], Awaitable[None]]


class _Entry:
    """A job, whose completion can be awaited."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._done = anyio.Event()
        self._failure: Exception | None = None

    async def run(self) -> None:
        try:
            await self._job()
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._failure = error
        except BaseException:
            self.abandon()
            raise
        self._done.set()

    def abandon(self) -> None:
        self._failure = errors.Conflict("cannot finish: its worker was stopped")
        self._done.set()

    async def wait(self) -> None:
        await self._done.wait()
        if self._failure is not None:
            raise self._failure


class Inboxes(Generic[Key]):
    """Inboxes whose workers run in the given task group."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._waiting: dict[Key, deque[_Entry]] = {}

    def put(self, key: Key, job: Job) -> None:
        """Queue a job and return. What it raises is discarded."""
        self._put(key, _Entry(job))

    async def run(self, key: Key, job: Job) -> None:
        """Queue a job and wait until it is done; what it raises is raised here.

        A caller that is cancelled stops waiting; the job continues, because it may have changed something already.

        Raises: what the job raises; Conflict if the task group is cancelled before the job is done.
        """
        entry = _Entry(job)
        self._put(key, entry)
        await entry.wait()

    def _put(self, key: Key, entry: _Entry) -> None:
        if key in self._waiting:
            self._waiting[key].append(entry)
        else:
            self._waiting[key] = deque([entry])
            self._tasks.start_soon(self._work, key)

    async def _work(self, key: Key) -> None:
        entries = self._waiting[key]
        try:
            while entries:
                await entries.popleft().run()
        finally:
            del self._waiting[key]
            for entry in entries:
                entry.abandon()

"""The interfaces of the executor: what it requires, and what it reports.

``ContainerClient`` is the seam to containerd: one real implementation (``moorage.containerd.containers``) and one fake,
verified by running the same contract tests on both.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from moorage.containerd.types import Envelope, Mount, RuntimeOptions, Spec, Status

__all__ = (
    "INIT_PROCESS_NAME",
    "PLUGIN_NAMESPACE",
    "RUN_LABEL",
    "Attach",
    "Attached",
    "ByteSink",
    "ContainerClient",
    "Exit",
    "ExitHandler",
    "InputStream",
    "OutputStream",
    "Stdio",
)

PLUGIN_NAMESPACE = "plugins.moby"
"""The containerd namespace of Docker's plugins, and Moorage's default."""

INIT_PROCESS_NAME = "init"
"""The container's first process, the only one that is signalled."""

RUN_LABEL = "moorage.run"
"""Label of a container record: the identity of its run. A record without it was not created by Moorage."""


class Exit(Struct, frozen=True):
    """The exit of one run of a container.

    ``id`` is the container's, ``run`` the run's own id, ``pid`` that of its first process in this pid namespace.
    """

    id: str
    run: str
    code: int | None
    """Exit status; 128 + n for signal n, as runtimes report it. None if it cannot be known (the shim was killed)."""

    signal: str | None = None
    """Name of the signal that the code stands for, as SIGKILL. A process that returns 137 itself looks the same."""

    oom: bool = False
    """It was OOM-killed."""

    exited_at: datetime | None = None
    """When it exited, UTC; None if unknown."""

    pid: int | None = None


class ExitHandler(Protocol):
    """Receives the exit of every run, exactly once."""

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        """Called when the run has exited and is removed: the id can be created again, also by this method.

        An executor with ``exits_early`` calls it before the removal, if it knows the exit: see ``open_executor``.
        """


class OutputStream(Protocol):
    """The read end of a stdout or stderr."""

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end. Raises: anyio.ClosedResourceError after ``close``."""

    def fileno(self) -> int:
        """The descriptor, for passing it on. Raises: anyio.ClosedResourceError after ``close``."""

    def close(self) -> None:
        """Stop reading; a waiting ``read`` is woken. May be repeated."""


class InputStream(Protocol):
    """The write end of a stdin."""

    def close(self) -> None:
        """Close the stream; the process reads end of file."""


class Stdio(Protocol):
    """The standard streams of a process."""

    @property
    def stdout(self) -> OutputStream:
        """The read end of its stdout."""
        ...

    @property
    def stderr(self) -> OutputStream:
        """The read end of its stderr."""
        ...

    @property
    def stdin(self) -> InputStream | None:
        """The write end of its stdin; None without one."""
        ...

    def note(self, line: str) -> None:
        """Append a line to each stream that a process has open, as if it had written it. Best effort."""

    def close(self) -> None:
        """Close all own ends; waiting readers are woken. May be repeated."""


class Attached(Protocol):
    """The consumer of the streams of a task."""

    async def wait(self) -> None:
        """Return when both streams have reached end of file.

        Cancelled if that takes too long, and possibly called again.
        """


Attach = Callable[[Stdio], Awaitable[Attached]]
"""Accepts the streams of a task that is about to be started, or is running."""


class ByteSink(Protocol):
    """Receives the bytes of one stream. Both methods may be plain or ``async``; plain ones run in a worker thread."""

    def write(self, data: bytes, /) -> object:
        """Accept these bytes. A slow sink blocks the process; buffers are bounded."""

    def close(self) -> object:
        """Called once, when the stream has ended."""


class ContainerClient(Protocol):
    """One container with one task per id. Failures come by kind (``moorage.errors``)."""

    async def create(
        self,
        id: str,
        spec: Spec,
        runtime_options: RuntimeOptions,
        *,
        rootfs: Sequence[Mount] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create record and directory, all or nothing. Raises: Conflict if the id has a record."""

    async def restore(self, id: str, attach: Attach) -> tuple[bool, int | None]:
        """Attach to an existing task: whether it is running, and its pid. Raises: NotFound if part of it is missing."""

    async def status(self, id: str) -> Status:
        """The state of the task. Raises: NotFound without a task."""

    async def labels(self, id: str) -> Mapping[str, str]:
        """The labels of the record. Raises: NotFound without a record."""

    async def delete(self, id: str) -> None:
        """Delete record, directory and FIFOs, if they exist. Raises: Conflict while a process may be running."""

    async def delete_task(self, id: str) -> tuple[int | None, datetime | None]:
        """Kill the task, wait, delete it; returns exit code and time, both None if there was none.

        The exit of a deleted task is returned again until ``delete``, also to another process.

        Raises: Unavailable while a process of it may still be running.
        """

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        """Create the task, hand its streams to ``attach``, start it; returns its pid.

        Raises: Conflict if a leftover task of the id exists: delete it and retry.
        """

    async def prepare(self, id: str, attach: Attach) -> int:
        """As ``start``, but the task is only created, not started; returns the pid of its process.

        Raises: Conflict if a leftover task of the id exists: delete it and retry.
        """

    async def start_prepared(self, id: str) -> int:
        """Start a task that ``prepare`` has created; returns its pid.

        Raises: NotFound without one.
        Raises: MoorageError where its process has exited.
        """

    async def find_exit(self, id: str) -> tuple[int | None, datetime | None] | None:
        """Exit code and time of a task whose status was stopped, if no other process of it can run; else None.

        None also where only ``delete_task`` knows.
        """

    async def signal_process(self, id: str, process_id: str, signal: int) -> None:
        """Send a signal to one process. Raises: NotFound if it has exited."""

    async def oom_killed(self, id: str) -> bool:
        """Whether a process in the container was OOM-killed. Call it before ``delete_task``."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Envelope]]:
        """The events of the namespace from the moment of entering.

        Raises: Unavailable if containerd cannot be reached, from entering and from the iterator.
        """

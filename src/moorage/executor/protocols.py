"""What the executor needs from others, and what it tells them.

``ContainerClient`` is the seam to containerd: one real implementation (``moorage.containerd.containers``) and one fake,
kept honest by running the same contract tests on both.
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
"""The containerd namespace of Docker's plugins, and ours unless told otherwise."""

INIT_PROCESS_NAME = "init"
"""The only process that is ever signalled: the container's first."""

RUN_LABEL = "moorage.run"
"""Label of a container record: the identity of its run. A record without it is not ours."""


class Exit(Struct, frozen=True):
    """How one run of a container ended."""

    id: str
    run: str
    code: int | None
    """Exit status; 128 + n for signal n, as runtimes give it. None where nobody can know it (the shim was killed)."""

    signal: str | None = None
    """Name of the signal that the code stands for, as SIGKILL. A process that returns 137 itself looks the same."""

    oom: bool = False
    """The kernel killed it for want of memory."""

    exited_at: datetime | None = None
    """When it ended, UTC; None where nobody can know it."""

    pid: int | None = None


class ExitHandler(Protocol):
    """Learns of the end of every run, exactly once."""

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        """The run is over and everything of it is removed: the same id can be created again, also from here."""


class OutputStream(Protocol):
    """The read end of a process's stdout or stderr."""

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end. Raises: anyio.ClosedResourceError after ``close``."""

    def fileno(self) -> int:
        """The descriptor, for whoever hands it on. Raises: anyio.ClosedResourceError after ``close``."""

    def close(self) -> None:
        """Stop reading; whoever waits in ``read`` is woken. May be repeated."""


class InputStream(Protocol):
    """The write end of a process's stdin."""

    def close(self) -> None:
        """Give the process its end of file."""


class Stdio(Protocol):
    """The standard streams of a process."""

    @property
    def stdout(self) -> OutputStream: ...

    @property
    def stderr(self) -> OutputStream: ...

    @property
    def stdin(self) -> InputStream | None: ...

    def note(self, line: str) -> None:
        """Add a line to each stream that a process still has open, as if that had written it. It may get lost."""

    def close(self) -> None:
        """Close every end that is ours; readers that wait are woken. May be repeated."""


class Attached(Protocol):
    """Whoever took the streams."""

    async def wait(self) -> None:
        """Return when both copies, and the io below them, have ended.

        Cancelled where that takes too long, and perhaps called again then.
        """


Attach = Callable[[Stdio], Awaitable[Attached]]
"""Takes the streams of a task that is about to run, or that runs."""


class ByteSink(Protocol):
    """Where the bytes of one stream go. Both methods may be plain or ``async``; plain ones run in a worker thread."""

    def write(self, data: bytes, /) -> object:
        """Take these bytes. The process waits behind a slow sink; nothing is buffered without bound."""

    def close(self) -> object:
        """The stream has ended. Called once."""


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
        """Make record and directory, all or nothing. Raises: Conflict where the id has one."""

    async def restore(self, id: str, attach: Attach) -> tuple[bool, int | None]:
        """Attach to a task that exists; whether it lives, and its pid. Raises: NotFound where part of it is gone."""

    async def status(self, id: str) -> Status:
        """The state of the task. Raises: NotFound."""

    async def labels(self, id: str) -> Mapping[str, str]:
        """The labels of the record. Raises: NotFound."""

    async def delete(self, id: str) -> None:
        """Remove record, directory and FIFOs; gone is fine. Raises: Conflict while a process of it may live."""

    async def delete_task(self, id: str) -> tuple[int | None, datetime | None]:
        """Kill, wait, remove the task; how it ended, both None where there was none.

        How an ended task ended is told again until ``delete``, also to another process.

        Raises: Unavailable while a process of it may still live.
        """

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        """Create the task, hand its streams to ``attach``, start it; its pid.

        Raises: Conflict where an earlier task of the id was in the way: clean up and try once more.
        """

    async def signal_process(self, id: str, process_id: str, signal: int) -> None:
        """Send a signal to one process. Raises: NotFound for one that has ended."""

    async def oom_killed(self, id: str) -> bool:
        """Whether the kernel killed anything in the container for want of memory. Asked before ``delete_task``."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Envelope]]:
        """What happens to the tasks of the namespace from the moment of entering.

        Raises: Unavailable when containerd goes away, both from entering and from the iterator.
        """

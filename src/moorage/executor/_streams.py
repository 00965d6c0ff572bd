"""The output of one run: its consumer, the bounded wait for end of file, and sinks that are closed exactly once."""

import inspect
import logging
from collections.abc import Callable

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from moorage import errors
from moorage.executor.protocols import Attach, Attached, ByteSink, OutputStream, Stdio
from moorage.timeouts import ExecutorTimeouts

log = logging.getLogger(__name__)

_CUT_OFF = "moorage: the output was cut off here: another process had it open after the plugin exited"


class DiscardSink:
    """A sink that discards its bytes, so that a process never waits for a reader."""

    async def write(self, data: bytes) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class Streams:
    """The output of one run. The order is: ``attach``, ``wait``, ``close``; ``close`` alone is fine too."""

    def __init__(self, id: str, attach: Attach) -> None:
        self._id = id
        self._attach = attach
        self._stdio: Stdio | None = None
        self._attached: Attached | None = None
        self._is_done = False
        self._is_noted = False

    async def attach(self, stdio: Stdio) -> Attached:
        """Hand the streams to their consumer. Raises: MoorageError for a standard input, which was not requested."""
        if stdio.stdin is not None:
            stdio.stdin.close()
            raise errors.MoorageError(f"bug: container {self._id} was given a standard input")
        self._stdio = stdio
        self._attached = await self._attach(stdio)
        return self._attached

    async def wait(self, within: float) -> bool:
        """Whether both streams have ended, after a wait of at most ``within`` seconds.

        A consumer that fails is treated as finished: its failure is logged, and the run is processed further.
        """
        if self._attached is None or self._is_done:
            return True
        with anyio.move_on_after(within):
            try:
                await self._attached.wait()
            except Exception:
                log.exception("the consumer of the output of %s failed", self._id)
            self._is_done = True
        return self._is_done

    def note_cut_off(self) -> None:
        """Note once, as a line of the output, that the rest is cut off because another process has it open.

        Byte sinks get nothing but the container's output; for them a warning is logged.
        """
        if self._stdio is None or self._is_noted:
            return
        self._is_noted = True
        if isinstance(self._attach, SinkCopies):
            log.warning("the output of %s is cut off: a process keeps it open after the container's exited", self._id)
        else:
            self._stdio.note(_CUT_OFF)

    @property
    def is_attached(self) -> bool:
        """Whether the streams were handed over, which is possible only once."""
        return self._stdio is not None

    async def close(self) -> None:
        """Stop reading even if a process still writes, and finish the copies. May be repeated."""
        if self._stdio is not None:
            self._stdio.close()
        if isinstance(self._attach, SinkCopies):
            await self._attach.close()


class SinkCopies:
    """Two byte sinks as an ``Attach``: copies both streams in the given task group, and closes each sink once."""

    def __init__(
        self, id: str, stdout: ByteSink, stderr: ByteSink, tasks: TaskGroup, timeouts: ExecutorTimeouts
    ) -> None:
        self._copies = [_Copy(f"{id} stdout", stdout, timeouts), _Copy(f"{id} stderr", stderr, timeouts)]
        self._tasks = tasks

    async def __call__(self, stdio: Stdio) -> Attached:
        for copy, stream in zip(self._copies, (stdio.stdout, stdio.stderr), strict=True):
            copy.started = True
            self._tasks.start_soon(copy.run, stream)
        return self

    async def wait(self) -> None:
        """Return when both copies have ended and their sinks are closed."""
        for copy in self._copies:
            await copy.done.wait()

    async def close(self) -> None:
        """Close the sinks of copies that were not started; the others are closed when they finish."""
        for copy in self._copies:
            if not copy.started:
                copy.started = True
                await copy.close()
            elif copy.is_writing:
                log.warning("the sink for the output of %s does not accept data; the rest is lost", copy.name)


class _Copy:
    """Copies one stream into one sink; the stream is read until it ends whatever the sink does."""

    def __init__(self, name: str, sink: ByteSink, timeouts: ExecutorTimeouts) -> None:
        self.name = name
        self.done = anyio.Event()
        self.started = False
        self.is_writing = False
        self._sink = sink
        self._broken = False
        self._timeouts = timeouts
        # Threads of its own, so that a blocking sink uses up no shared ones. The second one is for closing it.
        self._threads = anyio.CapacityLimiter(2)

    async def run(self, stream: OutputStream) -> None:
        try:
            while data := await stream.read():
                await self._write(data)
        except anyio.ClosedResourceError:
            log.info("the output of %s was cut off", self.name)
        except OSError:
            log.exception("cannot read the output of %s", self.name)
        finally:
            stream.close()
            await self.close()

    async def close(self) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup) as scope:
            try:
                await self._call(self._sink.close)
            except Exception:
                log.exception("cannot close the sink for the output of %s", self.name)
        if scope.cancelled_caught:
            log.warning("the sink for the output of %s does not close", self.name)
        self.done.set()

    async def _write(self, data: bytes) -> None:
        if self._broken:
            return  # read and discard: a full pipe would block the process
        self.is_writing = True
        try:
            await self._call(self._sink.write, data)
        except Exception:
            self._broken = True
            log.exception("the sink for the output of %s failed; further output is discarded", self.name)
        finally:
            self.is_writing = False

    async def _call(self, method: Callable[..., object], *arguments: object) -> None:
        """Call a sink's method, ``async`` or plain. A plain one may block, so it runs in a thread."""
        if inspect.iscoroutinefunction(method):
            await method(*arguments)
            return
        result = await anyio.to_thread.run_sync(
            lambda: method(*arguments), abandon_on_cancel=True, limiter=self._threads
        )
        if inspect.isawaitable(result):
            await result

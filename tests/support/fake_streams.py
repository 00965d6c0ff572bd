"""Pipes in memory, with what matters of FIFOs: bounded, closed by their writer, stored while there is no reader."""

import anyio

CAPACITY_BYTES = 64 * 1024


class FakePipe:
    """One FIFO with its writer, the process."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False
        self.readers = 0
        self._changed = anyio.Event()

    async def write(self, data: bytes) -> None:
        """As a process writes: waits while the pipe is full."""
        for begin in range(0, len(data), 4096):
            while len(self.data) >= CAPACITY_BYTES:
                await self._changed.wait()
            self.data += data[begin : begin + 4096]
            self.change()

    def end(self) -> None:
        self.closed = True
        self.change()

    def change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        await self._changed.wait()


class FakeReader:
    """The read end of a pipe."""

    def __init__(self, pipe: FakePipe) -> None:
        self._pipe = pipe
        self._closed = False
        pipe.readers += 1

    async def read(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._pipe.data:
                data = bytes(self._pipe.data)
                self._pipe.data.clear()
                self._pipe.change()
                return data
            if self._pipe.closed:
                return b""
            await self._pipe.wait()

    def fileno(self) -> int:
        """There is none: what is only in memory cannot be handed to another process."""
        raise anyio.ClosedResourceError

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pipe.readers -= 1
            self._pipe.change()


class FakeInput:
    """The write end of a stdin that was not requested."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeStdio:
    """The streams of a task, as the client hands them to the caller that attaches."""

    def __init__(self, stdout: FakePipe, stderr: FakePipe, stdin: FakeInput | None = None) -> None:
        self.stdout = FakeReader(stdout)
        self.stderr = FakeReader(stderr)
        self.stdin = stdin
        self._errors = stderr

    def note(self, line: str) -> None:
        self._errors.data += f"{line}\n".encode()
        self._errors.change()

    def close(self) -> None:
        self.stdout.close()
        self.stderr.close()

"""Byte sinks and exit handlers that record, fail, stall or block."""

from dataclasses import dataclass, field

import anyio

from moorage.executor import Exit


class Memory:
    """Stores what it is given."""

    def __init__(self) -> None:
        self.data = b""
        self.closes = 0
        self.closed = anyio.Event()

    async def write(self, data: bytes) -> None:
        assert not self.closes, "written to after its end"
        self.data += data

    async def close(self) -> None:
        self.closes += 1
        self.closed.set()

    @property
    def text(self) -> str:
        return self.data.decode()


class Failing(Memory):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    async def write(self, data: bytes) -> None:
        self.tried += 1
        raise OSError("no space left for this test")


class Gate(Memory):
    """Takes nothing before ``opened`` is set; says how much was offered meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = anyio.Event()
        self.offered = 0
        self.waiting = anyio.Event()

    async def write(self, data: bytes) -> None:
        self.offered += len(data)
        self.waiting.set()
        await self.opened.wait()
        await super().write(data)


class Plain:
    """A sink as people write them: plain methods."""

    def __init__(self) -> None:
        self.data = b""
        self.closes = 0

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def close(self) -> None:
        self.closes += 1


@dataclass
class Exits:
    """An exit handler that records exits, and can wait or fail."""

    seen: list[Exit] = field(default_factory=list)
    waits: dict[str, anyio.Event] = field(default_factory=dict)
    fail: bool = False

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        assert id == exit.id
        self.seen.append(exit)
        if id in self.waits:
            await self.waits[id].wait()
        if self.fail:
            raise RuntimeError("the handler fails for this test")

    def of(self, id: str) -> list[Exit]:
        return [exit for exit in self.seen if exit.id == id]

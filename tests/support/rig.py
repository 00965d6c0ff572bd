"""An executor over a real containerd, with what its tests say again and again."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from moorage.containerd import Client
from moorage.containerd.types import RuntimeOptions
from moorage.executor import Executor, Exit
from moorage.timeouts import Timeouts
from support.places import TIMEOUTS, Place
from support.sinks import Exits, Memory
from support.specs import FOREVER
from support.waiting import eventually


@dataclass
class Rig:
    """One process's executor at a place."""

    place: Place
    client: Client
    executor: Executor
    exits: Exits
    sinks: list[Memory] = field(default_factory=list)

    def pair(self) -> tuple[Memory, Memory]:
        """Two sinks, looked after: at the end each must have been closed once."""
        pair = Memory(), Memory()
        self.sinks += pair
        return pair

    async def create(self, text: str = FOREVER, id: str = "a", **more: Any) -> int:
        """Start a shell with this text; its pid."""
        await self.executor.create(id, self.place.shell(id, text, **more), *self.pair())
        return await self.pid(id)

    async def run(self, text: str, id: str = "a", **more: Any) -> tuple[str, str, Exit]:
        """Run a shell with this text to its end: what it wrote, and its exit."""
        before = len(self.exits.of(id))
        out, err = self.pair()
        await self.executor.create(id, self.place.shell(id, text, **more), out, err)
        await eventually(lambda: len(self.exits.of(id)) > before)
        return out.text, err.text, self.exits.of(id)[-1]

    async def restore(self, id: str = "a") -> bool:
        return await self.executor.restore(id, *self.pair())

    async def pid(self, id: str = "a") -> int:
        return (await self.client.get_task(id)).pid

    async def kill(self, id: str = "a") -> None:
        """SIGKILL the first process, past everybody."""
        os.kill(await self.pid(id), signal.SIGKILL)

    async def one_exit(self, code: int | None, id: str = "a") -> Exit:
        """Wait for the end of the only run of this id, and for everything of it to be gone."""
        await eventually(lambda: self.exits.of(id))
        await eventually(lambda: not self.place.shims(id))
        assert [exit.code for exit in self.exits.of(id)] == [code]
        return self.exits.of(id)[0]


@asynccontextmanager
async def rig(
    place: Place, timeouts: Timeouts = TIMEOUTS, exits: Exits | None = None, runtime: RuntimeOptions | None = None
) -> AsyncIterator[Rig]:
    """An executor until the block ends; each of its sinks is closed once by then."""
    exits = exits or Exits()
    async with place.client() as client, place.executor(exits, timeouts, runtime) as executor:
        rig = Rig(place, client, executor, exits)
        yield rig
    assert [sink.closes for sink in rig.sinks] == [1] * len(rig.sinks)

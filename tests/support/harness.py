"""An executor over a real containerd, with what its tests share."""

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
from support.conditions import eventually
from support.sinks import Exits, Memory
from support.specs import FOREVER
from support.workspace import TIMEOUTS, Workspace


@dataclass
class Harness:
    """One process's executor in a workspace."""

    workspace: Workspace
    client: Client
    executor: Executor
    exits: Exits
    sinks: list[Memory] = field(default_factory=list)

    def pair(self) -> tuple[Memory, Memory]:
        """Two sinks: at the end each must have been closed once."""
        pair = Memory(), Memory()
        self.sinks += pair
        return pair

    async def create(self, text: str = FOREVER, id: str = "a", **more: Any) -> int:
        """Start a shell with this text; its pid."""
        await self.executor.create(id, self.workspace.shell(id, text, **more), *self.pair())
        return await self.pid(id)

    async def run(self, text: str, id: str = "a", **more: Any) -> tuple[str, str, Exit]:
        """Run a shell with this text until it exits: what it wrote, and its exit."""
        before = len(self.exits.of(id))
        out, err = self.pair()
        await self.executor.create(id, self.workspace.shell(id, text, **more), out, err)
        await eventually(lambda: len(self.exits.of(id)) > before)
        return out.text, err.text, self.exits.of(id)[-1]

    async def restore(self, id: str = "a") -> bool:
        return await self.executor.restore(id, *self.pair())

    async def pid(self, id: str = "a") -> int:
        return (await self.client.get_task(id)).pid

    async def kill(self, id: str = "a") -> None:
        """SIGKILL the first process directly."""
        os.kill(await self.pid(id), signal.SIGKILL)

    async def one_exit(self, code: int | None, id: str = "a") -> Exit:
        """Wait for the end of the only run of this id, and for everything of it to be gone."""
        await eventually(lambda: self.exits.of(id))
        await eventually(lambda: not self.workspace.shims(id))
        assert [exit.code for exit in self.exits.of(id)] == [code]
        return self.exits.of(id)[0]


@asynccontextmanager
async def harness(
    workspace: Workspace,
    timeouts: Timeouts = TIMEOUTS,
    exits: Exits | None = None,
    runtime: RuntimeOptions | None = None,
) -> AsyncIterator[Harness]:
    """An executor until the block ends; each of its sinks is closed once by then."""
    exits = exits or Exits()
    async with workspace.client() as client, workspace.executor(exits, timeouts, runtime) as executor:
        harness = Harness(workspace, client, executor, exits)
        yield harness
    assert [sink.closes for sink in harness.sinks] == [1] * len(harness.sinks)

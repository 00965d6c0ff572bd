"""An executor over the fake containerd, with what its tests share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from moorage import errors
from moorage.containerd.types import RuntimeOptions, Status
from moorage.executor import Executor, open_executor
from moorage.timeouts import Timeouts
from support.conditions import TIMEOUT_SECONDS
from support.fake_containerd import Call, FakeContainerd, FakeContainers
from support.limits import limit
from support.peers import FakePeer
from support.sinks import Exits, Memory

QUICK = Timeouts(
    exit_drain=0.05,
    stream_wait=0.1,
    cleanup=limit(2),
    reconnect_first=0.001,
    reconnect_limit=0.01,
    reconcile=3600,  # a test that needs the periodic comparison says so
)
RUNTIME = RuntimeOptions(root="/runtime-root")

spec = FakePeer().spec
missing = FakePeer().missing


@dataclass
class FakeHarness:
    """One process's executor and what it uses."""

    world: FakeContainerd
    client: FakeContainers
    exits: Exits
    executor: Executor
    sinks: list[Memory] = field(default_factory=list)

    def pair(self) -> tuple[Memory, Memory]:
        """Two sinks: at the end each must have been closed once."""
        pair = Memory(), Memory()
        self.sinks += pair
        return pair

    async def create(self, id: str = "a", *, out: bytes = b"", err: bytes = b"", code: int | None = None) -> None:
        await self.executor.create(id, spec(id, out=out, err=err, code=code), *self.pair())

    async def create_again(self, id: str = "a") -> bool:
        """Whether it can be created by now: what a failed create could not undo is removed in the background."""
        try:
            await self.create(id)
        except errors.Unavailable:
            return False
        return True

    async def restore(self, id: str = "a") -> bool:
        return await self.executor.restore(id, *self.pair())

    def called(self, *names: str) -> list[str]:
        """The calls so far, by name; only these names, if any are given."""
        return [call.name for call in self.client.calls if not call.after and (not names or call.name in names)]


@asynccontextmanager
async def fake_harness(
    world: FakeContainerd | None = None,
    *,
    timeouts: Timeouts = QUICK,
    exits: Exits | None = None,
    exits_early: bool = False,
) -> AsyncIterator[FakeHarness]:
    """An executor until the block ends; everything in the block is bounded."""
    world = world or FakeContainerd()
    client, exits = FakeContainers(world), exits or Exits()
    with anyio.fail_after(TIMEOUT_SECONDS / 4):
        async with open_executor(
            client,
            exits,
            runtime=RUNTIME,
            timeouts=timeouts,
            wait_for_exit=world.wait_for_end,
            exits_early=exits_early,
        ) as executor:
            fake_harness = FakeHarness(world, client, exits, executor)
            yield fake_harness
    assert [sink.closes for sink in fake_harness.sinks] == [1] * len(fake_harness.sinks), "every sink is closed once"


def at_call(name: str, act: Callable[[], object], *, after: bool = False) -> Callable[[Call], Awaitable[None]]:
    """A fault that acts at the first call of this name."""
    done = False

    async def fault(call: Call) -> None:
        nonlocal done
        if (call.name, call.after) == (name, after) and not done:
            done = True
            act()

    return fault


async def leave(world: FakeContainerd, status: Status | None, id: str = "a", *, out: bytes = b"") -> None:
    """What an earlier process left: a record, and a task in this state."""
    async with fake_harness(world) as before:
        await before.create(id, out=out)
    task = world.tasks[id]
    match status:
        case None:
            del world.tasks[id]
        case Status.UNKNOWN:
            task.hung = True
        case Status.STOPPED:
            world.end(id, 0)
        case _:
            task.status = status

"""One operation of an executor, broken at one point, and what must hold whatever came of it."""

import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from moorage import errors
from moorage.embedding import open_executor
from moorage.executor import Executor, Exit
from moorage.timeouts import Timeouts
from support import proxy as proxies
from support.kills import replace_containerd
from support.places import TIMEOUTS, Place
from support.proxy import Harm, Proxy, When
from support.sinks import Exits, Memory
from support.traces import recorded
from support.waiting import PATIENCE_SECONDS, eventually

FULL = os.environ.get("MOORAGE_FAULTS") == "full"
"""Every point, every time; otherwise long rows are sampled or scaled."""

UNKNOWN, ALREADY_EXISTS, UNAVAILABLE = 2, 6, 14  # gRPC statuses
KILLED = 137
REFUSED_SECONDS = 0.2

ID = "a"


@dataclass
class Scene:
    """An executor behind a proxy."""

    place: Place
    proxy: Proxy
    executor: Executor
    exits: Exits
    sinks: list[Memory] = field(default_factory=list)

    def two_sinks(self) -> tuple[Memory, Memory]:
        self.sinks += (pair := (Memory(), Memory()))
        return pair

    async def create(self, id: str = ID, text: str = "exec sleep 1000000") -> None:
        await self.executor.create(id, self.place.shell(id, text), *self.two_sinks())

    async def restore(self, id: str = ID) -> bool:
        return await self.executor.restore(id, *self.two_sinks())

    async def pid(self, id: str = ID) -> int:
        async with self.place.client() as client:
            return (await client.get_task(id)).pid

    async def end(self, id: str = ID) -> Exit:
        """Kill the container's process, wait for its exit and for everything to be gone; there was one exit only."""
        before = len(self.exits.of(id))
        os.kill(await self.pid(id), signal.SIGKILL)
        await eventually(lambda: len(self.exits.of(id)) > before)
        await self.place.assert_nothing_left()
        assert len(self.exits.of(id)) == before + 1
        return self.exits.of(id)[-1]

    def assert_sinks_closed_once(self) -> None:
        assert [sink.closes for sink in self.sinks] == [1] * len(self.sinks)


@asynccontextmanager
async def scene(place: Place, timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[Scene]:
    """An executor that reaches the place's containerd through a proxy of its own."""
    exits = Exits()
    with _recording(place):
        async with (
            proxies.proxy_before(place.containerd.address, place.root) as proxy,
            open_executor(proxy.address, place.root, exits, namespace=place.namespace, timeouts=timeouts) as executor,
        ):
            yield Scene(place, proxy, executor, exits)


def _recording(place: Place) -> AbstractContextManager[None]:
    """Where MOORAGE_TRACES names a directory, what the machine is told is written there."""
    directory, test = os.environ.get("MOORAGE_TRACES"), os.environ.get("PYTEST_CURRENT_TEST", "")
    if not directory:
        return nullcontext()
    name = re.sub(r"\W+", "-", test.partition("::")[2].partition(" ")[0]).strip("-")
    return recorded(Path(directory, f"{name}.{place.namespace}.{time.monotonic_ns()}.json"))


def harms(scene: Scene) -> dict[str, tuple[Harm, tuple[When, ...]]]:
    """What can be done at a call, by name, and where in it."""

    async def restart(_exchange: proxies.Exchange) -> None:
        await replace_containerd(scene.place.containerd)

    both = (When.BEFORE, When.AFTER)
    return {
        "cut": (proxies.cut, both),
        "refused": (proxies.refuse(scene.proxy, REFUSED_SECONDS), both),
        "unknown": (proxies.answer(UNKNOWN), both),
        "exists": (proxies.answer(ALREADY_EXISTS), both),
        "unavailable": (proxies.answer(UNAVAILABLE), both),
        "killed": (restart, (*both, When.AMID)),
    }


HARMS = [
    *((name, when) for name in ("cut", "refused", "unknown", "exists", "unavailable") for when in ("BEFORE", "AFTER")),
    *(("killed", when) for when in ("BEFORE", "AMID", "AFTER")),
]

Act = Callable[[Scene], Awaitable[object]]


@dataclass
class Broken:
    """What an operation came to."""

    failure: errors.MoorageError | None
    reached: bool


async def broken(scene: Scene, act: Act, number: int, harm_name: str, when: str) -> Broken:
    """Run an operation with harm at its call of this number; wait until the harm is done."""
    harm, _ = harms(scene)[harm_name]
    scene.proxy.arm(number, When[when], harm)
    failure = None
    with anyio.fail_after(PATIENCE_SECONDS * 3):
        try:
            await act(scene)
        except errors.MoorageError as error:
            failure = error
        if scene.proxy.reached:
            await scene.proxy.done.wait()
    reached = scene.proxy.reached
    scene.proxy.arm()
    return Broken(failure, reached)


__all__ = ("FULL", "HARMS", "ID", "KILLED", "Act", "Broken", "Scene", "broken", "harms", "scene")

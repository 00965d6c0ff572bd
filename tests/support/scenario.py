"""One operation of an executor, with a fault at one point, and what must be true whatever came of it."""

import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.containerd import Client
from moorage.embedding import open_executor
from moorage.executor import Executor, Exit
from moorage.timeouts import Timeouts
from support import proxy as proxies
from support.conditions import TIMEOUT_SECONDS, eventually
from support.early_exits import early_executor
from support.kills import replace_containerd
from support.proxy import Fault, Proxy, When
from support.sinks import Exits, Memory
from support.traces import recorded
from support.workspace import TIMEOUTS, Workspace

FULL = os.environ.get("MOORAGE_FAULTS") == "full"
"""Every point, every time; otherwise long rows are sampled or scaled."""

UNKNOWN, ALREADY_EXISTS, UNAVAILABLE = 2, 6, 14  # gRPC statuses
KILLED = 137
REFUSED_SECONDS = 0.2

ID = "a"


@dataclass
class Scenario:
    """An executor behind a proxy."""

    workspace: Workspace
    proxy: Proxy
    executor: Executor
    exits: Exits
    sinks: list[Memory] = field(default_factory=list)

    def two_sinks(self) -> tuple[Memory, Memory]:
        self.sinks += (pair := (Memory(), Memory()))
        return pair

    async def create(self, id: str = ID, text: str = "exec sleep 1000000") -> None:
        await self.executor.create(id, self.workspace.shell(id, text), *self.two_sinks())

    async def restore(self, id: str = ID) -> bool:
        return await self.executor.restore(id, *self.two_sinks())

    async def pid(self, id: str = ID) -> int:
        async with self.workspace.client() as client:
            return (await client.get_task(id)).pid

    async def end(self, id: str = ID) -> Exit:
        """Kill the container's process, wait for its exit and for everything to be gone; there was one exit only."""
        before = len(self.exits.of(id))
        os.kill(await self.pid(id), signal.SIGKILL)
        await eventually(lambda: len(self.exits.of(id)) > before)
        await self.workspace.assert_nothing_left()
        assert len(self.exits.of(id)) == before + 1
        return self.exits.of(id)[-1]

    def assert_sinks_closed_once(self) -> None:
        assert [sink.closes for sink in self.sinks] == [1] * len(self.sinks)


@asynccontextmanager
async def scenario(
    workspace: Workspace, timeouts: Timeouts = TIMEOUTS, *, exits_early: bool = False
) -> AsyncIterator[Scenario]:
    """An executor that reaches the workspace's containerd through a proxy of its own."""
    exits = Exits()
    # shims are named by containerd's own socket, which the executor would know without the proxy
    own = property(lambda client: workspace.containerd.address)
    with _recording(workspace), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "address", own)
        async with (
            proxies.proxy_before(workspace.containerd.address, workspace.root) as proxy,
            (
                early_executor(proxy.address, workspace.root, exits, workspace.namespace, timeouts)
                if exits_early
                else open_executor(
                    proxy.address, workspace.root, exits, namespace=workspace.namespace, timeouts=timeouts
                )
            ) as executor,
        ):
            yield Scenario(workspace, proxy, executor, exits)


def _recording(workspace: Workspace) -> AbstractContextManager[None]:
    """Where MOORAGE_TRACES names a directory, the machine's events are written there."""
    directory, test = os.environ.get("MOORAGE_TRACES"), os.environ.get("PYTEST_CURRENT_TEST", "")
    if not directory:
        return nullcontext()
    name = re.sub(r"\W+", "-", test.partition("::")[2].partition(" ")[0]).strip("-")
    return recorded(Path(directory, f"{name}.{workspace.namespace}.{time.monotonic_ns()}.json"))


def faults(scenario: Scenario) -> dict[str, tuple[Fault, tuple[When, ...]]]:
    """What can be done at a call, by name, and where in it."""

    async def restart(_exchange: proxies.Exchange) -> None:
        scenario.workspace.was_killed = True
        await replace_containerd(scenario.workspace.containerd)

    both = (When.BEFORE, When.AFTER)
    return {
        "cut": (proxies.cut, both),
        "refused": (proxies.refuse(scenario.proxy, REFUSED_SECONDS), both),
        "unknown": (proxies.answer(UNKNOWN), both),
        "exists": (proxies.answer(ALREADY_EXISTS), both),
        "unavailable": (proxies.answer(UNAVAILABLE), both),
        "killed": (restart, (*both, When.AMID)),
    }


FAULTS = [
    *((name, when) for name in ("cut", "refused", "unknown", "exists", "unavailable") for when in ("BEFORE", "AFTER")),
    *(("killed", when) for when in ("BEFORE", "AMID", "AFTER")),
]

Act = Callable[[Scenario], Awaitable[object]]


@dataclass
class FaultOutcome:
    """What an operation came to."""

    failure: errors.MoorageError | None
    reached: bool


async def run_with_fault(scenario: Scenario, act: Act, number: int, fault_name: str, when: str) -> FaultOutcome:
    """Run an operation with harm at its call of this number; wait until the harm is done."""
    fault, _ = faults(scenario)[fault_name]
    scenario.proxy.arm(number, When[when], fault)
    failure = None
    with anyio.fail_after(TIMEOUT_SECONDS * 3):
        try:
            await act(scenario)
        except errors.MoorageError as error:
            failure = error
        if scenario.proxy.reached:
            await scenario.proxy.done.wait()
    reached = scenario.proxy.reached
    scenario.proxy.arm()
    return FaultOutcome(failure, reached)


__all__ = ("FAULTS", "FULL", "ID", "KILLED", "Act", "FaultOutcome", "Scenario", "faults", "run_with_fault", "scenario")

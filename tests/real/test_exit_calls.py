"""How often containerd is called for the exit of one run: each call takes a millisecond and a half of every stop."""

import os
import signal
from contextlib import suppress
from itertools import groupby

import pytest

from moorage import errors
from moorage.containerd import connect
from moorage.containerd.containers import BundledContainers
from moorage.executor import open_executor
from support.conditions import eventually
from support.sinks import Exits, Memory
from support.workspace import TIMEOUTS, Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio]


TEXT = "trap 'exit 3' USR1; sleep 1000000 & wait"


@pytest.mark.parametrize(
    ("number", "code", "reads"),
    [(signal.SIGUSR1, 3, []), (signal.SIGKILL, 137, ["Tasks.Metrics"])],  # only SIGKILL may be the OOM killer's
)
async def test_i17_what_containerd_has_said_of_an_exit_is_not_queried_again(
    workspace: Workspace, number: int, code: int, reads: list[str]
) -> None:
    calls: list[str] = []
    exits = Exits()
    address, namespace, runtime = workspace.containerd.address, workspace.namespace, workspace.runtime

    def has_exited() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, number)  # again, as long as the shell has not set its trap
        return bool(exits.of("a"))

    async with connect(address, namespace, TIMEOUTS, lambda method, *_: calls.append(method)) as client:
        containers = BundledContainers(client, workspace.root, runtime=runtime, timeouts=TIMEOUTS)
        async with open_executor(containers, exits, runtime=runtime, timeouts=TIMEOUTS) as executor:
            await executor.create("a", workspace.shell("a", TEXT), Memory(), Memory())
            pid = executor.pid("a") or 0
            calls.clear()
            await eventually(has_exited)
    assert [exit.code for exit in exits.of("a")] == [code]
    # again and again, as long as containerd does not know what the kernel has said
    assert [method for method, _ in groupby(calls)] == ["Tasks.Get", *reads, "Tasks.Delete", "Containers.Delete"]


async def test_i17_a_signal_reaches_the_first_process_without_the_runtime(workspace: Workspace) -> None:
    calls: list[str] = []
    exits, address, runtime = Exits(), workspace.containerd.address, workspace.runtime
    async with connect(address, workspace.namespace, TIMEOUTS, lambda method, *_: calls.append(method)) as client:
        containers = BundledContainers(client, workspace.root, runtime=runtime, timeouts=TIMEOUTS)
        async with open_executor(containers, exits, runtime=runtime, timeouts=TIMEOUTS) as executor:
            for id in ("a", "b"):
                await executor.create(id, workspace.shell(id, TEXT), Memory(), Memory())
            containers._shims._pids["b"] = containers._shims._pids["a"]  # as if the pid had been reused
            calls.clear()
            await executor.signal("a", 0)
            assert calls == []
            await executor.signal("b", 0)  # that process is in another control group
            assert calls == ["Tasks.Kill"]
            containers._shims._pids["b"] = os.getpid()
            await executor.signal("b", 0)
            assert calls == ["Tasks.Kill"] * 2
            for id in ("a", "b"):
                await executor.signal(id, signal.SIGKILL)
            await eventually(lambda: exits.of("a") and exits.of("b"))
            with pytest.raises(errors.NotFound):
                await executor.signal("a", signal.SIGTERM)

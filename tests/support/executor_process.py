"""A process of its own with an executor, for tests that stop or kill it. It says what happens as JSON lines."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process

from moorage.embedding import open_executor
from moorage.executor import Exit
from support.workspace import TIMEOUTS, Workspace


class _Said:
    """A sink, and an exit handler, that say what they get."""

    def write(self, data: bytes) -> None:
        say(output=data.decode())

    def close(self) -> None:
        say(closed=True)

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        say(exit=exit.code)


def say(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


async def _run(order: dict[str, Any]) -> None:
    said = _Said()
    async with open_executor(
        order["address"], order["root"], said, namespace=order["namespace"], timeouts=TIMEOUTS
    ) as executor:
        if order["create"]:
            await executor.create("a", order["spec"], said, said)
        else:
            assert await executor.restore("a", said, said)
        say(ready=True)
        await anyio.sleep_forever()


class ExecutorProcess:
    """The test's handle of it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.pid = process.pid
        self._data = b""
        self._said: list[dict[str, Any]] = []

    async def hear(self, key: str) -> Any:
        """The next that it says under this key."""
        assert self.process.stdout
        while not (found := [said for said in self._said if key in said]):
            self._data += await self.process.stdout.receive()
            *lines, self._data = self._data.split(b"\n")
            self._said += map(json.loads, lines)
        self._said.remove(found[0])
        return found[0][key]


@asynccontextmanager
async def executor_process(
    workspace: Workspace, spec: dict[str, Any], *, create: bool = True
) -> AsyncIterator[ExecutorProcess]:
    """Such a process, which owns the container "a" when this enters; it is killed at the end."""
    order = {
        "address": workspace.containerd.address,
        "root": str(workspace.root),
        "namespace": workspace.namespace,
        "spec": spec,
        "create": create,
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "support.executor_process", json.dumps(order)]
    async with await anyio.open_process(command, stdin=None, stdout=PIPE, stderr=None, env=environment) as process:
        child = ExecutorProcess(process)
        try:
            await child.hear("ready")
            yield child
        finally:
            with suppress(ProcessLookupError):
                process.kill()


if __name__ == "__main__":
    anyio.run(_run, json.loads(sys.argv[1]), backend_options={"use_uvloop": True})

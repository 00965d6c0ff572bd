"""A process that may be killed: it runs one operation of an executor per child it forks, as its parent says.

It reads orders from standard input, one JSON object a line, and answers so on standard output. Forking keeps a test of
many kills short: Python and Moorage are loaded once.
"""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process

from moorage.embedding import open_executor
from moorage.executor import Exit
from support.awaits import Awaits, drive, drive_inboxes
from support.early_exits import NEXT, early_executor
from support.sinks import Memory
from support.workspace import TIMEOUTS, Workspace


@dataclass(frozen=True)
class ChildExit:
    """How a child exited."""

    killed: bool
    """It was killed at the requested await; otherwise it made fewer."""

    reported: list[int | None]
    """The codes of the exits that its handler received."""


def _say(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


class _Handler:
    def __init__(self) -> None:
        self.received = anyio.Event()

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        _say(reported=exit.code)
        self.received.set()


async def _operate(order: dict[str, Any]) -> None:
    handler = _Handler()
    awaits = Awaits(order["at"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    if order["operation"] == "replace":
        awaits.begins = handler.received.is_set
    address, root, namespace = order["address"], Path(order["root"]), order["namespace"]
    async with (
        early_executor(address, root, handler, namespace, TIMEOUTS)
        if order["operation"] == "replace"
        else open_executor(address, root, handler, namespace=namespace, timeouts=TIMEOUTS)
    ) as executor:
        match order["operation"]:
            case "create":
                await drive(executor.create("a", order["spec"], Memory(), Memory()), awaits)
            case "restore":
                await drive(executor.restore("a", Memory(), Memory()), awaits)
            case "exit":
                with drive_inboxes(awaits):
                    assert await executor.restore("a", Memory(), Memory())
                    _say(ready=os.getpid())
                    await handler.received.wait()
            case "replace":
                with drive_inboxes(awaits):
                    assert await executor.restore("a", Memory(), Memory())
                    _say(ready=os.getpid())
                    await handler.received.wait()
                    await drive(executor.create(NEXT, order["next"], Memory(), Memory()), awaits)
                    await executor.wait_removed("a")
            case other:
                raise ValueError(other)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            anyio.run(_operate, json.loads(line), backend_options={"use_uvloop": True})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say(status=os.waitstatus_to_exitcode(status))


class OperationProcess:
    """The parent's handle of it."""

    def __init__(self, workspace: Workspace, process: Process) -> None:
        self._workspace = workspace
        self._process = process
        self._data = b""

    async def begin(self, operation: str, at: int) -> None:
        order = {
            "operation": operation,
            "at": at,
            "address": self._workspace.containerd.address,
            "root": str(self._workspace.root),
            "namespace": self._workspace.namespace,
            "spec": self._workspace.shell("a", "exec sleep 1000000"),
            "next": self._workspace.shell(NEXT, "exec sleep 1000000"),
        }
        assert self._process.stdin
        await self._process.stdin.send(json.dumps(order).encode() + b"\n")

    async def ready(self) -> int:
        """Wait until it owns the container; its pid."""
        pid: int = (await self._read())["ready"]
        return pid

    async def end(self) -> ChildExit:
        reported = []
        while "status" not in (answer := await self._read()):
            reported.append(answer["reported"])
        assert answer["status"] in (0, -signal.SIGKILL), answer
        return ChildExit(answer["status"] != 0, reported)

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        while b"\n" not in self._data:
            self._data += await self._process.stdout.receive()
        line, _, self._data = self._data.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def operation_process(workspace: Workspace) -> AsyncIterator[OperationProcess]:
    """Such a process, for the length of the block."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "support.operation_process"]
    process = await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None, env=environment)
    async with process:
        yield OperationProcess(workspace, process)
        assert process.stdin
        await process.stdin.aclose()
        await process.wait()


if __name__ == "__main__":
    main()

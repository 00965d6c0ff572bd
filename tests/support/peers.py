"""The two things behind ``ContainerClient``, made alike for one suite: the fake, and a real containerd."""

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from moorage import errors
from moorage.containerd.types import RuntimeOptions
from moorage.executor import ContainerClient
from support import fake_containerd, specs
from support.conditions import eventually
from support.fake_containerd import FakeContainerd, FakeContainers
from support.kills import stop
from support.workspace import Workspace


class Peer(Protocol):
    """A containerd and a disk, with what a test may do to them behind the client's back."""

    @property
    def options(self) -> RuntimeOptions: ...

    def client(self) -> AbstractAsyncContextManager[ContainerClient]:
        """A client as a process of its own has it."""

    def spec(self, id: str, *, out: bytes = b"", err: bytes = b"", code: int | None = None) -> dict[str, Any]: ...

    def missing(self, id: str) -> dict[str, Any]:
        """A spec whose command does not exist."""

    def with_host_pids(self, id: str, *, code: int | None = None) -> dict[str, Any]:
        """A spec without a pid namespace of its own."""

    async def left(self) -> list[str]: ...

    async def end(self, id: str) -> None:
        """SIGKILL the first process, past containerd."""

    async def leave_task(self, id: str) -> None:
        """Delete the record of a running task."""

    async def leave(self, id: str, what: str) -> None:
        """Leave something of an earlier task: ``TASK_DIRECTORY`` or ``RUNTIME_STATE``."""

    async def remove_fifos(self, id: str) -> None: ...

    async def hang(self, id: str) -> None:
        """Stop the shim."""

    async def go_on(self, id: str) -> None:
        """Continue the shim."""

    async def go_down(self) -> None:
        """Kill containerd."""

    async def come_up(self) -> None: ...

    async def labels_of(self, id: str) -> Mapping[str, str] | None:
        """The labels of a record, None without one."""


class FakePeer:
    """The fake alone."""

    def __init__(self) -> None:
        self.world = FakeContainerd()
        self.options = RuntimeOptions()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ContainerClient]:
        yield FakeContainers(self.world)

    def spec(self, id: str, *, out: bytes = b"", err: bytes = b"", code: int | None = None) -> dict[str, Any]:
        text, annotations = specs.script(out=out, err=err, code=code)
        linux = {"namespaces": [{"type": "pid"}]}
        return {"process": {"args": ["/bin/sh", "-c", text]}, "annotations": annotations, "linux": linux}

    def missing(self, id: str) -> dict[str, Any]:
        return {"process": {"args": ["/missing/command"]}}

    def with_host_pids(self, id: str, *, code: int | None = None) -> dict[str, Any]:
        return {**self.spec(id, code=code), "linux": {"namespaces": []}}

    async def left(self) -> list[str]:
        return self.world.left()

    async def end(self, id: str) -> None:
        self.world.end(id, fake_containerd.KILLED)

    async def leave_task(self, id: str) -> None:
        del self.world.records[id]

    async def leave(self, id: str, what: str) -> None:
        self.world.obstacles.add((id, what))

    async def remove_fifos(self, id: str) -> None:
        del self.world.pipes[id]

    async def hang(self, id: str) -> None:
        self.world.tasks[id].hung = True

    async def go_on(self, id: str) -> None:
        self.world.tasks[id].hung = False

    async def go_down(self) -> None:
        self.world.go_down()

    async def come_up(self) -> None:
        self.world.come_up()

    async def labels_of(self, id: str) -> Mapping[str, str] | None:
        record = self.world.records.get(id)
        return record.labels if record else None


class RealPeer:
    """A workspace on a real containerd."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.options = workspace.runtime

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ContainerClient]:
        async with self.workspace.containers() as containers:
            yield containers

    def spec(self, id: str, *, out: bytes = b"", err: bytes = b"", code: int | None = None) -> dict[str, Any]:
        return self.workspace.spec(id, out=out, err=err, code=code)

    def missing(self, id: str) -> dict[str, Any]:
        return self.workspace.command(id, ["/missing/command"])

    def with_host_pids(self, id: str, *, code: int | None = None) -> dict[str, Any]:
        spec = self.spec(id, code=code)
        linux = {**spec["linux"], "namespaces": [each for each in spec["linux"]["namespaces"] if each["type"] != "pid"]}
        return {**spec, "linux": linux}

    async def left(self) -> list[str]:
        left: list[str] = []

        async def is_stable() -> bool:
            # shims and control groups go a moment after their task
            before, left[:] = list(left), await self.workspace.left()
            return left == before or not left

        await eventually(is_stable)
        return left

    async def end(self, id: str) -> None:
        async with self.workspace.client() as client:
            os.kill((await client.get_task(id)).pid, signal.SIGKILL)

    async def leave_task(self, id: str) -> None:
        async with self.workspace.client() as client:
            await client.delete_container(id)

    async def leave(self, id: str, what: str) -> None:
        runtime = self.workspace.root / "runtime-root" / self.workspace.namespace
        directory = self.workspace.task_directories if what == fake_containerd.TASK_DIRECTORY else runtime
        (directory / id).mkdir(parents=True)

    async def remove_fifos(self, id: str) -> None:
        for name in ("stdout", "stderr"):
            (self.workspace.bundles / id / name).unlink()

    async def hang(self, id: str) -> None:
        for pid in self.workspace.shims(id):
            stop(pid)

    async def go_on(self, id: str) -> None:
        for pid in self.workspace.shims(id):
            os.kill(pid, signal.SIGCONT)

    async def go_down(self) -> None:
        pid = self.workspace.containerd.find()
        assert pid
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: self.workspace.containerd.find() is None)

    async def come_up(self) -> None:
        await self.workspace.containerd.ensure()

    async def labels_of(self, id: str) -> Mapping[str, str] | None:
        async with self.workspace.client() as client:
            try:
                return (await client.get_container(id)).labels
            except errors.NotFound:
                return None


__all__ = ("FakePeer", "Peer", "RealPeer")

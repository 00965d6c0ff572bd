"""The workspace of a test on a real containerd: its own namespace and directories, emptied and checked at the end."""

import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from moorage import errors
from moorage.containerd import Client, connect
from moorage.containerd.containers import BundledContainers
from moorage.containerd.supervisor import PrivateContainerd
from moorage.containerd.types import RuntimeOptions
from moorage.embedding import open_executor
from moorage.executor import Executor, ExitHandler
from moorage.oci_runtime.choice import OciRuntime
from moorage.timeouts import Timeouts
from support import leftovers, specs
from support.conditions import eventually
from support.runtimes import runtime_command

CGROUP_PARENT = f"moorage-test-{os.getpid()}"
TIMEOUTS = Timeouts(reconcile=3600)  # a test that needs the periodic comparison says so

_numbers = count(1)


@dataclass(frozen=True)
class Session:
    """What the tests of a session share."""

    directory: Path
    rootfs: Path
    containerd: PrivateContainerd


class Workspace:
    """One test's namespace on a containerd."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.containerd = session.containerd
        self.namespace = f"t{os.getpid()}-{next(_numbers)}"
        self.root = session.directory / self.namespace
        self.cgroup_prefix = f"{self.namespace}."
        self.root.mkdir()
        self.was_killed = False
        """Whether a test has killed containerd, at any moment."""

    @property
    def bundles(self) -> Path:
        return self.root / "bundles" / self.namespace

    @property
    def runtime(self) -> RuntimeOptions:
        return OciRuntime(runtime_command()).options(self.root)

    @property
    def task_directories(self) -> Path:
        """Where containerd keeps its directories of this namespace's tasks."""
        return self.containerd.state / "s" / "io.containerd.runtime.v2.task" / self.namespace

    def cgroup(self, id: str) -> str:
        return f"/{CGROUP_PARENT}/{self.cgroup_prefix}{id}"

    def spec(self, id: str, *, out: bytes = b"", err: bytes = b"", code: int | None = None) -> dict[str, Any]:
        """A process that writes, then ends with this code or lives until it is killed."""
        text, annotations = specs.script(out=out, err=err, code=code)
        return {**self.shell(id, text), "annotations": annotations}

    def shell(self, id: str, text: str, **more: Any) -> dict[str, Any]:
        return self.command(id, ["/bin/sh", "-c", text], **more)

    def command(self, id: str, arguments: Sequence[str], **more: Any) -> dict[str, Any]:
        return specs.command_spec(self.session.rootfs, arguments, cgroup=self.cgroup(id), **more)

    @asynccontextmanager
    async def client(self, timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[Client]:
        async with connect(self.containerd.address, self.namespace, timeouts) as client:
            yield client

    @asynccontextmanager
    async def containers(self, timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[BundledContainers]:
        async with self.client(timeouts) as client:
            yield BundledContainers(client, self.root, runtime=self.runtime, timeouts=timeouts)

    @asynccontextmanager
    async def executor(
        self, handler: ExitHandler, timeouts: Timeouts = TIMEOUTS, runtime: RuntimeOptions | None = None
    ) -> AsyncIterator[Executor]:
        address, namespace, runtime = self.containerd.address, self.namespace, runtime or self.runtime
        async with open_executor(
            address, self.root, handler, namespace=namespace, runtime=runtime, timeouts=timeouts
        ) as executor:
            yield executor

    def shims(self, id: str | None = None) -> list[int]:
        return leftovers.shims(self.namespace, id)

    async def left(self) -> list[str]:
        """What there is of this namespace, as text; empty when nothing is left."""
        async with self.client() as client:
            tasks = [f"task {task.id}" for task in await client.list_tasks()]
            records = [f"record {record.id}" for record in await client.list_containers()]
        return [
            *tasks,
            *records,
            *(f"shim {pid}" for pid in self.shims()),
            *(f"process {pid}" for pid in leftovers.processes_in(f"{CGROUP_PARENT}/{self.cgroup_prefix}")),
            *(f"cgroup {path}" for path in leftovers.cgroup_directories(CGROUP_PARENT, self.cgroup_prefix)),
            *(f"file {path}" for path in self.files()),
            *(f"mount {point}" for point in leftovers.mounts_below(self.root, self.task_directories)),
        ]

    def files(self) -> list[str]:
        """What lies in the directories of containers, of the runtime, and of containerd's tasks."""
        runtime = self.root / "runtime-root" / self.namespace
        return leftovers.files_below(self.bundles, runtime, self.task_directories)

    async def assert_nothing_left(self) -> None:
        """Wait until nothing is left; shims and control groups go a moment after their task."""
        seen: list[str] = []

        async def is_empty() -> bool:
            seen[:] = await self.left()
            return not seen

        try:
            await eventually(is_empty)
        except AssertionError:
            if self.was_killed and all(each.startswith(f"file {self.task_directories}/") for each in seen):
                # killed while it deletes a directory of its own, it leaves that until its next start
                await self.containerd.stop()
                await self.containerd.ensure()
                seen[:] = await self.left()
            if seen:
                raise AssertionError(f"left behind: {seen}") from None

    async def close(self) -> None:
        """Fail where anything is left; remove it all the same, so that no other test suffers."""
        try:
            await self.containerd.ensure()
            await self.assert_nothing_left()
            assert not self.open_here(), f"still open in this process: {self.open_here()}"
        finally:
            await self._clear()

    def open_here(self) -> list[str]:
        """Descriptors of this process on files of this workspace, or on other processes."""
        kinds = leftovers.descriptors()
        return [kind for kind in kinds if kind.startswith((str(self.root), "anon_inode:[pidfd"))]

    async def _clear(self) -> None:
        for pid in [*self.shims(), *leftovers.processes_in(f"{CGROUP_PARENT}/{self.cgroup_prefix}")]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        async with self.client() as client, self.containers() as containers:
            ids = {task.id for task in await client.list_tasks()} | {it.id for it in await client.list_containers()}
            for id in ids:
                with suppress(errors.MoorageError):
                    await containers.delete_task(id)
                    await containers.delete(id)
            with suppress(errors.MoorageError):
                await client.delete_namespace(self.namespace)
        shutil.rmtree(self.root, ignore_errors=True)

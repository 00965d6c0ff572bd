"""A containerd in memory: ``FakeContainerd`` is its state and the disk's, ``FakeContainers`` a client of it.

The client has the contract of ``moorage.containerd.containers.BundledContainers``; ``tests/contract`` checks that.
Beyond it, a test can lose the connection, drop, delay or repeat events, hang a shim, and make call k fail or be
cancelled, before its effect or after it (the answer is lost then).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectSendStream

from moorage import errors
from moorage.containerd import check_identifier
from moorage.containerd.shims.processes import has_pid_namespace
from moorage.containerd.types import (
    Envelope,
    Event,
    Mount,
    RuntimeOptions,
    Spec,
    Status,
    TaskDeleted,
    TaskExit,
    TaskStarted,
)
from moorage.executor import Attach
from support.fake_streams import FakeInput, FakePipe, FakeStdio
from support.specs import CODE, ERR, OUT

HALF_MADE = "a task whose creation was cut off"
RUNTIME_STATE = "state of the runtime"
TASK_DIRECTORY = "containerd's directory of a task"

KILLED = 137


@dataclass
class FakeTask:
    """A task and its first process."""

    id: str
    pid: int
    stdout: FakePipe
    stderr: FakePipe
    status: Status = Status.CREATED
    code: int = 0
    exited_at: datetime | None = None
    oom: bool = False
    hung: bool = False
    """Its shim does not answer."""
    immortal: bool = False
    """Its process does not end by SIGKILL."""


@dataclass(frozen=True)
class Record:
    spec: Spec
    labels: Mapping[str, str]
    options: RuntimeOptions
    rootfs: Sequence[Mount]


@dataclass(eq=False)
class FakeContainerd:
    """Records, tasks, directories and leftovers of one namespace. Outlives its clients."""

    namespace: str = "test"
    records: dict[str, Record] = field(default_factory=dict)
    tasks: dict[str, FakeTask] = field(default_factory=dict)
    pipes: dict[str, tuple[FakePipe, FakePipe]] = field(default_factory=dict)
    """The FIFOs that exist as files."""
    bundles: set[str] = field(default_factory=set)
    notes: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)
    """How ended tasks ended, as it lies in their directories."""
    obstacles: set[tuple[str, str]] = field(default_factory=set)
    up: bool = True
    deaf: bool = False
    """Events are lost."""
    delayed: list[Envelope] | None = None
    """Where it is a list, events wait in it for ``release``."""
    blind: bool = False
    """The kernel does not report exited processes."""
    subscribers: list[MemoryObjectSendStream[Envelope]] = field(default_factory=list)
    subscriptions: int = 0
    pids: Any = field(default_factory=lambda: count(1000))
    ends: dict[int, anyio.Event] = field(default_factory=dict)

    def left(self) -> list[str]:
        """What there is, as text; empty when nothing is left."""
        return [
            *(f"record {id}" for id in self.records),
            *(f"task {id}" for id in self.tasks),
            *(f"directory {id}" for id in self.bundles),
            *(f"fifos {id}" for id in self.pipes),
            *(f"{what} {id}" for id, what in self.obstacles),
            *(f"reader of {id}" for id, pipes in self.pipes.items() for pipe in pipes if pipe.readers),
        ]

    # what happens to processes

    def end(self, id: str, code: int, *, oom: bool = False) -> None:
        """The first process of a task exits by itself."""
        task = self.tasks[id]
        if task.status is Status.STOPPED:
            return
        task.status, task.code, task.exited_at, task.oom = Status.STOPPED, code, datetime.now(UTC), oom
        task.stdout.end()
        task.stderr.end()
        if task.pid in self.ends and not self.blind:
            self.ends[task.pid].set()
        self.publish(TaskExit(id, id, task.pid, code, task.exited_at))

    def kill_shim(self, id: str) -> None:
        """The shim is killed: containerd kills the process, invents a code and removes the task."""
        self.end(id, KILLED)
        self.tasks.pop(id)

    async def wait_for_end(self, pid: int) -> None:
        """As the kernel's pidfd."""
        await self.ends.setdefault(pid, anyio.Event()).wait()

    # what happens to containerd

    def go_down(self) -> None:
        """Every call fails and every subscription ends until ``come_up``."""
        self.up = False
        self.end_subscriptions()

    def come_up(self) -> None:
        self.up = True

    def end_subscriptions(self) -> None:
        """The streams break; a new one works at once."""
        for subscriber in self.subscribers:
            subscriber.close()
        self.subscribers.clear()

    def publish(self, event: Event) -> None:
        """Send an event to every subscriber, as far as events arrive at all."""
        envelope = Envelope(self.namespace, "/tasks/test", datetime.now(UTC), event)
        if self.delayed is not None:
            self.delayed.append(envelope)
        elif not self.deaf:
            self.send(envelope)

    def send(self, envelope: Envelope) -> None:
        for subscriber in self.subscribers:
            subscriber.send_nowait(envelope)

    def release(self) -> None:
        """Send the delayed events, and delay no more."""
        delayed, self.delayed = self.delayed or [], None
        for envelope in delayed:
            self.send(envelope)


@dataclass(frozen=True)
class Call:
    """One call to containerd: before its effect, or after it and before its answer."""

    number: int
    name: str
    id: str
    after: bool


Fault = Callable[[Call], Awaitable[None]]


def fail_at(number: int, error: Exception, *, after: bool = False) -> Fault:
    """Make this call fail, counted from 0."""

    async def fault(call: Call) -> None:
        if (call.number, call.after) == (number, after):
            raise error

    return fault


def cancel_at(number: int, scope: anyio.CancelScope, *, after: bool = False) -> Fault:
    """Cancel a scope in the middle of this call."""

    async def fault(call: Call) -> None:
        if (call.number, call.after) == (number, after):
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    return fault


class FakeContainers:
    """One process's client."""

    def __init__(self, world: FakeContainerd) -> None:
        self.world = world
        self.calls: list[Call] = []
        self.fault: Fault | None = None
        self.stdin: FakeInput | None = None
        """Where it is one, tasks are given it as standard input."""
        self._made: set[str] = set()
        self._isolated: set[str] = set()
        """Containers whose processes all end with the first one."""
        self._stopped: dict[str, tuple[int, datetime | None]] = {}
        """The exits of tasks whose status was stopped."""

    async def create(
        self,
        id: str,
        spec: Spec,
        runtime_options: RuntimeOptions,
        *,
        rootfs: Sequence[Mount] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        check_identifier(id)
        world, record = self.world, Record(spec, {**(labels or {}), "bundle": id}, runtime_options, rootfs)
        if id in world.bundles:
            raise errors.Conflict(f"container {id} has a directory already")
        world.bundles.add(id)
        try:
            async with self._call("create_container", id):
                if id in world.records:
                    raise errors.Conflict(f'container "{id}": already exists')
                world.records[id] = record
        except BaseException:
            world.bundles.discard(id)
            if world.up and world.records.get(id) is record:
                del world.records[id]
            raise
        self._made.add(id)
        self._stopped.pop(id, None)
        self._note_spec(id, spec)

    def _note_spec(self, id: str, spec: Spec) -> None:
        (self._isolated.add if has_pid_namespace(spec) else self._isolated.discard)(id)

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        if checkpoint_dir or with_stdin:
            raise errors.Unsupported(f"cannot start {id}")
        async with self._new_task(id, attach):
            return await self.start_prepared(id)

    async def prepare(self, id: str, attach: Attach) -> int:
        async with self._new_task(id, attach) as pid:
            return pid

    async def start_prepared(self, id: str) -> int:
        async with self._call("start_task", id):
            task = self._task(id)
            if task.status is not Status.CREATED:
                raise errors.MoorageError(f"cannot start a task that is {task.status.value}")
            self._run(task)
        return task.pid

    @asynccontextmanager
    async def _new_task(self, id: str, attach: Attach) -> AsyncIterator[int]:
        if id not in self._made:
            raise errors.NotFound(f"container {id} was not created here")
        world = self.world
        pipes = world.pipes[id] = FakePipe(), FakePipe()
        stdio = FakeStdio(*pipes, self.stdin)
        try:
            async with self._call("create_task", id):
                self._make_task(id, *pipes)
            await attach(stdio)
            yield world.tasks[id].pid
        except BaseException:
            stdio.close()
            raise

    def _make_task(self, id: str, stdout: FakePipe, stderr: FakePipe) -> None:
        world = self.world
        record = world.records.get(id)
        if record is None:
            raise errors.NotFound(f'container "{id}" in namespace: not found')
        for what in (RUNTIME_STATE, TASK_DIRECTORY):
            if (id, what) in world.obstacles:
                world.obstacles.discard((id, what))  # the failure itself clears it
                raise errors.Conflict(f"{id}: {what} is in the way")
        if id in world.tasks or (id, HALF_MADE) in world.obstacles:
            raise errors.Conflict(f"task {id}: already exists")
        if (command := record.spec["process"]["args"][0]).startswith("/missing"):
            raise errors.MoorageError(f'exec: "{command}": no such file or directory')
        pid = next(world.pids)
        world.ends[pid] = anyio.Event()
        world.tasks[id] = FakeTask(id, pid, stdout, stderr)

    def _run(self, task: FakeTask) -> None:
        said = self.world.records[task.id].spec.get("annotations", {})
        task.status = Status.RUNNING
        self.world.publish(TaskStarted(task.id, task.pid))
        task.stdout.data += bytes.fromhex(said.get(OUT, ""))
        task.stderr.data += bytes.fromhex(said.get(ERR, ""))
        if CODE in said:
            self.world.end(task.id, int(said[CODE]))

    async def restore(self, id: str, attach: Attach) -> tuple[bool, int | None]:
        await self.labels(id)
        self._note_spec(id, self.world.records[id].spec)
        await self.status(id)
        self._stopped.pop(id, None)
        if id not in self.world.pipes:
            raise errors.NotFound(f"the output of container {id} is gone")
        stdio = FakeStdio(*self.world.pipes[id], self.stdin)
        try:
            await attach(stdio)
            status = await self.status(id)
            if status is Status.UNKNOWN:
                raise errors.Unavailable(f"the shim of container {id} does not answer")
        except BaseException:
            stdio.close()
            raise
        alive = status in (Status.RUNNING, Status.PAUSED, Status.PAUSING)
        return alive, self.world.tasks[id].pid

    async def status(self, id: str) -> Status:
        async with self._call("get_task", id):
            if id not in self.world.tasks:
                raise errors.NotFound(f"task {id} not found: not found")
            task = self.world.tasks[id]  # seen without a record too
            if task.status is Status.STOPPED and not task.hung:
                self._stopped[id] = task.code, task.exited_at
            return Status.UNKNOWN if task.hung else task.status

    async def labels(self, id: str) -> Mapping[str, str]:
        async with self._call("get_container", id):
            if id not in self.world.records:
                raise errors.NotFound(f'container "{id}" in namespace: not found')
            return self.world.records[id].labels

    async def signal_process(self, id: str, process_id: str, signal: int) -> None:
        async with self._call("kill", id):
            task = self._task(id)
            if process_id != "init" or task.status is Status.STOPPED:
                raise errors.NotFound("process already finished: not found")
            self._kill(task, signal)

    def _kill(self, task: FakeTask, signal: int) -> None:
        if task.hung:
            raise errors.Unavailable("containerd did not answer Tasks.Kill")
        if signal == 9 and not task.immortal:
            self.world.end(task.id, KILLED)

    async def oom_killed(self, id: str) -> bool:
        async with self._call("metrics", id):
            return id in self.world.tasks and self.world.tasks[id].oom

    async def find_exit(self, id: str) -> tuple[int | None, datetime | None] | None:
        return self._stopped.get(id) if id in self._isolated else None

    async def delete_task(self, id: str) -> tuple[int | None, datetime | None]:
        world = self.world
        exit = await self._kill_and_delete(id)
        if exit is None and id in world.tasks:
            async with self._call("create_container", id):
                world.records[id] = Record({}, {"bundle": ""}, RuntimeOptions(), ())
            exit = await self._kill_and_delete(id)
        world.obstacles.discard((id, RUNTIME_STATE))
        return exit if exit is not None else world.notes.get(id, (None, None))

    async def _kill_and_delete(self, id: str) -> tuple[int, datetime | None] | None:
        try:
            async with self._call("kill", id):
                task = self._task(id)
                if task.status is Status.STOPPED:
                    if id in self.world.bundles:
                        self.world.notes[id] = task.code, task.exited_at
                    raise errors.NotFound("process already finished: not found")
                self._kill(task, 9)
            async with self._call("wait", id):
                if self._task(id).status is not Status.STOPPED:
                    raise errors.Unavailable(f"cannot stop container {id}, its process may still run")
        except errors.NotFound:
            pass
        try:
            async with self._call("delete_task", id):
                self.world.obstacles.discard((id, HALF_MADE))
                task = self._task(id)
                del self.world.tasks[id]
                self.world.publish(TaskDeleted(id, task.pid, task.code))
                return task.code, task.exited_at
        except errors.NotFound:
            return None

    async def delete(self, id: str) -> None:
        check_identifier(id)
        try:
            async with self._call("get_task", id):
                task = self._task(id)
            status = Status.UNKNOWN if task.hung else task.status
        except errors.NotFound:
            status = Status.STOPPED
        if status is not Status.STOPPED:
            raise errors.Conflict(f"cannot delete container {id}: it has a task that is {status.value}")
        try:
            async with self._call("delete_container", id):
                self.world.records.pop(id, None)
        except errors.NotFound:
            pass
        self._made.discard(id)
        self._isolated.discard(id)
        self._stopped.pop(id, None)
        self.world.bundles.discard(id)
        self.world.notes.pop(id, None)
        self.world.pipes.pop(id, None)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Envelope]]:
        send, receive = anyio.create_memory_object_stream[Envelope](float("inf"))
        with send, receive:
            async with self._call("subscribe"):
                self.world.subscribers.append(send)
                self.world.subscriptions += 1

            async def envelopes() -> AsyncIterator[Envelope]:
                async for envelope in receive:
                    yield envelope
                raise errors.Unavailable("containerd closed the stream of Events.Subscribe")

            try:
                yield envelopes()
            finally:
                if send in self.world.subscribers:
                    self.world.subscribers.remove(send)

    def _task(self, id: str) -> FakeTask:
        """The task as most calls find it: under its record."""
        if id not in self.world.records:
            raise errors.NotFound(f'container "{id}" in namespace: not found')
        if id not in self.world.tasks:
            raise errors.NotFound(f"task {id} not found: not found")
        return self.world.tasks[id]

    @asynccontextmanager
    async def _call(self, name: str, id: str = "") -> AsyncIterator[None]:
        number = sum(not call.after for call in self.calls)
        await self._reach(Call(number, name, id, after=False))
        yield
        await self._reach(Call(number, name, id, after=True))

    async def _reach(self, call: Call) -> None:
        self.calls.append(call)
        await anyio.lowlevel.checkpoint()
        if self.fault is not None:
            await self.fault(call)
        if not self.world.up:
            raise errors.Unavailable("cannot reach containerd: Connection refused")

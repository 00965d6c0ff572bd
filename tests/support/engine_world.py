"""An engine on a host in memory: containers, their sockets, images and leases are a model, all else is the real engine.

``Host`` is what outlives an engine. Records are real files, so an engine that is cut off anywhere is followed by one
that reads what it left. What a plugin does when it is started is its ``Script``.
"""

import os
import signal as signals
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moorage import errors
from moorage._lib import threads
from moorage.containerd.types import RuntimeOptions
from moorage.engine import engine as engine_module
from moorage.engine import grants, plugin, restore, runner, supervisor, telemetry, versions
from moorage.engine.changes import trial
from moorage.engine.engine import Engine
from moorage.engine.run import exec_processes, plan, ready_time, standby
from moorage.engine.runtime import ENGINE_LABEL, PLUGIN_LABEL, ContainerRuntime
from moorage.engine.store import Store
from moorage.engine.values import EngineIdentity, PluginEvent, PluginRecord
from moorage.executor import RUN_LABEL, Exit
from moorage.host import directory_tree
from moorage.logs.reader import PluginLog
from moorage.oci_runtime.choice import OciRuntime
from moorage.runs.plan import RunPlan
from moorage.runs.preparation import Preparation
from moorage.timeouts import Timeouts

ENGINE_ID = "e" * 32
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """{"interface": {"types": ["moorage.test/1.0"], "socket": "p.sock"}, "entrypoint": ["/p"],
 "network": {"type": "host"}, "env": [{"name": "A", "settable": ["value"]}]}"""
TIMEOUTS = Timeouts()


class Script(Enum):
    """What a plugin does when it is started."""

    LISTENS = "listens"
    DEAF = "listens, and ignores TERM"
    IMMORTAL = "listens, and cannot be killed"
    SILENT = "never listens"
    DEAF_AND_SILENT = "never listens, and ignores TERM"
    IMMORTAL_AND_SILENT = "never listens, and cannot be killed"
    EXITS = "exits before it listens"
    REFUSED = "cannot be created"


@dataclass(eq=False)
class Container:
    """One container of the host."""

    id: str
    owner: str
    script: Script
    pid: int
    listener: socket.socket | None = None
    exit: Exit | None = None
    is_prepared: bool = False
    """It was created and not started."""

    @property
    def is_alive(self) -> bool:
        return self.exit is None and not self.is_prepared

    def close(self) -> None:
        """It listens no longer."""
        if self.listener is not None:
            self.listener.close()


@dataclass
class Host:
    """What there is besides the engine, and survives it."""

    base: Path
    containers: dict[str, Container] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    scripts_of_roots: dict[str, Script] = field(default_factory=dict)
    """By snapshot, for plugins of which there are several versions."""
    root: str = ""
    """The snapshot that was requested last."""
    images: set[str] = field(default_factory=set)
    owners: dict[str, str] = field(default_factory=dict)
    """Of images, where a sweep is to know them."""
    made_for: dict[str, str] = field(default_factory=dict)
    """The plugin of each image that a test made."""
    leases: dict[str, Mapping[str, str]] = field(default_factory=dict)
    is_unavailable: bool = False
    """Containerd does not answer."""
    removal_seconds: float = 0.03
    """How long the removal of a container takes, after its exit was reported."""
    executor: "FakeExecutor | None" = None
    """Of the engine that runs now."""
    started: int = 0
    exits: dict[str, Exit] = field(default_factory=dict)
    output: dict[str, list[str]] = field(default_factory=dict)
    """What each plugin writes when it is started."""
    refusals: dict[str, Exception] = field(default_factory=dict)
    """Why a plugin cannot be created."""
    prepared: int = 0
    """How many containers were prepared."""
    standby_refusals: dict[str, Exception] = field(default_factory=dict)
    """Why nothing can be prepared for a plugin."""
    start_refusals: dict[str, Exception] = field(default_factory=dict)
    """Why what is prepared for a plugin cannot be started."""
    attached: dict[str, object] = field(default_factory=dict)
    """Who takes the output of each container, as the engine that runs now says."""
    collections: int = 0
    """How many collections were requested."""
    unrestorable: int = 0
    """As many restores fail because containerd is unavailable."""
    sweeping: anyio.Event | None = None
    """Until it is set, containerd does not say which images there are."""
    killed_processes: list[tuple[str, str]] = field(default_factory=list)
    """Processes beside a container's own that were killed: container and id."""
    unremovable: int = 0
    """As many removals of processes beside a container's own fail because containerd is unavailable."""
    hides_pids: bool = False
    """Containerd does not report the pid of a task."""

    def owner_of(self, image: str) -> str:
        """The plugin of an image: as a sweep is to know it, or as ``World.record`` and upgrades name it."""
        return self.owners.get(image, self.made_for.get(image, ""))

    def alive(self, owner: str = "") -> list[str]:
        """The containers in which a process runs."""
        return sorted(it.id for it in self.containers.values() if it.is_alive and (not owner or it.owner == owner))

    def end(self, id: str, code: int, signal: str | None = None) -> None:
        """The process exits."""
        container = self.containers[id]
        if container.exit is None:
            container.exit = Exit(id, "run", code, signal, exited_at=EPOCH, pid=container.pid)
            container.close()
            if self.executor is not None:
                self.executor.notice(container)

    era: int = 0
    """How many engines there have been; one that was killed reaches nothing any more."""

    stuck_images: int = 0
    """As many deletions of images fail."""

    def end_all(self, code: int) -> None:
        """Every process exits."""
        for id in self.alive():
            self.end(id, code, "SIGKILL" if code == 137 else None)

    def check(self, era: int) -> None:
        if self.is_unavailable or era != self.era:
            raise errors.Unavailable("cannot reach containerd")


class KilledStore(Store):
    """A data directory that an engine does not reach any more once it is killed."""

    is_killed = False
    is_full = False

    def save(self, record: PluginRecord) -> None:
        self._check()
        super().save(record)

    def forget(self, id: str) -> None:
        self._check()
        super().forget(id)

    def _check(self) -> None:
        if self.is_killed or self.is_full:
            raise errors.Unavailable("cannot write the record: no space left on device")


@dataclass
class Taker:
    """Takes the output of a container to the log of its plugin, when it is flushed or ends."""

    key: str
    log: PluginLog
    waiting: list[str] = field(default_factory=list)

    def write(self) -> None:
        """All that waits goes to the file."""
        self.log.directory.mkdir(parents=True, exist_ok=True)
        with open(self.log.directory / "current", "a") as file:
            for text in self.waiting:
                file.write(f"{datetime.now(UTC).isoformat(timespec='microseconds')} stdout {text}\n")
        self.waiting.clear()


class FakeKeeper:
    """A log keeper that writes late."""

    def __init__(self) -> None:
        self._takers: dict[str, Taker] = {}

    def attacher(self, key: str, log: PluginLog) -> Taker:
        """Who takes the output of this container."""
        self._takers[key] = Taker(key, log)
        return self._takers[key]

    async def flush(self, key: str) -> None:
        """All that was written until now is in the log then."""
        self._takers[key].write()


class FakeExecutor:
    """The executor's promises over a host."""

    def __init__(self, host: Host, handler: Any, tasks: Any) -> None:
        self._host, self._era = host, host.era
        self._handler = handler
        self._tasks = tasks
        self._owned: set[str] = set()
        self._specs: dict[str, tuple[Any, Any]] = {}
        self._removed = anyio.Event()
        host.executor = self

    async def prepare(self, id: str, spec: Any, *, attach: Any, labels: Mapping[str, str]) -> None:
        self._owned.add(id)
        try:
            await anyio.sleep(0.03)
            self._host.check(self._era)
            owner = labels[PLUGIN_LABEL]
            if owner in self._host.standby_refusals:
                raise self._host.standby_refusals[owner]
            self._host.prepared += 1
            pid = 5000 + self._host.prepared
            self._host.containers[id] = Container(id, owner, Script.LISTENS, pid, is_prepared=True)
        except BaseException:
            self._release(id)
            raise
        self._specs[id] = spec, attach

    async def start(self, id: str) -> None:
        if not self.is_prepared(id):
            raise errors.NotFound(f"container {id} is not prepared")
        container = self._host.containers[id]
        try:
            await anyio.sleep(0.01)
            self._host.check(self._era)
            if container.owner in self._host.start_refusals:
                raise self._host.start_refusals[container.owner]
        except BaseException:
            self._release(id)
            raise
        spec, attach = self._specs.pop(id)
        container.is_prepared = False
        container.script = self._host.scripts.get(container.owner, Script.LISTENS)
        self._begin(container, spec, attach)

    async def discard(self, id: str) -> None:
        if self.is_prepared(id):
            await anyio.sleep(0.03)
            self._release(id)

    def is_prepared(self, id: str) -> bool:
        return id in self._owned and id in self._host.containers and self._host.containers[id].is_prepared

    def lose(self, id: str) -> None:
        """The process of a prepared container exits."""
        assert self.is_prepared(id)
        self._release(id)

    def _release(self, id: str) -> None:
        self._specs.pop(id, None)
        self._host.containers.pop(id, None)
        self._owned.discard(id)
        self._removed.set()
        self._removed = anyio.Event()

    async def create(self, id: str, spec: Any, *, attach: Any, labels: Mapping[str, str]) -> None:
        await anyio.sleep(0.03)
        self._host.check(self._era)
        if id in self._host.containers:
            raise errors.Conflict(f"container {id} exists")
        owner = labels[PLUGIN_LABEL]
        script = self._host.scripts.get(owner, Script.LISTENS)
        script = self._host.scripts_of_roots.get(self._host.root, script)
        if owner in self._host.refusals:
            raise self._host.refusals[owner]
        if script is Script.REFUSED:
            raise errors.MoorageError('exec: "/p": no such file or directory')
        self._host.started += 1
        container = Container(id, owner, script, 1000 + self._host.started)
        self._host.containers[id] = container
        self._owned.add(id)
        self._begin(container, spec, attach)

    def _begin(self, container: Container, spec: Any, attach: Any) -> None:
        id, script = container.id, container.script
        self._host.attached[id] = attach
        attach.waiting += self._host.output.get(container.owner, [])
        if script is Script.EXITS:
            attach.write()
            self._host.end(id, 3)
        elif script not in _SILENT:
            container.listener = _listen(Path(spec["socket"]))

    async def restore(self, id: str, *, attach: Any) -> bool:
        await anyio.lowlevel.checkpoint()
        self._host.check(self._era)
        if self._host.unrestorable:
            self._host.unrestorable -= 1
            raise errors.Unavailable("cannot reach containerd")
        container = self._host.containers[id]
        if container.is_alive:
            self._owned.add(id)
            self._host.attached[id] = attach
            return True
        del self._host.containers[id]
        self._host.exits[id] = container.exit  # type: ignore[assignment]  # it is not alive
        return False

    async def signal(self, id: str, number: int) -> None:
        await anyio.lowlevel.checkpoint()
        self._host.check(self._era)
        container = self._host.containers.get(id)
        if container is None or not container.is_alive:
            raise errors.NotFound(f"no process in {id}")
        ends = container.script not in _IMMORTAL and (number == signals.SIGKILL or container.script not in _DEAF)
        if ends:
            self._host.end(id, 128 + number, signals.Signals(number).name)

    def pid(self, id: str) -> int | None:
        return None if self._host.hides_pids or id not in self._owned else self._host.containers[id].pid

    def last_exit(self, id: str) -> Exit | None:
        return self._host.exits.get(id)

    def notice(self, container: Container) -> None:
        """An exit of a container that this executor owns is reported."""
        if container.id in self._owned:
            self._tasks.start_soon(self._report, container)

    async def _report(self, container: Container) -> None:
        await anyio.sleep(0.01)  # its output is drained
        assert container.exit is not None
        await self._handler.handle_exit_event(container.id, container.exit)
        await anyio.sleep(self._host.removal_seconds)
        self._host.containers.pop(container.id, None)
        self._owned.discard(container.id)
        self._removed.set()
        self._removed = anyio.Event()

    def owns(self, id: str) -> bool:
        return id in self._owned

    async def wait_removed(self, id: str) -> None:
        while id in self._owned:
            await self._removed.wait()


_SILENT = (Script.SILENT, Script.DEAF_AND_SILENT, Script.IMMORTAL_AND_SILENT)
_DEAF = (Script.DEAF, Script.DEAF_AND_SILENT)
_IMMORTAL = (Script.IMMORTAL, Script.IMMORTAL_AND_SILENT)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(100)
    return listener


class FakeClient:
    """Containerd's records, tasks, images and leases; it is its own storage."""

    namespace = "test"
    last_version = ""

    def __init__(self, host: Host) -> None:
        self._host, self._era = host, host.era
        self._marks = {ENGINE_LABEL: ENGINE_ID}
        self.storage = self

    def marked(self, marks: Mapping[str, str], ref_prefix: str) -> "FakeClient":
        """It is one engine's anyway."""
        assert marks == self._marks, ref_prefix
        return self

    async def list_containers(self, *_: str) -> Sequence[Any]:
        self._host.check(self._era)
        return [
            SimpleNamespace(
                id=it.id, labels={PLUGIN_LABEL: it.owner, RUN_LABEL: "x", **self._marks} if it.owner else {}
            )
            for it in self._host.containers.values()
        ]

    async def version(self) -> Any:
        self._host.check(self._era)

    async def get_container(self, id: str) -> Any:
        self._host.check(self._era)
        if id not in self._host.containers:
            raise errors.NotFound(f"container {id}")
        return SimpleNamespace(id=id, runtime=RuntimeOptions(), spec={})

    async def kill(self, container: str, number: int, *, exec_id: str) -> None:
        assert number == signals.SIGKILL
        self._host.killed_processes.append((container, exec_id))

    async def wait(self, container: str, exec_id: str, *, within: float) -> None:
        assert (container, exec_id) in self._host.killed_processes

    async def delete_process(self, container: str, exec_id: str) -> None:
        if self._host.unremovable:
            self._host.unremovable -= 1
            raise errors.Unavailable("cannot reach containerd")
        assert (container, exec_id) in self._host.killed_processes

    async def pids(self, container: str) -> Sequence[int]:
        """None of this world's processes is one of the machine's."""
        self._host.check(self._era)
        if container not in self._host.containers:
            raise errors.NotFound(f"task {container}")
        return []

    async def directories(self) -> list[str]:
        return list(self._host.containers)

    async def delete_task(self, id: str) -> None:
        self._host.check(self._era)
        if self._host.containers[id].script in _IMMORTAL and self._host.containers[id].is_alive:
            raise errors.Unavailable(f"cannot stop container {id}")
        self._host.end(id, 137, "SIGKILL")

    async def delete(self, id: str) -> None:
        self._host.check(self._era)
        self._host.containers.pop(id, None)

    async def snapshot_mounts(self, snapshotter: str, key: str) -> Sequence[Any]:
        self._host.check(self._era)
        self._host.root = key
        return []

    async def delete_image(self, name: str, *, collect: bool = False) -> None:
        self._host.check(self._era)
        if self._host.stuck_images:
            self._host.stuck_images -= 1
            raise errors.Unavailable("the image is stuck")
        if name not in self._host.images:
            raise errors.NotFound(name)
        self._host.images.remove(name)
        self._host.collections += collect

    async def list_images(self) -> Sequence[Any]:
        if self._host.sweeping is not None:
            await self._host.sweeping.wait()
        owners = self._host.owners
        return [
            SimpleNamespace(name=name, labels={PLUGIN_LABEL: owners[name], **self._marks} if name in owners else {})
            for name in sorted(self._host.images)
        ]

    async def get_image(self, name: str) -> Any:
        self._host.check(self._era)
        if name not in self._host.images:
            raise errors.NotFound(name)
        return SimpleNamespace(name=name, labels={PLUGIN_LABEL: self._host.owner_of(name), **self._marks})

    async def list_ingests(self) -> Sequence[Any]:
        return []

    async def list_leases(self) -> Mapping[str, Mapping[str, str]]:
        return dict(self._host.leases)

    async def create_lease(self, id: str, *, labels: Mapping[str, str] | None = None) -> None:
        self._host.leases[id] = labels or {}

    async def delete_lease(self, id: str, *, collect: bool = False) -> None:
        del self._host.leases[id]


def build_small_plan(directories: Any, config: Any, settings: Any, options: Any) -> RunPlan:
    """A plan with as much of a spec as the model of containerd reads."""
    socket = directories.socket(config)
    spec: dict[str, Any] = {"socket": socket.path, "process": {"args": ["/p"], "env": [], "cwd": "/"}}
    spec["confinement"] = options.confinement
    spec["cgroup"] = options.container
    return RunPlan(config, directories, socket, spec)


def find_no_sources(plan: RunPlan) -> tuple[Any, ...]:
    """A file of the host of a test says what its mount sources are."""
    file = plan.directories.exec_root.parent / "sources"
    return tuple(file.read_text().splitlines()) if file.exists() else ()


def prepare_without_mounts(plan: RunPlan, _: Any, __: Any) -> Preparation:
    """The directories of a plan without the mounts."""
    directories = plan.directories
    directories.root.mkdir(parents=True, exist_ok=True)
    directories.socket_directory.mkdir(exist_ok=True)
    program = directories.exec_root.parent / "program"
    if program.exists():
        (directories.root / "p").write_bytes(program.read_bytes())
        (directories.root / "p").chmod(0o755)
    dead = directories.exec_root.parent / "dead"
    return Preparation(tuple(Path(line) for line in dead.read_text().splitlines()) if dead.exists() else ())


async def run_at_once(function: Callable[[], Any]) -> Any:
    """Instead of a worker thread: a clock that jumps cannot wait for one."""
    await anyio.lowlevel.checkpoint()
    return function()


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No threads, no mounts, no fsync, and the loop's clock everywhere."""
    modules = (
        threads,
        directory_tree,
        supervisor,
        plugin,
        runner,
        plan,
        standby,
        exec_processes,
        restore,
        grants,
        versions,
        trial,
        engine_module,
        telemetry,
    )
    for module in modules:
        monkeypatch.setattr(module, "run_blocking", run_at_once)
    for module in (runner, exec_processes):
        monkeypatch.setattr(module, "run_abandonable", run_at_once)
    monkeypatch.setattr(plan, "build_plan", build_small_plan)
    monkeypatch.setattr(standby, "prepare_standby", lambda _: None)
    monkeypatch.setattr(standby, "close_views", lambda _: None)
    monkeypatch.setattr(standby, "find_mount_sources", find_no_sources)
    monkeypatch.setattr(runner, "use_standby", lambda *_: Preparation())
    monkeypatch.setattr(runner, "prepare_run", prepare_without_mounts)
    monkeypatch.setattr(runner, "protect_directories", lambda _: None)
    clock = SimpleNamespace(monotonic=anyio.current_time, time_ns=time.time_ns)
    monkeypatch.setattr(ready_time, "time", clock)
    monkeypatch.setattr(telemetry, "time", clock)
    monkeypatch.setattr("os.fsync", lambda _: None)


class World:
    """A host, and one engine after another on it."""

    def __init__(self, base: Path) -> None:
        self.host = Host(base)
        self.store = Store(base / "data")
        self.engine: Engine
        self._descriptor = self.store.lock(os.getpid())

    @staticmethod
    def id(number: int) -> str:
        return f"{number:x}".rjust(12, "0").ljust(64, "0")

    @property
    def events(self) -> list[PluginEvent]:
        """What the present engine reported."""
        return list(self.engine._events._buffer)

    def record(self, number: int) -> PluginRecord:
        """A plugin as its versions leaves it."""
        name = f"p{number}:latest"
        made = PluginRecord(self.id(number), name, name, CONFIG, f"image-{number}", "sha256:x", "o", "k", EPOCH)
        self.host.images.add(made.image)
        self.host.made_for[made.image] = made.id
        self.store.save(made)
        return made

    @asynccontextmanager
    async def run(self, *, start: bool = True, live_restore: bool = True) -> AsyncIterator[Engine]:
        """An engine with containerd, until the block ends: that is a kill, all that it was doing is cut off."""
        async with anyio.create_task_group() as tasks:
            runtime = self.host.base / "run"
            store = KilledStore(self.store.root)
            choice = EngineIdentity(ENGINE_ID, "private", "test")
            self.engine = Engine(store, runtime, choice, tasks, TIMEOUTS, live_restore=live_restore)
            self.engine.load()
            try:
                async with self.on_containerd(start=start):
                    yield self.engine
            finally:
                self.host.executor = None
                self.host.era += 1
                store.is_killed = True
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def on_containerd(self, *, start: bool = True) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            client: Any = FakeClient(self.host)
            executor: Any = FakeExecutor(self.host, self.engine, tasks)
            keeper: Any = FakeKeeper()
            runtime = ContainerRuntime(
                client, client, executor, keeper, self.engine.ownership, OciRuntime(), anyio.CapacityLimiter(3)
            )
            async with self.engine.run_on(runtime, "address", start=start):
                yield
            tasks.cancel_scope.cancel()

    def close(self) -> None:
        """Release what the host's processes use."""
        os.close(self._descriptor)
        for container in self.host.containers.values():
            container.close()

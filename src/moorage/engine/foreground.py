"""One plugin in the foreground: start, output, ready, what it implements, stop. Reports values; prints nothing."""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeAlias

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_abandonable
from moorage.containerd.types import Spec
from moorage.engine.devices import resolve_devices
from moorage.engine.ending import end_process
from moorage.engine.entrypoint import explain
from moorage.engine.host_security import HostSecurity
from moorage.engine.package import PluginDirectory
from moorage.engine.probe import HTTP_PROTOCOLS, Activation, activate, explain_socket, wait_until_listening
from moorage.engine.remains import keeping_group
from moorage.engine.runtime_directory import NETWORK_PART
from moorage.executor import ByteSink, Exit
from moorage.host.network_files import NetworkFiles
from moorage.host.sockets import PluginSocket
from moorage.plugins import (
    BUILT_IN,
    Places,
    Settings,
    cgroup_path,
    confined_spec,
    needs,
    requested_capabilities,
    socket_path,
)
from moorage.plugins.activation import find_mismatch
from moorage.timeouts import Timeouts

__all__ = (
    "Ended",
    "Foreground",
    "Gone",
    "Happened",
    "Kept",
    "Lines",
    "Plan",
    "Ready",
    "Report",
    "Started",
    "exit_status",
    "make_plan",
)

log = logging.getLogger(__name__)

LINE_LIMIT = 64 * 1024
"""Longest line in bytes; a longer one is told in pieces."""


class Plan(Struct, frozen=True):
    """A plugin with its places on this machine, ready to run. All paths are the host's."""

    id: str
    spec: Spec
    socket: PluginSocket
    root: Path
    socket_directory: Path
    network_files: NetworkFiles | None
    """What it gets in place of the host's files; None for a plugin that is not on its network."""
    propagated_mount: Path | None
    speaks_http: bool
    types: tuple[str, ...] = ()
    """What its config says that it implements."""


class Started(Struct, frozen=True):
    """The process runs."""

    plan: Plan


class Ready(Struct, frozen=True):
    """The socket accepts connections, this many seconds after the start."""

    seconds: float
    activation: Activation | None
    """What the plugin says of itself; None for one that does not speak HTTP and was not asked."""


class Lines(Struct, frozen=True):
    """Lines of output that came together, each without its end."""

    stream: str
    at: datetime
    texts: tuple[str, ...]


class Ended(Struct, frozen=True):
    """The process ended."""

    exit: Exit
    reason: str = ""
    """Why it never ran, where that can be told: the runtime only knows when the kernel refuses to run the file."""


class Kept(Struct, frozen=True):
    """Everything is removed, but for what the plugin has written to its root file system."""

    changes: Path


class Gone(Struct, frozen=True):
    """Everything that was made for the run is removed."""


Happened: TypeAlias = Started | Ready | Lines | Ended | Kept | Gone
Report = Callable[[Happened], Awaitable[None]]


class Executor(Protocol):
    """What is needed of an executor here."""

    async def create(self, id: str, spec: Spec, stdout: ByteSink, stderr: ByteSink) -> None:
        """Start a container."""

    async def signal(self, id: str, signal: int) -> None:
        """Signal its first process. Raises: NotFound for one that is gone."""


def make_plan(id: str, plugin: PluginDirectory, settings: Settings, state: Path, data: Path) -> Plan:
    """Settle where everything of the plugin goes; looks at devices and mount sources, makes nothing (blocking).

    Raises: Invalid naming the entry of the config that this machine cannot meet.
    """
    config = plugin.parsed.config
    asked = needs(settings)
    for source in asked.sources:
        if not os.path.exists(source.path):
            raise source.missing()
    directory = state / "p" / id[:12]
    propagated = data / "propagated-mount" if config.propagated_mount else None
    network = NetworkFiles(state / NETWORK_PART)
    places = Places(
        rootfs=str(directory / "root"),
        socket_directory=str(directory / "s"),
        cgroup_path=cgroup_path(id),
        propagated_mount=str(propagated) if propagated else None,
        hosts=network.hosts,
        resolv_conf=network.resolv_conf,
        devices=resolve_devices(device.path for device in asked.devices),
    )
    socket_path(config, places)  # one that is too long is refused now
    return Plan(
        id=id,
        spec=confined_spec(config, settings, places, BUILT_IN, HostSecurity().features(requested_capabilities(config))),
        socket=PluginSocket(directory, f"s/{config.interface.socket}"),
        root=directory / "root",
        socket_directory=directory / "s",
        network_files=network if config.network.is_host else None,
        propagated_mount=propagated,
        speaks_http=config.interface.protocol_scheme in HTTP_PROTOCOLS,
        types=tuple(each.text for each in config.interface.types),
    )


class Foreground:
    """Runs one plan once. It is the executor's exit handler, too."""

    def __init__(self, plan: Plan, report: Report, timeouts: Timeouts) -> None:
        self._plan = plan
        self._report = report
        self._timeouts = timeouts
        self._exit: Exit | None = None
        self._ended = anyio.Event()
        self._end_of_patience = anyio.Event()
        self._not_ready = False
        self._was_ready = False
        self._hint = ""
        self.failure = ""
        """Set by ``run``: what was wrong although the process exited by itself."""

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        """The executor's word that the process ended and is removed."""
        self._exit = exit
        self._ended.set()
        self._end_of_patience.set()

    async def run(self, executor: Executor) -> Exit:
        """Start the plugin, tell when it is ready, and return its end. Cancelled, it stops the plugin first.

        Raises: MoorageError where it cannot be started, in words; Unavailable where it does not become ready in time.
        """
        await self._create(executor)
        try:
            await self._report(Started(self._plan))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_when_ready, executor, time.monotonic())
                await self._ended.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                exit = await self._stop(executor)
                reason = "" if self._was_ready or exit.code == 0 else await self._explain()
                if not self._was_ready and not self._not_ready:
                    self._hint = await self._find_hint()
                await self._report(Ended(exit, reason))
        if self._not_ready:
            raise errors.Unavailable(
                f"the plugin did not accept a connection on {self._plan.socket.path} within {self._timeouts.ready:g} s "
                f"and was stopped{self._hint}"
            )
        if not self._was_ready and (self._hint or exit.code == 0):
            self.failure = f"the plugin exited before it accepted a connection on {self._plan.socket.path}{self._hint}"
        return exit

    def hurry(self) -> None:
        """Kill the plugin at once where it is being stopped."""
        self._end_of_patience.set()

    async def _stop(self, executor: Executor) -> Exit:
        """TERM, then KILL after the stop time-out; how the process ended.

        Raises: Unavailable for a process whose end nobody tells of.
        """
        await end_process(
            lambda number: executor.signal(self._plan.id, number),
            self._ended,
            self._timeouts,
            within=self._timeouts.stop,
            hurry=self._end_of_patience,
        )
        if self._exit is None:
            raise errors.Unavailable(
                f"cannot end the plugin: containerd does not tell of its end {self._timeouts.killed:g} s after SIGKILL"
            )
        return self._exit

    async def _create(self, executor: Executor) -> None:
        plan = self._plan
        try:
            with keeping_group():
                await executor.create(
                    plan.id, plan.spec, *(_Lines(each, self._report) for each in ("stdout", "stderr"))
                )
        except errors.MoorageError as error:
            reason = await self._explain()
            raise type(error)(f"cannot start the plugin: {f'{reason} ({error})' if reason else error}") from error

    async def _explain(self) -> str:
        return await run_abandonable(lambda: explain(self._plan.spec, str(self._plan.root)))

    async def _find_hint(self) -> str:
        text = await run_abandonable(lambda: explain_socket(self._plan.socket))
        return f"; {text}" if text else ""

    async def _tell_when_ready(self, executor: Executor, started_at: float) -> None:
        deadline = started_at + self._timeouts.ready
        ready = await wait_until_listening(
            self._plan.socket, lambda: self._ended.is_set() or time.monotonic() > deadline
        )
        if ready:
            self._was_ready = True
            seconds = time.monotonic() - started_at
            activation = None
            if self._plan.speaks_http:
                activation = await activate(self._plan.socket, self._timeouts.activate)
                mismatch = find_mismatch(self._plan.types, activation.implements)
                activation = Activation(activation.implements, activation.problem or mismatch)
            await self._report(Ready(seconds, activation))
        elif not self._ended.is_set():
            self._not_ready = True
            self._hint = await self._find_hint()
            await self._stop(executor)


class _Lines:
    """A byte sink that reports lines with their time."""

    def __init__(self, stream: str, report: Report) -> None:
        self._stream = stream
        self._report = report
        self._rest = b""

    async def write(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        pieces = [piece for line in lines for piece in _in_pieces(line)]
        if len(self._rest) > LINE_LIMIT:
            *more, self._rest = _in_pieces(self._rest)
            pieces += more
        await self._tell(pieces)

    async def close(self) -> None:
        rest, self._rest = self._rest, b""
        await self._tell([rest] if rest else [])

    async def _tell(self, lines: list[bytes]) -> None:
        if lines:
            texts = tuple(line.removesuffix(b"\r").decode(errors="backslashreplace") for line in lines)
            await self._report(Lines(self._stream, datetime.now(UTC), texts))


def _in_pieces(line: bytes) -> Iterator[bytes]:
    """A line in pieces of at most LINE_LIMIT bytes, none of which ends within a character; an empty one as it is."""
    begin = 0
    while len(line) - begin > LINE_LIMIT:
        end = begin + LINE_LIMIT
        while line[end] & 0xC0 == 0x80 and end > begin + LINE_LIMIT - 4:
            end -= 1
        yield line[begin:end]
        begin = end
    yield line[begin:]


def exit_status(exit: Exit) -> int:
    """What a shell would say of this end: the code, 128 + n for signal n; 1 where nobody knows it."""
    return 1 if exit.code is None else exit.code

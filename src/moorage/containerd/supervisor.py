"""A private containerd: started when needed, found again by the next process, started again when it exits.

It runs in a session of its own, so that it and the containers outlive this process. All its files are below two
directories: ``root`` (persistent) and ``state`` (configuration, socket, pid file, lock). A process takes the lock,
checks whether one runs, and starts one only if not: two processes at once wait for each other and share it.
"""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.backoff import Backoff
from moorage._lib.imports import collector_paused
from moorage._lib.task_groups import background_tasks, require_asyncio
from moorage._lib.threads import run_blocking
from moorage.containerd.containerd_process import (
    check_machine,
    configuration,
    configuration_version,
    find_binary,
    keep_log_bounded,
    remove_cut_off_deletions,
    search_path,
    spawn_locked,
    truncate_log,
)
from moorage.containerd.database import DamagedDatabase, check_databases, check_services, find_damage_in_log
from moorage.host.files import file_lock, keep_new_files_private, make_directory, write_atomically
from moorage.host.proc import namespace, namespace_path
from moorage.host.process_environment import clean_environment
from moorage.host.processes import find_listener, find_lock_holder, is_trusted, send_signal, wait_for_exit
from moorage.host.sockets import accepts_connections
from moorage.systemd.scopes import make_scope, start_program
from moorage.timeouts import DEFAULT, SupervisorTimeouts

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = ("ADDRESS_LIMIT", "PrivateContainerd", "check_machine", "find_binary", "supervise")

log = logging.getLogger(__name__)

Report = Callable[[str, bool], None]
"""Takes the reason why containerd does not start, and whether only an operator can remove it."""

ADDRESS_LIMIT = 98
"""Longest socket path in bytes: containerd adds ".ttrpc", and 107 is the kernel's limit."""

_SOCKET_RELEASE = DEFAULT.socket_close  # seconds from the release of a process's memory to that of its sockets, at most
_POLL = 0.005  # seconds between two checks of a containerd that is about to serve


class PrivateContainerd:
    """One containerd below two directories. ``supervise`` keeps one running.

    ``root`` has its data, ``state`` its socket and configuration, both are made when needed; ``timeouts`` bounds start
    and stop; ``search`` is a PATH for its commands, the environment's if None. ``scope`` describes the scope of systemd
    that it and its shims run in; empty for none: they stay in the control group of this process.
    """

    def __init__(
        self,
        root: Path,
        state: Path,
        timeouts: SupervisorTimeouts = DEFAULT,
        *,
        search: str | None = None,
        scope: str = "",
    ) -> None:
        """Create no file yet.

        Raises:
            errors.Invalid: the path of the socket is too long
        """
        self.root = root
        self.state = state
        self.address = str(state / "c.sock")
        self._config = state / "config.toml"
        self._pid_file = state / "pid"
        self._lock = state / "lock"
        self._alive = state / "alive"
        self._log = root / "containerd.log"
        self._timeouts = timeouts
        self._search = search
        self._scope = scope
        self._children: set[int] = set()  # that were not reaped
        self._log_start = 0
        self._stopping = False
        if (length := len(os.fsencode(self.address))) > ADDRESS_LIMIT:
            raise errors.Invalid(
                f"cannot use {state} for containerd: the path of its socket, {self.address}, has {length} bytes; "
                f"at most {ADDRESS_LIMIT} are possible"
            )

    async def ensure(self) -> int:
        """Start containerd, or find the one that runs, and wait until it serves; its pid.

        Raises:
            errors.Unsupported: a command is missing, or the event loop is not one of asyncio (trio)
            errors.Invalid: a directory cannot be used
            errors.Conflict: another program has the socket, or it runs in another mount namespace
            errors.Unavailable: it does not start; the text has the last lines of its log, or the damaged database
        """
        require_asyncio("start containerd")
        self._stopping = False
        self._make_directories()
        async with file_lock(self._lock):
            return await self._ensure()

    def _make_directories(self) -> None:
        for directory in (self.root, self.state):
            try:
                make_directory(directory, 0o700)
                directory.chmod(0o700)  # an older version may have made it accessible
            except OSError as error:
                raise errors.Invalid(f"cannot use {directory} for containerd: {error}") from error

    async def _ensure(self) -> int:
        pid = await run_blocking(self.find)
        if pid is None:
            await run_blocking(lambda: check_databases(self.root))
            await self._check_socket_unused()
            try:
                pid = await run_blocking(self._spawn)
            except OSError as error:
                raise errors.Unavailable(f"cannot start containerd: {error}") from error
        else:
            self._check_mount_namespace(pid)
        await self._wait_until_serving(pid)
        return pid

    def find(self) -> int | None:
        """The pid of the containerd that runs on these directories, or None. Changes nothing.

        It is the process that holds the lock of a file in ``state``; an earlier version took no lock, and is the
        process that listens on the socket.

        Raises:
            errors.Conflict: it runs in another pid namespace
        """
        pid = find_lock_holder(self._alive)
        if pid == 0:
            raise errors.Conflict(f"cannot use the containerd of {self.state}: it runs in another pid namespace")
        if (
            pid is None
            and (listener := find_listener(Path(self.address))) is not None
            and self._is_from_older_version(listener)
        ):
            pid = listener
        return pid

    def _is_from_older_version(self, pid: int) -> bool:
        """Whether a process is a containerd that an earlier version started, which recorded its pid only."""
        try:
            recorded = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return False
        return recorded == pid and is_trusted(pid, ("containerd",))

    def _check_mount_namespace(self, pid: int) -> None:
        other, own = namespace("mnt", pid), namespace("mnt")
        if other and other != own:
            raise errors.Conflict(
                f"cannot use the containerd of {self.state}: process {pid} runs in another mount namespace, where what "
                f"is mounted here is not seen; run this in it: nsenter --mount={namespace_path('mnt', pid)} moorage ..."
            )

    async def stop(self) -> None:
        """Stop the containerd that runs on these directories, if one does. Running containers continue.

        Raises:
            errors.Unavailable: it does not exit after SIGKILL
        """
        self._stopping = True
        if not self.state.exists():
            return
        async with file_lock(self._lock):
            pid = await run_blocking(self.find)
            if pid is not None:
                await self._terminate(pid)
            for path in (
                Path(self.address),
                Path(self.address + ".ttrpc"),
                self._pid_file,
                self._alive,
                self._config,
            ):
                path.unlink(missing_ok=True)

    async def _check_socket_unused(self) -> None:
        # A second containerd would take the socket of one with other directories, which is unreachable from then on.
        # A private one that is about to exit has no command line any more but still its socket, for a moment.
        with anyio.move_on_after(_SOCKET_RELEASE):
            while accepts_connections(self.address):  # noqa: ASYNC110 - a process that is not our child: no event
                await anyio.sleep(_POLL)
            return
        raise errors.Conflict(f"cannot start containerd: another program listens on {self.address}")

    def _spawn(self) -> int:
        check_machine(self._search)
        self._reap()
        remove_cut_off_deletions(self.root, self.state / "s")
        binary = find_binary("containerd", self._search)
        text = configuration(self.root, self.state / "s", self.address, configuration_version(binary))
        write_atomically(self._config, text.encode())
        self._restrict_permissions()
        truncate_log(self._log)
        command = [binary, "--config", str(self._config)]
        environment = {**clean_environment(), "PATH": self._search or search_path()}
        with open(self._log, "ab") as output:
            self._log_start = output.tell()
            child = start_program(
                command,
                make_scope("containerd", self._scope) if self._scope else None,
                lambda command: spawn_locked(command, self._alive, output.fileno(), environment),
                self._log,
            )
        child.returncode = 0  # it outlives this process, which Popen would call a leak; _reap takes its true status
        self._children.add(child.pid)
        self._pid_file.write_text(f"{child.pid}\n")
        log.info("started containerd, pid %d, log %s", child.pid, self._log)
        return child.pid

    def _restrict_permissions(self) -> None:
        """Restrict files that containerd makes accessible and that may contain secrets: database, specs of tasks."""
        for directory in (self.state / "s", self.root / "io.containerd.metadata.v1.bolt"):
            try:
                make_directory(directory, 0o711)
            except OSError as error:  # containerd reports the consequence
                log.debug("cannot make %s: %s", directory, error)
                continue
            keep_new_files_private(directory)
        for path in (self.root / "io.containerd.metadata.v1.bolt" / "meta.db", self._log):
            if path.exists():
                path.chmod(0o600)

    async def _wait_until_serving(self, pid: int) -> None:
        connect = await run_blocking(_find_connect)
        try:
            with anyio.fail_after(self._timeouts.containerd_start):
                async with connect(self.address, "default", self._timeouts) as client:
                    while True:
                        try:
                            await client.version()
                        except errors.Unavailable:
                            if self._has_exited(pid):
                                raise self._start_failure() from None
                            await anyio.sleep(_POLL)
                        else:
                            await check_services(client, self.root)
                            return
        except TimeoutError as error:
            raise errors.Unavailable(
                f"cannot start containerd: it does not serve {self.address} after "
                f"{self._timeouts.containerd_start:g} s\n{self._log_tail()}"
            ) from error

    async def _terminate(self, pid: int) -> None:
        for number, within in (
            (signal.SIGTERM, self._timeouts.containerd_stop),
            (signal.SIGKILL, self._timeouts.killed),
        ):
            if not send_signal(pid, number, lambda pid: self.find() == pid):
                return
            with anyio.move_on_after(within):
                await wait_for_exit(pid)
                self._reap()
                return
        raise errors.Unavailable(f"cannot stop containerd: process {pid} does not exit")

    async def keep_running(self, pid: int, report: Report = lambda problem, is_lasting: None) -> None:
        """Start containerd again whenever the one with this pid, or a later one, exits; return after ``stop``.

        ``report`` is called with the reason why it does not start, and with an empty text when it serves again.
        """
        backoff = Backoff(self._timeouts.reconnect_first, self._timeouts.reconnect_limit, self._timeouts.steady)
        while True:
            backoff.worked()
            await wait_for_exit(pid)
            self._reap()
            if self._stopping:
                return
            log.warning("containerd, pid %d, exited; starting it again", pid)
            started = await self._restart(report, backoff)
            if started is None:
                return
            pid = started

    async def _restart(self, report: Report, backoff: Backoff) -> int | None:
        reported = False
        while True:
            await anyio.sleep(backoff.next())
            try:
                started = await self._ensure_again()
                if reported:
                    report("", False)
                return started
            except (errors.MoorageError, OSError) as error:
                log.warning("containerd does not start: %s", error)
                report(str(error), isinstance(error, DamagedDatabase))
                reported = True

    async def _ensure_again(self) -> int | None:
        """As ``ensure``; None if ``stop`` was called meanwhile."""
        async with file_lock(self._lock):
            return None if self._stopping else await self._ensure()

    def _reap(self) -> None:
        """Take the exit status of each child containerd that exited; else they stay zombies."""
        for pid in list(self._children):
            try:
                exited, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                exited = pid  # it was taken elsewhere
            if exited:
                self._children.discard(pid)

    def _has_exited(self, pid: int) -> bool:
        # the kernel reports nothing of a child for a moment around its exec, so only its exit status counts.
        if pid in self._children:
            self._reap()
            return pid not in self._children
        return self.find() != pid

    def _start_failure(self) -> errors.Unavailable:
        """The reason why a containerd exited at its start."""
        text = f"cannot start containerd: it exited at once\n{self._log_tail()}"
        return find_damage_in_log(self.root, self._log, self._log_start) or errors.Unavailable(text)

    def _log_tail(self, lines: int = 5) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"


@asynccontextmanager
async def supervise(
    root: Path,
    state: Path,
    timeouts: SupervisorTimeouts = DEFAULT,
    report: Report = lambda problem, is_lasting: None,
    *,
    scope: str = "",
) -> AsyncIterator[PrivateContainerd]:
    """A private containerd, serving, until the block ends; if it exits meanwhile it is started again with back-off.

    It continues to run after the block, for the containers; ``stop`` stops it. ``report`` as for
    ``PrivateContainerd.keep_running``, ``scope`` as for ``PrivateContainerd``.

    Raises:
        errors.Unsupported: a command is missing, or the event loop is not one of asyncio (trio)
        errors.Invalid: a directory cannot be used
        errors.Conflict: another program has the socket
        errors.Unavailable: the first start fails
    """
    containerd = PrivateContainerd(root, state, timeouts, scope=scope)
    pid = await containerd.ensure()
    async with background_tasks() as tasks:
        tasks.start_soon(keep_log_bounded, containerd.root / "containerd.log")
        tasks.start_soon(containerd.keep_running, pid, report)
        yield containerd


def _find_connect() -> "Callable[..., AbstractAsyncContextManager[Client]]":
    """gRPC is imported while containerd starts, and beside the loop, which has an API to serve."""
    with collector_paused():
        from moorage.containerd.client import connect

        return connect

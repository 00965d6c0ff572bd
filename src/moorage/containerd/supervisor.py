"""Our own containerd: started when needed, found again by the next process, started again when it dies.

It runs in a session of its own, so that it and the containers outlive us. Everything of it is below two directories:
``root`` (what lasts) and ``state`` (what does not: configuration, socket, pid file, lock). Whoever wants it takes the
lock, looks whether one runs, and starts one only if not: two at once wait for each other and share it.
"""

import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.atomic_file import write_atomically
from moorage._lib.backoff import pauses
from moorage._lib.filelock import hold_lock
from moorage._lib.groups import background_tasks
from moorage._lib.importing import importing
from moorage._lib.pidfd import wait_for_end
from moorage._lib.threads import run_blocking
from moorage._lib.unix_socket import accepts
from moorage.containerd._containerd_process import spawn_locked
from moorage.containerd._growing_logs import cut_log, keep_log_bounded
from moorage.containerd.database import DamagedDatabase, check_databases, check_parts, find_damage_in_log
from moorage.host.inheritance import keep_new_files_private, make_directory
from moorage.host.process_identity import find_listener, find_lock_holder, is_trusted, mount_namespace, send_signal
from moorage.timeouts import DEFAULT, Timeouts

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = ("ADDRESS_LIMIT", "PrivateContainerd", "check_machine", "find_binary", "supervise")

log = logging.getLogger(__name__)

Report = Callable[[str, bool], None]
"""Takes why containerd does not start, and whether that stays until an operator does something."""

ADDRESS_LIMIT = 98
"""Longest socket path in bytes: containerd adds ".ttrpc", and 107 is the kernel's limit."""

_SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
}
_ENDING = 0.5  # seconds from the end of a process's memory to that of its sockets, at most
_POLL = 0.005  # seconds between two looks at a containerd that is about to serve

# What a plugin engine has no use for, and what only costs start-up time; names that a version does not know are
# ignored. The old linux runtime stays in: without it containerd 1.6 serves no tasks at all.
_CONFIG = """\
version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.nri.v1.nri",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = {address}

[debug]
  level = "warn"

[timeouts]
  # A shim that is slow to answer when containerd starts again is killed with its container after this time.
  "io.containerd.timeout.shim.load" = "60s"
"""


def find_binary(name: str, search: str | None = None) -> str:
    """The absolute path of a command: in PATH or where system packages put it, or only in the paths of ``search``.

    Raises: Unsupported with the package to install.
    """
    found = shutil.which(name, path=search or _search_path())
    if found is None:
        package = _NEEDED.get(name, name)
        raise errors.Unsupported(
            f"cannot run containers: there is no {name} on this machine; install it (Debian: apt install {package})"
        )
    return found


def check_machine(search: str | None = None) -> None:
    """Raises: Unsupported naming the first command that is missing here and the package that brings it."""
    for name in _NEEDED:
        find_binary(name, search)


class PrivateContainerd:
    """One containerd below two directories. ``supervise`` keeps one running; this is its hand."""

    def __init__(self, root: Path, state: Path, timeouts: Timeouts = DEFAULT, *, search: str | None = None) -> None:
        """Nothing is touched yet. Commands are looked for as ``find_binary`` does.

        Raises: Invalid where the socket's path is too long.
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
        self._children: set[int] = set()
        self._log_begin = 0
        self._stopping = False
        if (length := len(os.fsencode(self.address))) > ADDRESS_LIMIT:
            raise errors.Invalid(
                f"cannot use {state} for containerd: the path of its socket, {self.address}, has {length} bytes; "
                f"at most {ADDRESS_LIMIT} are possible"
            )

    async def ensure(self) -> int:
        """Start containerd, or find the one that runs, and wait until it serves; its pid.

        Raises: Unsupported where a command is missing; Invalid for a directory that cannot be used; Conflict where
        another program has the socket; Unavailable where it does not come up, with the end of its log.
        """
        self._stopping = False
        for directory in (self.root, self.state):
            try:
                make_directory(directory, 0o700)
                directory.chmod(0o700)  # of an older version it may be open
            except OSError as error:
                raise errors.Invalid(f"cannot use {directory} for containerd: {error}") from error
        async with hold_lock(self._lock):
            return await self._ensure()

    async def _ensure(self) -> int:
        pid = await run_blocking(self.find)
        if pid is None:
            await run_blocking(lambda: check_databases(self.root))
            await self._refuse_to_take_a_socket()
            try:
                pid = await run_blocking(self._spawn)
            except OSError as error:
                raise errors.Unavailable(f"cannot start containerd: {error}") from error
        else:
            self._check_mount_namespace(pid)
        await self._wait_until_serving(pid)
        return pid

    def find(self) -> int | None:
        """The pid of the containerd that runs on these directories, or None. Only looks.

        Ours is the process that holds the lock on a file of ours, and for one of an earlier version, which took none,
        the one that listens on our socket. Raises: Conflict where it runs in another pid namespace.
        """
        pid = find_lock_holder(self._alive)
        if pid == 0:
            raise errors.Conflict(f"cannot use the containerd of {self.state}: it runs in another pid namespace")
        if pid is None and (listener := find_listener(Path(self.address))) is not None and self._is_of_before(listener):
            pid = listener
        return pid

    def _is_of_before(self, pid: int) -> bool:
        """Whether a process is a containerd that an earlier version started, which noted its pid only."""
        try:
            noted = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return False
        return noted == pid and is_trusted(pid, ("containerd",))

    def _check_mount_namespace(self, pid: int) -> None:
        theirs, ours = mount_namespace(pid), mount_namespace()
        if theirs and theirs != ours:
            raise errors.Conflict(
                f"cannot use the containerd of {self.state}: process {pid} runs in another mount namespace, where what "
                f"is mounted here is not seen; run this in it: nsenter --mount=/proc/{pid}/ns/mnt moorage ..."
            )

    async def stop(self) -> None:
        """End the containerd that runs on these directories, if one does. Running containers are left as they are.

        Raises: Unavailable for one that SIGKILL does not end.
        """
        self._stopping = True
        if not self.state.exists():
            return
        async with hold_lock(self._lock):
            pid = await run_blocking(self.find)
            if pid is not None:
                await self._end(pid)
            for path in (
                Path(self.address),
                Path(self.address + ".ttrpc"),
                self._pid_file,
                self._alive,
                self._config,
            ):
                path.unlink(missing_ok=True)

    async def _refuse_to_take_a_socket(self) -> None:
        # A second containerd would take the socket of one with other directories, which then lives on unreachable.
        # One of ours that is about to end has no command line any more but still its socket, for a moment.
        with anyio.move_on_after(_ENDING):
            while accepts(self.address):  # noqa: ASYNC110 - a process that is not our child: no event tells
                await anyio.sleep(_POLL)
            return
        raise errors.Conflict(f"cannot start containerd: another program listens on {self.address}")

    def _spawn(self) -> int:
        check_machine(self._search)
        self._reap()
        text = _CONFIG.format(root=_toml(self.root), state=_toml(self.state / "s"), address=_toml(self.address))
        write_atomically(self._config, text.encode())
        self._keep_private()
        cut_log(self._log)
        command = [find_binary("containerd", self._search), "--config", str(self._config)]
        environment = {**_clean_environment(), "PATH": self._search or _search_path()}
        with open(self._log, "ab") as output:
            self._log_begin = output.tell()
            child = spawn_locked(command, self._alive, output.fileno(), environment)
        child.returncode = 0  # it outlives us, which Popen would call a leak; _reap takes its true status
        self._children.add(child.pid)
        self._pid_file.write_text(f"{child.pid}\n")
        log.info("started containerd, pid %d, log %s", child.pid, self._log)
        return child.pid

    def _keep_private(self) -> None:
        """What containerd writes with a mode for all, and what may hold secrets: its database, the specs of tasks."""
        for directory in (self.state / "s", self.root / "io.containerd.metadata.v1.bolt"):
            try:
                make_directory(directory, 0o711)
            except OSError as error:  # containerd says what that means for it
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
                            if self._ended(pid):
                                raise self._why_ended() from None
                            await anyio.sleep(_POLL)
                        else:
                            await check_parts(client, self.root)
                            return
        except TimeoutError as error:
            raise errors.Unavailable(
                f"cannot start containerd: it does not serve {self.address} after "
                f"{self._timeouts.containerd_start:g} s\n{self._log_end()}"
            ) from error

    async def _end(self, pid: int) -> None:
        for number, within in (
            (signal.SIGTERM, self._timeouts.containerd_stop),
            (signal.SIGKILL, self._timeouts.killed),
        ):
            if not send_signal(pid, number, lambda pid: self.find() == pid):
                return
            with anyio.move_on_after(within):
                await wait_for_end(pid)
                self._reap()
                return
        raise errors.Unavailable(f"cannot stop containerd: process {pid} does not end")

    async def keep_running(self, pid: int, report: Report = lambda problem, is_lasting: None) -> None:
        """Start containerd again whenever the one with this pid, or a later one, ends; return after ``stop``.

        ``report`` is called with why it does not start, and with an empty text when it serves again.
        """
        while True:
            await wait_for_end(pid)
            self._reap()
            if self._stopping:
                return
            log.warning("containerd, pid %d, ended; starting it again", pid)
            started = await self._come_back(report)
            if started is None:
                return
            pid = started

    async def _come_back(self, report: Report) -> int | None:
        reported = False
        for pause in pauses(self._timeouts.reconnect_first, self._timeouts.reconnect_limit):
            try:
                started = await self._start_again()
            except (errors.MoorageError, OSError) as error:
                log.warning("containerd does not start: %s", error)
                report(str(error), isinstance(error, DamagedDatabase))
                reported = True
                await anyio.sleep(pause)
            else:
                if reported:
                    report("", False)
                return started
        raise AssertionError("pauses never end")

    async def _start_again(self) -> int | None:
        """As ``ensure``; None where somebody has called ``stop`` meanwhile, which is the last word."""
        async with hold_lock(self._lock):
            return None if self._stopping else await self._ensure()

    def _reap(self) -> None:
        """Take the exit status of each containerd that we started and that ended; else they stay zombies."""
        for pid in list(self._children):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid  # somebody else took it
            if ended:
                self._children.discard(pid)

    def _ended(self, pid: int) -> bool:
        # /proc says nothing of a child for a moment around its exec, so only its exit status counts.
        if pid in self._children:
            self._reap()
            return pid not in self._children
        return self.find() != pid

    def _why_ended(self) -> errors.Unavailable:
        """Why a containerd ended at its start."""
        text = f"cannot start containerd: it ended at once\n{self._log_end()}"
        return find_damage_in_log(self.root, self._log, self._log_begin) or errors.Unavailable(text)

    def _log_end(self, lines: int = 5) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"


@asynccontextmanager
async def supervise(
    root: Path, state: Path, timeouts: Timeouts = DEFAULT, report: Report = lambda problem, is_lasting: None
) -> AsyncIterator[PrivateContainerd]:
    """Our own containerd, serving, until the block ends; one that dies meanwhile is started again with back-off.

    The end of the block leaves it running, for the containers' sake; ``stop`` ends it. ``report`` as for
    ``PrivateContainerd.keep_running``.

    Raises: as ``PrivateContainerd.ensure``, for the first start.
    """
    containerd = PrivateContainerd(root, state, timeouts)
    pid = await containerd.ensure()
    async with background_tasks() as tasks:
        tasks.start_soon(keep_log_bounded, containerd.root / "containerd.log")
        tasks.start_soon(containerd.keep_running, pid, report)
        yield containerd


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}"


def _toml(value: Path | str) -> str:
    """A TOML basic string."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _clean_environment() -> dict[str, str]:
    # What a service manager passed to us (notify socket, listen fds) is not for a process that outlives us.
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_", "PYTHON", "VIRTUAL_ENV"))
    }


def _find_connect() -> "Callable[..., AbstractAsyncContextManager[Client]]":
    """gRPC is imported while containerd starts, and beside the loop, which has an API to serve."""
    with importing():
        from moorage.containerd.client import connect

        return connect

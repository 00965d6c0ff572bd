"""A process added to a running task, with its streams, such as a shell inside a container.

Source: containerd's task service (Exec, Start, ResizePty, CloseIO, Wait, DeleteProcess); measured against containerd
1.6: the shim waits to open a FIFO until the other end is open, and closes a standard input only after CloseIO.
"""

import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.stdio import FifoReader
from moorage.containerd.types import ProcessExit, Spec
from moorage.host.directory_tree import remove_tree
from moorage.host.proc import environment, process_stat, set_oom_score_adjustment
from moorage.host.processes import send_signal
from moorage.timeouts import DEFAULT, ClientTimeouts

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = ("AddedProcess", "ExecCommand", "add_process", "derive_process", "destroy_process", "remove_process")

log = logging.getLogger(__name__)

_ID_VARIABLE = "MOORAGE_EXEC_ID"
"""The variable by which an added process is found that the shim does not know, as systemd's INVOCATION_ID."""


class ExecCommand(Struct, frozen=True):
    """A command to run beside a plugin's own process."""

    arguments: Sequence[str]
    environment: Sequence[str] = ()
    """NAME=VALUE, over the plugin's own."""
    terminal: bool = False
    user: str = ""
    """NAME|UID[:GROUP|GID] of the plugin's files; empty for the plugin's own."""
    directory: str = ""
    """Working directory; empty for the plugin's own."""


def derive_process(
    spec: Spec,
    arguments: Sequence[str],
    *,
    environment: Sequence[str] = (),
    terminal: bool = False,
    directory: str = "",
    user: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An OCI process object with the user, directory, capabilities and environment of a container's first process.

    ``environment`` (NAME=VALUE) overrides variables of the spec, ``directory`` (not "") its working directory, and
    ``user`` (an OCI user object) its user.

    Raises:
        errors.Invalid: no arguments
    """
    if not arguments:
        raise errors.Invalid("cannot add a process: there is no command")
    first = spec.get("process")
    process = dict(first) if isinstance(first, Mapping) else {"cwd": "/"}
    variables = dict(each.partition("=")[::2] for each in (*process.get("env", ()), *environment))
    process["env"] = [f"{name}={value}" for name, value in variables.items()]
    process["args"] = list(arguments)
    process["terminal"] = terminal
    if directory:
        process["cwd"] = directory
    if user is not None:
        process["user"] = dict(user)
    return process


class AddedProcess:
    """One added process. The streams are read until ``b""``; a terminal has only ``stdout``.

    ``client`` calls containerd; ``container`` is the id of the task, ``exec_id`` of the process; ``directory`` is
    created for the FIFOs; ``terminal``: whether the process has a terminal; ``timeouts`` bound the waits.
    """

    def __init__(
        self,
        client: "Client",
        container: str,
        exec_id: str,
        directory: Path,
        *,
        terminal: bool,
        timeouts: ClientTimeouts = DEFAULT,
    ) -> None:
        self.exec_id = exec_id
        self._timeouts = timeouts
        self.pid = 0
        self._client = client
        self._container = container
        self._directory = directory
        self._terminal = terminal
        self._input: int | None = None
        self.stdout: FifoReader
        self.stderr: FifoReader | None = None

    def open(self) -> None:
        """Make the FIFOs and open this side of them (blocking)."""
        names = ("stdin", "stdout") if self._terminal else ("stdin", "stdout", "stderr")
        self._directory.mkdir(mode=0o700)
        for name in names:
            os.mkfifo(self._directory / name, 0o600)
        self.stdout = FifoReader(self._directory / "stdout")
        if not self._terminal:
            self.stderr = FifoReader(self._directory / "stderr")
        # also for reading, so that it opens before there is a reader
        self._input = os.open(self._directory / "stdin", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        """Close this side of the FIFOs. May be repeated."""
        for reader in (getattr(self, "stdout", None), self.stderr):
            if reader is not None:
                reader.close()
        if self._input is not None:
            descriptor, self._input = self._input, None
            os.close(descriptor)

    async def write(self, data: bytes) -> None:
        """Give the process all of this as input; waits while it does not read. Ignored after ``close_input``."""
        while data and self._input is not None:
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                await anyio.wait_writable(self._input)

    async def close_input(self) -> None:
        """Close its input: it reads EOF."""
        await self._ignoring_exit_of(self._client.close_input(self._container, self.exec_id))
        if self._input is not None:
            descriptor, self._input = self._input, None
            os.close(descriptor)

    async def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal, if it still runs."""
        await self._ignoring_exit_of(
            self._client.resize_terminal(self._container, self.exec_id, rows=rows, columns=columns)
        )

    async def _ignoring_exit_of(self, call: Awaitable[None]) -> None:
        # containerd has several texts for a process that has exited, and its exit code is still to be reported
        try:
            await call
        except errors.Unavailable:
            raise
        except errors.MoorageError as error:
            log.debug("process %s has exited: %s", self.exec_id, error)

    async def wait(self) -> ProcessExit:
        """Its exit.

        Raises:
            errors.NotFound: its task was removed too
            errors.Unavailable: containerd does not answer
        """
        return await self._client.wait(self._container, self.exec_id, within=self._timeouts.added_process)


@asynccontextmanager
async def add_process(
    client: "Client",
    container: str,
    exec_id: str,
    process: Mapping[str, object],
    directory: Path,
    *,
    timeouts: ClientTimeouts = DEFAULT,
) -> AsyncIterator[AddedProcess]:
    """Add a process to a task and start it; at the end of the block it is killed if it runs, and removed.

    ``directory`` is created for its FIFOs. It exists after the block only if containerd did not remove the process:
    then it is the record of a process that may run, and ``destroy_process`` is to be called later.

    Raises:
        errors.NotFound: the container has no running task
        errors.Invalid: the runtime cannot run the command; its text
        errors.Unavailable: containerd does not answer
    """
    terminal = bool(process.get("terminal"))
    added = AddedProcess(client, container, exec_id, directory, terminal=terminal, timeouts=timeouts)
    may_exist = False
    try:
        await run_blocking(added.open)
        may_exist = True
        await client.exec_process(
            container,
            exec_id,
            {**process, "env": [*_environment(process), f"{_ID_VARIABLE}={exec_id}"]},
            stdin=str(directory / "stdin"),
            stdout=str(directory / "stdout"),
            stderr="" if terminal else str(directory / "stderr"),
            terminal=terminal,
        )
        try:
            added.pid = await client.start_process(container, exec_id)
            await run_blocking(lambda: _set_oom_score(added.pid, process))
        except (errors.Unavailable, errors.NotFound):
            raise
        except errors.MoorageError as error:
            raise errors.Invalid(str(error)) from error
        yield added
    finally:
        with anyio.CancelScope(shield=True):
            if not may_exist:
                await remove_tree(directory)
            else:
                await _destroy_or_log(added, client, container, directory, timeouts)
            added.close()


def _environment(process: Mapping[str, object]) -> Sequence[str]:
    variables = process.get("env")
    return variables if isinstance(variables, list) else ()


def _set_oom_score(pid: int, process: Mapping[str, object]) -> None:
    """crun before 1.9 ignores a score of 0, and the process would have that of containerd. Best effort."""
    score = process.get("oomScoreAdj")
    if isinstance(score, int):
        set_oom_score_adjustment(pid, score)


async def _destroy_or_log(
    added: AddedProcess, client: "Client", container: str, directory: Path, timeouts: ClientTimeouts
) -> None:
    within = timeouts.added_process_removal
    try:
        with anyio.fail_after(within):
            # once started, the shim knows it, and there is nothing to look for
            is_known = added.pid != 0
            await destroy_process(client, container, added.exec_id, directory, is_known=is_known, timeouts=timeouts)
    except errors.Unavailable as error:
        log.warning("%s", error)
    except TimeoutError:
        log.warning("cannot remove process %s of container %s within %g s", added.exec_id, container, within)


async def destroy_process(
    client: "Client",
    container: str,
    exec_id: str,
    directory: Path,
    *,
    is_known: bool = False,
    timeouts: ClientTimeouts = DEFAULT,
) -> None:
    """Kill an added process if it runs, and remove it with the directory of its FIFOs. May be repeated.

    It is killed, too, if the shim does not know that it runs: where containerd is killed while the process starts, the
    shim takes its start for failed and kills the runtime, which may have started it. ``is_known``: its start succeeded,
    so that need not be looked for.

    Raises:
        errors.Unavailable: it may still run; the directory stays, as its record
    """
    await remove_process(client, container, exec_id, timeouts=timeouts)
    if not is_known:
        await _kill_unknown(client, container, exec_id)
    await remove_tree(directory)


async def _kill_unknown(client: "Client", container: str, exec_id: str) -> None:
    """Kill the process of a task that was started with this id, but not those that it has left behind."""
    try:
        pids = set(await client.pids(container))
    except errors.NotFound:
        return
    except errors.MoorageError as error:
        raise errors.Unavailable(f"cannot list the processes of container {container}: {error}") from error
    variable = f"{_ID_VARIABLE}={exec_id}"

    def kill() -> None:
        for pid in pids:
            stat = process_stat(pid)
            if stat is None or stat.parent in pids:
                continue
            if send_signal(pid, signal.SIGKILL, lambda pid: variable in environment(pid)):
                log.info("killed process %d of container %s, whose start was interrupted", pid, container)

    if pids:
        await run_blocking(kill)


async def remove_process(client: "Client", container: str, exec_id: str, *, timeouts: ClientTimeouts = DEFAULT) -> None:
    """Kill an added process if it runs, and remove it from containerd; one that does not exist is ignored.

    Raises:
        errors.Unavailable: containerd cannot be reached, or the process does not exit; call this again
    """
    try:
        with _ignoring_exited(container, exec_id):
            await client.kill(container, signal.SIGKILL, exec_id=exec_id)
        try:
            with _ignoring_exited(container, exec_id):
                await client.wait(container, exec_id, within=timeouts.added_process_exit)
        except errors.Unavailable as error:  # also for one that was never started: the next call decides
            log.debug("waiting for process %s of %s: %s", exec_id, container, error)
        await client.delete_process(container, exec_id)
    except errors.NotFound:
        return
    except errors.MoorageError as error:
        raise errors.Unavailable(f"cannot remove process {exec_id} of container {container}: {error}") from error


@contextmanager
def _ignoring_exited(container: str, exec_id: str) -> Iterator[None]:
    # containerd has several texts for a process that has exited; only its deletion proves that nothing remains
    try:
        yield
    except errors.Unavailable:
        raise
    except errors.MoorageError as error:
        log.debug("process %s of %s has exited: %s", exec_id, container, error)

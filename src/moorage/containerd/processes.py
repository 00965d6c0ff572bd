"""A process added to a running task, with its streams: what a shell inside a container is.

Source: containerd's task service (Exec, Start, ResizePty, CloseIO, Wait, DeleteProcess); measured against containerd
1.6: the shim waits to open a FIFO until the other end is open, and gives a standard input its end only after CloseIO.
"""

import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.stdio import FifoReader
from moorage.containerd.types import ProcessExit, Spec
from moorage.host.beneath import remove_tree

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = ("AddedProcess", "add_process", "process_like_the_first", "remove_process")

log = logging.getLogger(__name__)

_LONGEST = 7 * 24 * 3600.0
"""Seconds that an added process may live, so that nothing waits for ever."""


def process_like_the_first(
    spec: Spec, arguments: Sequence[str], *, environment: Sequence[str] = (), terminal: bool = False
) -> dict[str, Any]:
    """An OCI process object with the user, directory, capabilities and environment of a container's first process.

    ``environment`` (NAME=VALUE) goes over what is there. Raises: Invalid for no arguments.
    """
    if not arguments:
        raise errors.Invalid("cannot add a process: there is no command")
    first = spec.get("process")
    process = dict(first) if isinstance(first, Mapping) else {"cwd": "/"}
    known = dict(each.partition("=")[::2] for each in (*process.get("env", ()), *environment))
    process["env"] = [f"{name}={value}" for name, value in known.items()]
    process["args"] = list(arguments)
    process["terminal"] = terminal
    return process


class AddedProcess:
    """One added process. The streams are read until ``b""``; a terminal has only ``stdout``."""

    def __init__(self, client: "Client", container: str, exec_id: str, directory: Path, *, terminal: bool) -> None:
        self.exec_id = exec_id
        self.pid = 0
        self._client = client
        self._container = container
        self._directory = directory
        self._terminal = terminal
        self._input: int | None = None
        self.stdout: FifoReader
        self.stderr: FifoReader | None = None

    def open(self) -> None:
        """Make the FIFOs and open our ends (blocking)."""
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
        """Close our ends. May be repeated."""
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
        """The end of its input."""
        await self._if_it_lives(self._client.close_input(self._container, self.exec_id))
        if self._input is not None:
            descriptor, self._input = self._input, None
            os.close(descriptor)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the size of its terminal, if it still has one."""
        await self._if_it_lives(self._client.resize_terminal(self._container, self.exec_id, rows=rows, columns=columns))

    async def _if_it_lives(self, call: Awaitable[None]) -> None:
        # containerd has several words for a process that has ended, and its exit code is still to be told
        try:
            await call
        except errors.Unavailable:
            raise
        except errors.MoorageError as error:
            log.debug("process %s has ended: %s", self.exec_id, error)

    async def wait(self) -> ProcessExit:
        """How it ended. Raises: NotFound where its task went with it."""
        return await self._client.wait(self._container, self.exec_id, within=_LONGEST)


@asynccontextmanager
async def add_process(
    client: "Client", container: str, exec_id: str, process: Mapping[str, object], directory: Path
) -> AsyncIterator[AddedProcess]:
    """Add a process to a task and start it; the end of the block kills it where it lives, and removes all of it.

    ``directory`` is made for its FIFOs. Raises: NotFound where nothing runs; Invalid with the runtime's words for what
    cannot be run.
    """
    terminal = bool(process.get("terminal"))
    added = AddedProcess(client, container, exec_id, directory, terminal=terminal)
    try:
        await run_blocking(added.open)
        try:
            await client.exec_process(
                container,
                exec_id,
                process,
                stdin=str(directory / "stdin"),
                stdout=str(directory / "stdout"),
                stderr="" if terminal else str(directory / "stderr"),
                terminal=terminal,
            )
            try:
                added.pid = await client.start_process(container, exec_id)
            except (errors.Unavailable, errors.NotFound):
                raise
            except errors.MoorageError as error:
                raise errors.Invalid(str(error)) from error
            yield added
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await remove_process(client, container, exec_id)
    finally:
        added.close()
        with anyio.CancelScope(shield=True):
            await remove_tree(directory)


async def remove_process(client: "Client", container: str, exec_id: str) -> None:
    """Kill an added process where it lives, and let containerd forget it; one that is gone already is fine."""
    for step in (
        lambda: client.kill(container, signal.SIGKILL, exec_id=exec_id),
        lambda: client.wait(container, exec_id, within=5),
        lambda: client.delete_process(container, exec_id),
    ):
        try:
            await step()
        except errors.MoorageError as error:  # it has ended, was never there, or went with its task
            log.debug("removing process %s of %s: %s", exec_id, container, error)

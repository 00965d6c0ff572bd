"""The process of the log keeper: found or started, and replaced if it hangs or has another version."""

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host.files import last_line
from moorage.host.processes import has_file_open, send_signal, wait_for_exit
from moorage.logs.keeper_protocol import GREETING, MAGIC, PACKET_BYTES, QUIT
from moorage.systemd.scopes import make_scope, start_daemon
from moorage.timeouts import Timeouts

__all__ = ("connect", "kill_keeper", "receive", "stop_keeper")

log = logging.getLogger(__name__)

_MODULE = "moorage.logs.keeper"
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024), "MALLOC_TRIM_THRESHOLD_": str(2 * 1024 * 1024)}
"""The buffers of one read are smaller than these. By default, glibc returns them to the kernel each time, and page
faults are then a fifth of the keeper's CPU time. Source: mallopt(3)."""

_ATTEMPTS = 3
_POLL = 0.01  # seconds between two attempts while another process starts a keeper


async def connect(state: Path, timeouts: Timeouts) -> socket.socket:
    """A connection to the keeper of this directory, which has sent its greeting; started if there is none.

    A keeper of another version is stopped, one that does not greet is killed, and another one is started; meanwhile the
    output stays in the FIFOs.

    Raises: Unavailable if none starts, with its last line of output.
    Raises: Conflict if another program listens on the socket.
    """
    try:
        await run_blocking(lambda: state.mkdir(mode=0o700, parents=True, exist_ok=True))
        for _ in range(_ATTEMPTS):
            client = await _connect_or_start(state, timeouts)
            if await _has_own_version(client, timeouts):
                return client
            await _stop(client, timeouts)
    except OSError as error:
        raise errors.Unavailable(f"cannot start the log keeper in {state}: {error.strerror}") from error
    raise errors.Unavailable(f"cannot start the log keeper: another keeper repeatedly starts in {state}")


async def stop_keeper(state: Path, timeouts: Timeouts) -> None:
    """Stop the keeper of this directory, if any, and wait for it. Raises: Unavailable if it does not exit."""
    client = _try_connect(state)
    if client is not None:
        await _stop(client, timeouts)


async def receive(client: socket.socket) -> bytes:
    """The next packet; ``b""`` if the connection is closed."""
    while True:
        try:
            return client.recv(PACKET_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(client)
        except OSError:
            return b""


def kill_keeper(client: socket.socket) -> None:
    """Kill the keeper of this connection, which does not answer."""
    pid, lock = _pid(client), Path(client.getpeername()).with_name("pid")
    log.warning("the log keeper, pid %d, does not answer; killing it", pid)
    send_signal(pid, signal.SIGKILL, lambda pid: has_file_open(pid, lock))


def _try_connect(state: Path) -> socket.socket | None:
    """A connection, None if nothing listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if client.connect_ex(str(state / "k.sock")) == 0:
        return client
    client.close()
    return None


async def _connect_or_start(state: Path, timeouts: Timeouts) -> socket.socket:
    with anyio.move_on_after(timeouts.keeper):
        while (client := _try_connect(state)) is None:
            await run_blocking(lambda: _start(state))
            if (client := _try_connect(state)) is not None:
                break
            await anyio.sleep(_POLL)  # another process has the lock and does not listen yet
        return client
    raise errors.Unavailable(f"cannot start the log keeper: it does not serve {state} after {timeouts.keeper:g} s")


def _start(state: Path) -> None:
    """Return when a keeper serves, or another process starts one. Raises: Unavailable."""
    # Without site, to save memory; so the one path that it needs is passed explicitly.
    command = [sys.executable, "-S", "-s", "-P", "-m", _MODULE, str(state)]
    source = str(Path(__file__).resolve().parents[2])
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TZ")}
    output = state / "log"

    def run(command: Sequence[str], within: float | None) -> int:
        with open(output, "wb") as file:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd="/",
                env={**inherited, **_MEMORY, "PYTHONPATH": source},
                check=False,
                timeout=within,
            ).returncode

    status = start_daemon(command, make_scope("keeper", f"Moorage, log keeper of {state.parent}"), run, output)
    if status:
        raise errors.Unavailable(f"cannot start the log keeper: {last_line(output) or f'status {status}'}")


async def _has_own_version(client: socket.socket, timeouts: Timeouts) -> bool:
    """Whether the peer is a keeper of the same version. Raises: Conflict if it is not a keeper."""
    try:
        greeting = b""
        with anyio.move_on_after(timeouts.keeper) as scope:
            greeting = await receive(client)
        if scope.cancelled_caught:
            kill_keeper(client)  # only a keeper listens in the engine's directory
        if greeting and not greeting.startswith(MAGIC):
            raise errors.Conflict(f"cannot start the log keeper: another program listens on {client.getpeername()}")
    except BaseException:
        client.close()
        raise
    if greeting and greeting != GREETING:
        log.info("the log keeper, pid %d, has another version; replacing it", _pid(client))
    return greeting == GREETING


async def _stop(client: socket.socket, timeouts: Timeouts) -> None:
    """Stop a keeper; kill it if it does not exit. Raises: Unavailable if it survives."""
    with client:
        pid = _pid(client)
        try:
            client.send(QUIT)
        except OSError:
            pass  # it has exited, or does not read and is killed
        with anyio.move_on_after(timeouts.keeper):
            await wait_for_exit(pid)
            return
        kill_keeper(client)
        with anyio.move_on_after(timeouts.killed):
            await wait_for_exit(pid)
            return
    raise errors.Unavailable(f"cannot stop the log keeper: process {pid} does not exit")


def _pid(client: socket.socket) -> int:
    """The process that listens. Source: unix(7), SO_PEERCRED."""
    return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])

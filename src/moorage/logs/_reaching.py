"""Reaching the log keeper of a directory: started where there is none, ended where it is of another version or mute."""

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.pidfd import wait_for_end
from moorage._lib.threads import run_blocking
from moorage.host.process_identity import has_open, send_signal
from moorage.logs.wire import GREETING, MAGIC, PACKET_BYTES, QUIT
from moorage.timeouts import Timeouts

__all__ = ("connect", "end_keeper", "kill_keeper", "receive")

log = logging.getLogger(__name__)

_MODULE = "moorage.logs.keeper"
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1024 * 1024), "MALLOC_TRIM_THRESHOLD_": str(2 * 1024 * 1024)}
"""What one read is made into fits below these. By itself glibc gives it back to the kernel each time, and page faults
are then a fifth of the keeper's work. Source: mallopt(3)."""

_ATTEMPTS = 3
_POLL = 0.01  # seconds between two looks for a keeper that somebody else is starting just now


async def connect(state: Path, timeouts: Timeouts) -> socket.socket:
    """A connection to the keeper that works in this directory, which greeted us; started where there is none.

    One of another version is told to end, one that does not greet is killed, and another one is started: their FIFOs
    keep what comes meanwhile.

    Raises: Unavailable where none comes up, in the words that it left; Conflict where another program has the socket.
    """
    try:
        await run_blocking(lambda: state.mkdir(mode=0o700, parents=True, exist_ok=True))
        for _ in range(_ATTEMPTS):
            client = await _reach_or_start(state, timeouts)
            if await _greets_as_ours(client, timeouts):
                return client
            await _end(client, timeouts)
    except OSError as error:
        raise errors.Unavailable(f"cannot start the log keeper in {state}: {error.strerror}") from error
    raise errors.Unavailable(f"cannot start the log keeper: another one comes up in {state} again and again")


async def end_keeper(state: Path, timeouts: Timeouts) -> None:
    """End the keeper of this directory, if there is one, and wait for it. Raises: Unavailable where it does not end."""
    client = _reach(state)
    if client is not None:
        await _end(client, timeouts)


async def receive(client: socket.socket) -> bytes:
    """The next packet; ``b""`` where the connection has ended."""
    while True:
        try:
            return client.recv(PACKET_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(client)
        except OSError:
            return b""


def kill_keeper(client: socket.socket) -> None:
    """Kill the keeper behind this connection, which does not answer."""
    pid, lock = _pid(client), Path(client.getpeername()).with_name("pid")
    log.warning("the log keeper, pid %d, does not answer; killing it", pid)
    send_signal(pid, signal.SIGKILL, lambda pid: has_open(pid, lock))


def _reach(state: Path) -> socket.socket | None:
    """A connection, None where nobody listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if client.connect_ex(str(state / "k.sock")) == 0:
        return client
    client.close()
    return None


async def _reach_or_start(state: Path, timeouts: Timeouts) -> socket.socket:
    with anyio.move_on_after(timeouts.keeper):
        while (client := _reach(state)) is None:
            await run_blocking(lambda: _start(state))
            if (client := _reach(state)) is not None:
                break
            await anyio.sleep(_POLL)  # another one has the lock, and does not listen yet
        return client
    raise errors.Unavailable(f"cannot start the log keeper: it does not serve {state} after {timeouts.keeper:g} s")


def _start(state: Path) -> None:
    """Return when a keeper serves, or another one is about to. Raises: Unavailable."""
    # Without site, which only costs memory; so the one path that it needs is given by hand.
    command = [sys.executable, "-S", "-s", "-P", "-m", _MODULE, str(state)]
    source = str(Path(__file__).resolve().parents[2])
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TZ")}
    output = state / "log"
    with open(output, "wb") as said:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            env={**kept, **_MEMORY, "PYTHONPATH": source},
            check=False,
        )
    if done.returncode:
        last = output.read_text(errors="replace").splitlines()[-1:]
        raise errors.Unavailable(f"cannot start the log keeper: {''.join(last) or f'status {done.returncode}'}")


async def _greets_as_ours(client: socket.socket, timeouts: Timeouts) -> bool:
    """Whether a keeper of our version is there. Raises: Conflict where no keeper is."""
    try:
        greeting = b""
        with anyio.move_on_after(timeouts.keeper) as patience:
            greeting = await receive(client)
        if patience.cancelled_caught:
            kill_keeper(client)  # nobody else listens in a directory of ours
        if greeting and not greeting.startswith(MAGIC):
            raise errors.Conflict(f"cannot start the log keeper: another program listens on {client.getpeername()}")
    except BaseException:
        client.close()
        raise
    if greeting and greeting != GREETING:
        log.info("the log keeper, pid %d, is of another version; replacing it", _pid(client))
    return greeting == GREETING


async def _end(client: socket.socket, timeouts: Timeouts) -> None:
    """Tell a keeper to end, and kill it where it does not. Raises: Unavailable."""
    with client:
        pid = _pid(client)
        try:
            client.send(QUIT)
        except OSError:
            pass  # it has ended, or takes nothing: then it is killed
        with anyio.move_on_after(timeouts.keeper):
            await wait_for_end(pid)
            return
        kill_keeper(client)
        with anyio.move_on_after(timeouts.killed):
            await wait_for_end(pid)
            return
    raise errors.Unavailable(f"cannot end the log keeper: process {pid} does not end")


def _pid(client: socket.socket) -> int:
    """The process that listens. Source: unix(7), SO_PEERCRED."""
    return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])

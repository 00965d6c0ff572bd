"""A process of the engine that outlives it: found or started, and replaced if it hangs or has another version.

It serves a state directory that only root can enter: its socket, the lock ``pid``, its output ``log``. It first sends a
greeting with its version, and exits when it is requested to; both are the same in every version. On a stream socket
each message has four bytes of its length, big-endian, before it; on one of packets a message is a packet.
"""

import importlib.util
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host.files import last_line
from moorage.host.processes import has_file_open, send_signal, wait_for_exit
from moorage.systemd.scopes import make_scope, start_daemon

__all__ = ("BackgroundProcess", "BackgroundProgram", "receive_packet")

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_POLL = 0.01  # seconds between two attempts while another process starts one
_PACKET_BYTES = 16 * 1024
_LENGTH = 4  # bytes
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")


class BackgroundProgram(Struct, frozen=True):
    """A program that goes into the background by itself when it serves, and has the lock until it exits."""

    title: str
    """As in "cannot start the log keeper"."""
    module: str
    """Run with the state directory as its argument."""
    socket: str
    """Name of its socket in the state directory."""
    scope: str
    """In the name of its systemd scope: "keeper"."""
    magic: bytes
    """What the greeting of every version begins with."""
    greeting: bytes
    """Of this version."""
    quit: bytes
    """The message that requests its exit."""
    is_stream: bool = False
    """Whether it listens on a stream socket, with lengths before the messages."""
    packages: tuple[str, ...] = ()
    """Packages beside this one that it imports: it runs without site, to save memory."""
    environment: dict[str, str] = field(default_factory=dict)


class BackgroundProcess:
    """The process of a program that serves one state directory."""

    def __init__(
        self,
        program: BackgroundProgram,
        state: Path,
        within: float,
        killed: float,
        succeed: Callable[[socket.socket], Awaitable[None]] | None = None,
    ) -> None:
        """``within`` seconds it must start, greet or exit; ``killed`` seconds it may take to exit after SIGKILL.

        ``succeed`` takes over from a process of another version what its successor needs, before that is killed;
        without it, such a process is requested to exit.
        """
        self._program = program
        self._state = state
        self._within = within
        self._killed = killed
        self._succeed = succeed

    async def connect(self) -> socket.socket:
        """A connection to the process, which has sent its greeting; started if there is none.

        One of another version is replaced, one that does not greet is killed, and another one is started.

        Raises: Unavailable if none starts, with its last line of output.
        Raises: Conflict if another program listens on the socket.
        """
        title, state = self._program.title, self._state
        try:
            await run_blocking(lambda: state.mkdir(mode=0o700, parents=True, exist_ok=True))
            for _ in range(_ATTEMPTS):
                client = await self._connect_or_start()
                greeting = await self._receive_greeting(client)
                if greeting == self._program.greeting:
                    return client
                await self._replace(client, has_greeted=greeting != b"")
        except OSError as error:
            raise errors.Unavailable(f"cannot start the {title} in {state}: {error.strerror}") from error
        raise errors.Unavailable(f"cannot start the {title}: another one repeatedly starts in {state}")

    async def stop(self) -> None:
        """Stop the process, if any, and wait for it. Raises: Unavailable if it does not exit."""
        client = self._try_connect()
        if client is not None:
            await self._stop(client)

    def kill(self, client: socket.socket) -> None:
        """Kill the process of this connection, which does not answer."""
        log.warning("the %s, pid %d, does not answer; killing it", self._program.title, _peer_pid(client))
        self._send_kill(client)

    def _send_kill(self, client: socket.socket) -> None:
        lock = self._state / "pid"
        send_signal(_peer_pid(client), signal.SIGKILL, lambda pid: has_file_open(pid, lock))

    def _try_connect(self) -> socket.socket | None:
        """A connection, None if nothing listens."""
        kind = socket.SOCK_STREAM if self._program.is_stream else socket.SOCK_SEQPACKET
        client = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if client.connect_ex(str(self._state / self._program.socket)) == 0:
            return client
        client.close()
        return None

    async def _connect_or_start(self) -> socket.socket:
        with anyio.move_on_after(self._within):
            while (client := self._try_connect()) is None:
                await run_blocking(self._start)
                if (client := self._try_connect()) is not None:
                    break
                await anyio.sleep(_POLL)  # another process has the lock and does not listen yet
            return client
        raise errors.Unavailable(
            f"cannot start the {self._program.title}: it does not serve {self._state} after {self._within:g} s"
        )

    def _start(self) -> None:
        """Return when it serves, or another process starts one. Raises: Unavailable."""
        program, output = self._program, self._state / "log"
        # Without site, to save memory; so the paths that it needs are passed explicitly.
        command = [sys.executable, "-S", "-s", "-P", "-m", program.module, str(self._state)]
        paths = os.pathsep.join(dict.fromkeys([_source(), *map(_directory_of, program.packages)]))
        inherited = {name: value for name, value in os.environ.items() if name in _INHERITED}

        def run(command: Sequence[str], within: float | None) -> int:
            with open(output, "wb") as file:
                return subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    cwd="/",
                    env={**inherited, **program.environment, "PYTHONPATH": paths},
                    check=False,
                    timeout=within,
                ).returncode

        scope = make_scope(program.scope, f"Moorage, {program.title} of {self._state.parent}")
        if status := start_daemon(command, scope, run, output):
            raise errors.Unavailable(f"cannot start the {program.title}: {last_line(output) or f'status {status}'}")

    async def _receive_greeting(self, client: socket.socket) -> bytes:
        """The greeting of a process of any version; empty if it has exited. Raises: Conflict for another program."""
        program = self._program
        try:
            greeting = b""
            with anyio.move_on_after(self._within) as scope:
                greeting = await (_receive_frame(client) if program.is_stream else receive_packet(client))
            if scope.cancelled_caught:
                self.kill(client)  # nothing else listens in the engine's directory
            if greeting and not greeting.startswith(program.magic):
                raise errors.Conflict(
                    f"cannot start the {program.title}: another program listens on {client.getpeername()}"
                )
        except BaseException:
            client.close()
            raise
        return greeting

    async def _replace(self, client: socket.socket, *, has_greeted: bool) -> None:
        """End a process of another version, or one that has exited. Raises: Unavailable if it survives."""
        if has_greeted:
            log.info("the %s, pid %d, has another version; replacing it", self._program.title, _peer_pid(client))
        if not has_greeted or self._succeed is None:
            await self._stop(client)
            return
        with client:
            with anyio.move_on_after(self._within):
                await self._succeed(client)
            self._send_kill(client)
            await self._await_killed(_peer_pid(client))

    async def _stop(self, client: socket.socket) -> None:
        """Stop it; kill it if it does not exit. Raises: Unavailable if it survives."""
        quit = self._program.quit
        if self._program.is_stream:
            quit = len(quit).to_bytes(_LENGTH, "big") + quit
        with client:
            pid = _peer_pid(client)
            try:
                client.send(quit)
            except OSError:
                pass  # it has exited, or does not read and is killed
            with anyio.move_on_after(self._within):
                await wait_for_exit(pid)
                return
            self.kill(client)
            await self._await_killed(pid)

    async def _await_killed(self, pid: int) -> None:
        with anyio.move_on_after(self._killed):
            await wait_for_exit(pid)
            return
        raise errors.Unavailable(f"cannot stop the {self._program.title}: process {pid} does not exit")


async def receive_packet(client: socket.socket) -> bytes:
    """The next packet; ``b""`` if the connection is closed."""
    return await _receive(client, _PACKET_BYTES)


async def _receive_frame(client: socket.socket) -> bytes:
    """The next message of a stream, and nothing of what follows; ``b""`` if the connection is closed."""
    length = int.from_bytes(await _receive_exactly(client, _LENGTH), "big")
    return await _receive_exactly(client, min(length, _PACKET_BYTES))


async def _receive_exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := await _receive(client, size - len(data))):
        data += more
    return data if len(data) == size else b""


async def _receive(client: socket.socket, most: int) -> bytes:
    while True:
        try:
            return client.recv(most)
        except BlockingIOError:
            await anyio.wait_readable(client)
        except OSError:
            return b""


def _peer_pid(client: socket.socket) -> int:
    """The process that listens. Source: unix(7), SO_PEERCRED."""
    return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _source() -> str:
    return str(Path(__file__).resolve().parents[1])


def _directory_of(package: str) -> str:
    """The directory that a package is imported from. Raises: Unavailable where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise errors.Unavailable(f"the Python package {package} is not installed")
    return str(Path(found.origin).resolve().parents[1])

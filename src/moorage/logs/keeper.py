"""The log keeper: one small process an engine, which drains the output of all plugins and outlives the engine.

    python -m moorage.logs.keeper STATE

It works in the directory STATE: ``k.sock``, where engines ask (``wire`` has the messages), and ``pid``, which is locked
for as long as a keeper lives. The command returns when the keeper serves, in the background, or when another one does.

One thread around a selector, no event loop and no library: what it imports is its size. It never waits for an engine:
one that does not take what it is told is cut off, and asks again when it is back.
"""

import fcntl
import os
import resource
import selectors
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable

from moorage.logs.wire import GREETING, PACKET_BYTES, Request, pack, parse_request
from moorage.logs.writer import STREAMS, LineStream, LogWriter

__all__ = ("Keeper", "main")

_FIFO_BYTES = 1024 * 1024
"""As much as we let a FIFO hold: room for its writer while we pause or are not there."""

_READ_BYTES = 256 * 1024
_SHORTEST, _LONGEST = 0.0001, 0.002  # seconds
_LOOK_AROUND = 30.0  # seconds between two looks whether anybody can reach us at all


class _Pace:
    """How long to pause after a round, so that many small writes are one read and wake nobody.

    The pause grows while it brings little, and shrinks before a FIFO gets full within it.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def after(self, brought: int) -> float:
        """Seconds, given the bytes that the last round has brought."""
        if brought >= _READ_BYTES:
            self._seconds = self._seconds / 4 if self._seconds > _SHORTEST else 0.0
        elif brought < _READ_BYTES // 2:
            self._seconds = min(max(2 * self._seconds, _SHORTEST), _LONGEST)
        return self._seconds


class _Output:
    """Both streams of one run, known by its key."""

    def __init__(self, key: str, writer: LogWriter) -> None:
        self.key = key
        self.writer = writer
        self.streams: dict[int, LineStream] = {}
        """By descriptor; those that have not ended."""


class Keeper:
    """All that one keeper drains, and whom it tells."""

    def __init__(self, listener: socket.socket) -> None:
        """Takes over the listening socket."""
        self._listener = listener
        self._path = listener.getsockname()
        self._inode = os.stat(self._path).st_ino
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._clients: set[socket.socket] = set()
        self._outputs: dict[str, _Output] = {}
        self._writers: dict[str, LogWriter] = {}
        self._is_ending = False
        self._brought = 0
        # A signal's handler runs between two steps of ours; this wakes the one that waits.
        self._waking, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(1))

    def run(self) -> None:
        """Drain until told to quit; what was read is written then."""
        pace = _Pace()
        while not self._is_ending:
            ready = self._selector.select(_LOOK_AROUND)
            self._brought = 0
            for each, _ in ready:
                each.data()
            if self._brought and (seconds := pace.after(self._brought)):
                time.sleep(seconds)
            if not ready and not self._outputs and not self._can_be_reached():
                return

    def close(self) -> None:
        """Write what is no whole line yet, and let everything go. The FIFOs keep what comes now."""
        for output in list(self._outputs.values()):
            for descriptor, stream in list(output.streams.items()):
                stream.flush()
                self._drop(output, descriptor)
        for client in list(self._clients):
            self._hang_up(client)
        for each in (self._selector, self._listener, self._waking, self._woken):
            each.close()

    def quit(self) -> None:
        """Let ``run`` return, also from a signal's handler."""
        self._is_ending = True
        self._waking.send(b"q")

    def _can_be_reached(self) -> bool:
        """Whether our socket is still where it was: without, and with nothing to drain, nobody needs us."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    # output

    def _read(self, output: _Output, descriptor: int) -> None:
        stream = output.streams.get(descriptor)
        if stream is None:
            return  # ended by what came before it in this round
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        self._brought += len(data)
        if data:
            stream.take(data)
            return
        stream.end()
        self._drop(output, descriptor)
        if not output.streams:
            self._forget(output)
            for client in list(self._clients):
                self._tell(client, "d", output.key)

    def _drop(self, output: _Output, descriptor: int) -> None:
        del output.streams[descriptor]
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _forget(self, output: _Output) -> None:
        del self._outputs[output.key]
        if all(each.writer is not output.writer for each in self._outputs.values()):
            output.writer.close()
            del self._writers[output.writer.directory]

    # engines

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # too many files: the next look comes after a pause
            time.sleep(_LONGEST)
            return
        client.setblocking(False)
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))
        self._send(client, GREETING)

    def _serve(self, client: socket.socket) -> None:
        if client not in self._clients:
            return
        try:
            packet, descriptors, flags, _ = socket.recv_fds(client, PACKET_BYTES, 4)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(client)
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError("too long")
            request = parse_request(packet)
        except ValueError:
            self._hang_up(client)
        else:
            self._do(client, request, descriptors)
        finally:
            for descriptor in descriptors:  # those that are still in the list have found no taker
                os.close(descriptor)

    def _do(self, client: socket.socket, request: Request, descriptors: list[int]) -> None:
        output = self._outputs.get(request.key)
        if request.verb == "Q":
            self.quit()
        elif request.verb == "F":
            for stream in output.streams.values() if output is not None else ():
                stream.flush()
            self._tell(client, "f", request.key)
        elif output is not None:
            self._tell(client, "a", request.key)
        elif len(descriptors) != len(STREAMS):
            self._tell(client, "r", request.key, "its streams did not come with it: are too many files open?")
        elif not all(stat.S_ISFIFO(os.fstat(each).st_mode) for each in descriptors):
            self._tell(client, "r", request.key, "its streams are no FIFOs")
        else:
            self._take(request, descriptors)
            self._tell(client, "a", request.key)

    def _take(self, request: Request, descriptors: list[int]) -> None:
        writer = self._writers.get(request.directory)
        if writer is None:
            writer = LogWriter(request.directory, most_bytes=request.most_bytes, files=request.files)
            self._writers[request.directory] = writer
        output = self._outputs[request.key] = _Output(request.key, writer)
        for name in STREAMS:
            descriptor = descriptors.pop(0)
            os.set_blocking(descriptor, False)
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _FIFO_BYTES)
            except OSError:
                pass  # what it has will do
            output.streams[descriptor] = LineStream(writer, name)
            self._selector.register(descriptor, selectors.EVENT_READ, self._reader(output, descriptor))

    def _reader(self, output: _Output, descriptor: int) -> Callable[[], None]:
        return lambda: self._read(output, descriptor)

    def _tell(self, client: socket.socket, verb: str, *fields: str) -> None:
        self._send(client, pack(verb, *fields))

    def _send(self, client: socket.socket, packet: bytes) -> None:
        try:
            client.send(packet)
        except OSError:  # it is gone, or stopped and takes nothing: it asks for everything again when it is back
            self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._selector.unregister(client)
            client.close()


def main(state: str) -> int:
    """Serve in the background; the exit status for whoever started this. Returns 0 where another keeper serves."""
    lock = os.open(os.path.join(state, "pid"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    path = os.path.join(state, "k.sock")
    if os.path.lexists(path):
        os.unlink(path)  # of a keeper that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    listener.listen(64)  # here, so that the kernel names this process to who connects
    listener.setblocking(False)
    os.write(tell, b"1")
    os.close(tell)
    _serve(listener)
    return 0


def _serve(listener: socket.socket) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    keeper = Keeper(listener)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: keeper.quit())
    keeper.run()
    keeper.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""The log keeper: one small process an engine, which drains the output of all plugins and outlives the engine.

    python -m moorage.logs.keeper STATE

The directory STATE contains ``k.sock``, the socket for engines (``keeper_protocol`` has the messages), and ``pid``,
which is locked while a keeper runs. The command returns when this keeper, or another one, serves in the background.

One thread around a selector, without event loop and libraries, to save memory. It never waits for an engine: one that
does not read its messages is disconnected, and asks again when it reconnects.
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

from moorage.logs.keeper_protocol import GREETING, PACKET_BYTES, KeeperRequest, pack, parse_request
from moorage.logs.writer import STREAMS, LineStream, LogWriter

__all__ = ("Keeper", "main")

_FIFO_BYTES = 1024 * 1024
"""The capacity set for a FIFO: room for its writer while the keeper pauses or is not running."""

_READ_BYTES = 256 * 1024
_SHORTEST, _LONGEST = 0.0001, 0.002  # seconds
_CHECK_INTERVAL = 30.0  # seconds between two checks whether the socket still exists


class _ReadPause:
    """The pause after a round, so that many small writes become one read without wake-ups.

    It grows while little is read, and shrinks before a FIFO fills up.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def after(self, read_bytes: int) -> float:
        """The pause in seconds after a round that read so many bytes."""
        if read_bytes >= _READ_BYTES:
            self._seconds = self._seconds / 4 if self._seconds > _SHORTEST else 0.0
        elif read_bytes < _READ_BYTES // 2:
            self._seconds = min(max(2 * self._seconds, _SHORTEST), _LONGEST)
        return self._seconds


class _Output:
    """Both streams of one run, known by its key."""

    def __init__(self, key: str, writer: LogWriter) -> None:
        self.key = key
        self.writer = writer
        self.streams: dict[int, LineStream] = {}
        """By descriptor; streams that have not ended."""


class Keeper:
    """Drains outputs and notifies engines."""

    def __init__(self, listener: socket.socket) -> None:
        """Takes ownership of the listening socket."""
        self._listener = listener
        self._path = listener.getsockname()
        self._inode = os.stat(self._path).st_ino
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._clients: set[socket.socket] = set()
        self._outputs: dict[str, _Output] = {}
        self._writers: dict[str, LogWriter] = {}
        self._is_stopping = False
        self._read_bytes = 0
        # Written to by signal handlers, to wake the selector.
        self._waking, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(1))

    def run(self) -> None:
        """Drain until ``quit``; everything read is written by then."""
        pause = _ReadPause()
        while not self._is_stopping:
            ready = self._selector.select(_CHECK_INTERVAL)
            self._read_bytes = 0
            for each, _ in ready:
                each.data()
            if self._read_bytes and (seconds := pause.after(self._read_bytes)):
                time.sleep(seconds)
            if not ready and not self._outputs and not self._is_reachable():
                return

    def close(self) -> None:
        """Write incomplete lines and close everything. Later output stays in the FIFOs."""
        for output in list(self._outputs.values()):
            for descriptor, stream in list(output.streams.items()):
                stream.flush()
                self._close_stream(output, descriptor)
        for client in list(self._clients):
            self._disconnect(client)
        for each in (self._selector, self._listener, self._waking, self._woken):
            each.close()

    def quit(self) -> None:
        """Make ``run`` return. May be called from a signal handler."""
        self._is_stopping = True
        self._waking.send(b"q")

    def _is_reachable(self) -> bool:
        """Whether the socket still exists: without it and without outputs, the keeper exits."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    # output

    def _read(self, output: _Output, descriptor: int) -> None:
        stream = output.streams.get(descriptor)
        if stream is None:
            return  # closed earlier in this round
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        self._read_bytes += len(data)
        if data:
            stream.take(data)
            return
        stream.end()
        self._close_stream(output, descriptor)
        if not output.streams:
            self._remove_output(output)
            for client in list(self._clients):
                self._notify(client, "d", output.key)

    def _close_stream(self, output: _Output, descriptor: int) -> None:
        del output.streams[descriptor]
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _remove_output(self, output: _Output) -> None:
        del self._outputs[output.key]
        if all(each.writer is not output.writer for each in self._outputs.values()):
            output.writer.close()
            del self._writers[output.writer.directory]

    # engines

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # too many open files: retried after a pause
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
            self._disconnect(client)
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError("too long")
            request = parse_request(packet)
        except ValueError:
            self._disconnect(client)
        else:
            self._handle(client, request, descriptors)
        finally:
            for descriptor in descriptors:  # those still in the list were not accepted
                os.close(descriptor)

    def _handle(self, client: socket.socket, request: KeeperRequest, descriptors: list[int]) -> None:
        output = self._outputs.get(request.key)
        if request.verb == "Q":
            self.quit()
        elif request.verb == "F":
            for stream in output.streams.values() if output is not None else ():
                stream.flush()
            self._notify(client, "f", request.key)
        elif output is not None:
            self._notify(client, "a", request.key)
        elif len(descriptors) != len(STREAMS):
            self._notify(client, "r", request.key, "its descriptors are missing: are too many files open?")
        elif not all(stat.S_ISFIFO(os.fstat(each).st_mode) for each in descriptors):
            self._notify(client, "r", request.key, "its streams are not FIFOs")
        else:
            self._add_output(request, descriptors)
            self._notify(client, "a", request.key)

    def _add_output(self, request: KeeperRequest, descriptors: list[int]) -> None:
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
                pass  # the default capacity works, too
            output.streams[descriptor] = LineStream(writer, name)
            self._selector.register(descriptor, selectors.EVENT_READ, self._reader(output, descriptor))

    def _reader(self, output: _Output, descriptor: int) -> Callable[[], None]:
        return lambda: self._read(output, descriptor)

    def _notify(self, client: socket.socket, verb: str, *fields: str) -> None:
        self._send(client, pack(verb, *fields))

    def _send(self, client: socket.socket, packet: bytes) -> None:
        try:
            client.send(packet)
        except OSError:  # it has exited or does not read: it asks again after it reconnects
            self._disconnect(client)

    def _disconnect(self, client: socket.socket) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._selector.unregister(client)
            client.close()


def main(state: str) -> int:
    """Serve in the background; returns the exit status of the command, 0 also if another keeper serves."""
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
    ready, notify = os.pipe()
    if os.fork():
        os.close(notify)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    listener.listen(64)  # here, so that SO_PEERCRED names this process to clients
    listener.setblocking(False)
    os.write(notify, b"1")
    os.close(notify)
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

"""The guard: a small process that starts the plugin proxy again at once when it is killed; both sides of their socket.

It has what the next proxy needs: duplicates of the listening sockets, in whose queues connections wait meanwhile, and
the engine's last tables. So it needs no engine, and no file of this package: all that the proxy imports is imported
before the first fork. It is the proxy's parent, and the kernel kills the proxy with it: both exist or neither does.

A message is a letter and what belongs to it: ``T`` the tables as the engine sends them, ``L`` the paths of all
listening sockets with their descriptors, ``R`` for ready, ``Q`` when the proxy exits and is not to be started again.
"""

import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from moorage.proxy.frames import FrameReader, FrameWriter, read_some

if TYPE_CHECKING:
    import asyncio

__all__ = ("Guard", "GuardLink", "Handover")

_TABLES, _LISTENERS, _READY, _QUIT = b"T", b"L", b"R", b"Q"
_SHORT_LIFE = 2.0
"""Seconds: a proxy that exits within them is started again later and later."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # seconds
_SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
"""What ends both, with no socket left behind."""


class Handover(NamedTuple):
    """What a guard gives a proxy that it starts."""

    control: socket.socket
    tables: bytes
    """Of the engine; empty before it has sent any."""
    listeners: dict[str, socket.socket]


class Guard:
    """The guard's process."""

    def __init__(self, lock: int, run: Callable[[Handover], None], ready: Callable[[], None]) -> None:
        """``lock`` is the file with the pid of the proxy. ``run`` is called in each proxy and returns when it exits;
        ``ready`` here, when the first one serves.
        """
        self._lock = lock
        self._run = run
        self._ready = ready
        self._proxy = 0
        self._tables = b""
        self._listeners: dict[str, int] = {}
        self._is_ready = False
        self._is_stopping = False
        self._has_quit = False
        self._wakeup, self._signaled = os.pipe()

    def serve(self) -> int:
        """Return when the proxy has exited as it was requested to; 1 if the first one does not start."""
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._signaled, False)
        signal.set_wakeup_fd(self._signaled, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        gc.collect()
        gc.freeze()
        pause = 0.0
        while True:
            began = time.monotonic()
            control = self._start()
            try:
                self._follow(control)
            finally:
                control.close()
            if self._has_quit or not self._is_ready:
                return 0 if self._has_quit else 1
            is_short = time.monotonic() - began < _SHORT_LIFE
            self._pause(pause)
            pause = min(max(pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE) if is_short else 0.0

    def _start(self) -> socket.socket:
        """Start a proxy; this side of the socket to it."""
        local, remote = socket.socketpair()
        local.setblocking(False)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the proxy handles them
        own = os.getpid()
        self._proxy = os.fork()
        if self._proxy == 0:
            local.close()
            self._become_proxy(own, remote)
        os.pwrite(self._lock, f"{self._proxy:<10}\n".encode(), 0)  # always as long: never read in halves
        remote.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if self._is_stopping:
            os.kill(self._proxy, signal.SIGTERM)
        return local

    def _become_proxy(self, guard: int, control: socket.socket) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.close(self._wakeup)
            os.close(self._signaled)
            from moorage.host.processes import die_with_parent  # only here: see server, which imports it first

            die_with_parent(guard)
            listeners = {path: socket.socket(fileno=each) for path, each in self._listeners.items()}
            control.setblocking(False)
            self._run(Handover(control, self._tables, listeners))
            status = 0
        finally:
            if status:
                import traceback  # only here, to save memory

                traceback.print_exc()
            os._exit(status)

    def _follow(self, control: socket.socket) -> None:
        """Read what the proxy sends until it has exited."""
        reader = FrameReader()
        process = os.pidfd_open(self._proxy)
        poll = select.poll()
        for each in (control.fileno(), process, self._wakeup):
            poll.register(each, select.POLLIN)
        try:
            while True:
                ready = [descriptor for descriptor, _ in poll.poll()]
                if self._wakeup in ready:
                    self._clear_wakeup()
                if not self._read(control, reader) and control.fileno() in ready:
                    poll.unregister(control.fileno())  # it is about to exit
                if process in ready:
                    os.waitpid(self._proxy, 0)
                    self._proxy = 0
                    return
        finally:
            os.close(process)
            reader.close()

    def _read(self, control: socket.socket, reader: FrameReader) -> bool:
        """Take all that has come; False where nothing more comes."""
        try:
            while True:
                data, descriptors = read_some(control)
                if not data:
                    return False
                reader.feed(data, descriptors)
                while (message := reader.next()) is not None:
                    self._take(message, reader)
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _take(self, message: bytes, reader: FrameReader) -> None:
        kind, content = message[:1], message[1:]
        if kind == _TABLES:
            self._tables = content
        elif kind == _LISTENERS:
            paths = os.fsdecode(content).split("\0") if content else []
            made = dict(zip(paths, reader.take(len(paths)), strict=True))
            for each in self._listeners.values():
                os.close(each)
            self._listeners = made
        elif kind == _READY:
            if not self._is_ready:
                self._ready()
            self._is_ready = True
        elif kind == _QUIT:
            self._has_quit = True

    def _stop(self, *_: object) -> None:
        """End both; while no proxy runs, the next one removes the sockets."""
        self._is_stopping = True
        if self._proxy:
            os.kill(self._proxy, signal.SIGTERM)

    def _pause(self, seconds: float) -> None:
        if not self._is_stopping:
            select.select([self._wakeup], [], [], seconds)

    def _clear_wakeup(self) -> None:
        os.read(self._wakeup, 4096)


class GuardLink:
    """The proxy's side. Nothing waits for the guard: what it has not read yet is replaced by what follows."""

    def __init__(self, control: socket.socket, loop: "asyncio.AbstractEventLoop") -> None:
        """Takes ownership of the socket, which is non-blocking."""
        self._control = control
        self._loop = loop
        self._pending: dict[bytes, tuple[bytes, list[int]]] = {}
        self._writer: FrameWriter | None = None
        self._descriptors: list[int] = []

    def send_tables(self, tables: bytes) -> None:
        """What the next proxy takes for the engine's tables."""
        self._send(_TABLES, tables)

    def send_listeners(self, listeners: Mapping[str, socket.socket]) -> None:
        """All sockets that the next proxy gets."""
        descriptors = [os.dup(each.fileno()) for each in listeners.values()]
        self._send(_LISTENERS, os.fsencode("\0".join(listeners)), descriptors)

    def send_ready(self) -> None:
        """This proxy serves."""
        self._send(_READY)

    def close(self) -> None:
        """This proxy exits, and no other one is to be started."""
        from moorage.timeouts import DEFAULT  # only here: see server, which imports it first

        self._loop.remove_writer(self._control)
        self._control.settimeout(DEFAULT.guard_reads)
        try:
            if self._writer is not None:
                self._writer.send(self._control)
            FrameWriter(_QUIT).send(self._control)
        except OSError:
            pass  # it is killed, or will be
        self._control.close()

    def _send(self, kind: bytes, content: bytes = b"", descriptors: list[int] | None = None) -> None:
        if kind in self._pending:
            _close(self._pending.pop(kind)[1])
        self._pending[kind] = content, descriptors or []
        if self._writer is None:
            self._send_next()

    def _send_next(self) -> None:
        while self._pending:
            kind = next(iter(self._pending))
            content, self._descriptors = self._pending.pop(kind)
            self._writer = FrameWriter(kind + content, self._descriptors)
            if not self._write():
                self._loop.add_writer(self._control, self._continue)
                return

    def _continue(self) -> None:
        if self._write():
            self._loop.remove_writer(self._control)
            self._send_next()

    def _write(self) -> bool:
        """Whether the message was sent, or never will be."""
        try:
            if self._writer is not None and not self._writer.send(self._control):
                return False
        except OSError:
            pass  # the guard has exited, and this process is about to be killed
        self._writer = None
        _close(self._descriptors)
        self._descriptors = []
        return True


def _close(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)

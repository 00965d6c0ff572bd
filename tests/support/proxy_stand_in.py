"""A small plugin proxy for tests of its client: run as ``-m support.proxy_stand_in STATE``, as the real one is.

It listens where its tables say and answers each connection with its own pid. The file ``behavior`` in the state
directory makes it misbehave: ``silent`` (does not greet), ``old`` (another version), ``deaf`` (never carries out
tables), ``garbage`` (sends what is no message).
"""

import fcntl
import os
import select
import socket
import sys
from pathlib import Path

from moorage.proxy.frames import FrameReader, FrameWriter, read_some
from moorage.proxy.protocol import GREETING, MAGIC, QUIT, News, PluginNews, Tables, decode_tables, encode


def main(state: Path) -> None:
    lock = os.open(state / "pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another one serves, or is about to
    path = state / "p.sock"
    path.unlink(missing_ok=True)
    if os.fork():
        # the parent exits when the child listens
        while not path.exists():
            select.select([], [], [], 0.005)
        return
    os.setsid()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    behavior = (state / "behavior").read_text() if (state / "behavior").exists() else ""
    StandIn(server, behavior).run()
    path.unlink(missing_ok=True)


class StandIn:
    def __init__(self, server: socket.socket, behavior: str) -> None:
        self.server = server
        self.behavior = behavior
        self.tables = Tables(())
        self.listeners: dict[str, socket.socket] = {}
        self.engines: dict[socket.socket, FrameReader] = {}

    def run(self) -> None:
        """Until an engine says quit."""
        while True:
            ready, _, _ = select.select([self.server, *self.engines, *self.listeners.values()], [], [])
            for each in ready:
                if each is self.server:
                    self.greet(each.accept()[0])
                elif each in self.engines:
                    if self.receive(each):
                        return
                else:
                    with each.accept()[0] as consumer:
                        consumer.sendall(str(os.getpid()).encode())

    def greet(self, engine: socket.socket) -> None:
        self.engines[engine] = FrameReader()
        if self.behavior == "silent":
            return
        FrameWriter(MAGIC + b"0.0\n" if self.behavior == "old" else GREETING).send(engine)
        if self.behavior == "garbage":
            FrameWriter(b"no JSON").send(engine)
        else:
            self.report(engine, 0)

    def receive(self, engine: socket.socket) -> bool:
        """Whether the engine said quit."""
        data, descriptors = read_some(engine)
        reader = self.engines[engine]
        reader.feed(data, descriptors)
        if not data:
            del self.engines[engine]
            engine.close()
            return False
        while (message := reader.next()) is not None:
            if message == QUIT:
                for path in self.listeners:
                    Path(path).unlink(missing_ok=True)
                return True
            tables = self.tables = decode_tables(message)
            self.listen(tables, reader.take(len(tables.listeners)))
            if self.behavior != "deaf":
                self.report(engine, tables.number)
        return False

    def listen(self, tables: Tables, descriptors: list[int]) -> None:
        for path, descriptor in zip(tables.listeners, descriptors, strict=True):
            self.listeners[path] = socket.socket(fileno=descriptor)
        desired = [path for plugin in tables.plugins for path in plugin.published]
        for path in [path for path in self.listeners if path not in desired]:
            self.listeners.pop(path).close()
            Path(path).unlink(missing_ok=True)
        for path in desired:
            if path not in self.listeners:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).unlink(missing_ok=True)
                self.listeners[path] = socket.socket(socket.AF_UNIX)
                self.listeners[path].bind(path)
                self.listeners[path].listen()

    def report(self, engine: socket.socket, number: int) -> None:
        plugins = tuple(
            PluginNews(each.id, state=each.state, run=each.run, pid=each.pid) for each in self.tables.plugins
        )
        news = News(plugins, listeners=tuple(self.listeners), number=number)
        FrameWriter(encode(news), [each.fileno() for each in self.listeners.values()]).send(engine)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The proxy's real process, an engine's side of its channel, and plugins, for tests."""

import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from moorage.host.mounts import bind_shared, unmount_all_below
from moorage.proxy.frames import FrameReader, FrameWriter, read_some
from moorage.proxy.protocol import (
    GREETING,
    QUIT,
    News,
    PathRule,
    PluginNews,
    PluginTable,
    ProxyState,
    PublishOptions,
    Tables,
    decode_news,
    encode,
)
from support.limits import limit
from support.reaper import remove_mounts_at_exit, stop_proxy_at_exit

__all__ = ("Plugin", "ProxyProcess", "UnixConnection", "call", "parent", "published", "wait_until")

_TESTS = Path(__file__).resolve().parents[1]
_SOURCE = _TESTS.parent / "src"
_PACKAGES = Path(msgspec.__file__).parents[1]
_LIMIT = limit(20.0)


# In a mount namespace of its own, the plugin sees the directory mnt, which is a shared mount, as inside.
_OWN_MOUNTS = """
set -e
mount --make-private "$(findmnt -n -o TARGET --target "$DIRECTORY")"
mount --rbind "$DIRECTORY/mnt" "$DIRECTORY/inside"
mount "--make-$1" "$DIRECTORY/inside"
shift
exec "$@"
"""


class UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float = _LIMIT) -> None:
        super().__init__("plugin", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(path: str, method: str, headers: dict[str, str] | None = None, **fields: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of one call, as podman makes it: a connection of its own, no body where there are no fields."""
    connection = UnixConnection(path)
    try:
        connection.request("POST", f"/{method}", json.dumps(fields) if fields else None, headers or {})
        response: HTTPResponse = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class Plugin:
    """A plugin's process, which can be started again."""

    def __init__(self, directory: Path, name: str = "vol", *, propagates: bool = True) -> None:
        self.directory = directory / name
        self.propagates = propagates
        for each in (self.directory, self.directory / "mnt", self.directory / "inside"):
            each.mkdir()
        remove_mounts_at_exit(self.directory)
        bind_shared(self.directory / "mnt")
        self.name = name
        self.run = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(_TESTS), "DIRECTORY": str(self.directory)}
        own = [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--mount",
            "--propagation",
            "unchanged",
            "sh",
            "-c",
            _OWN_MOUNTS,
            "sh",
        ]
        server = ["-m", "support.proxy_plugin", str(self.directory / "plugin.sock"), str(self.directory)]
        command = [*own, "shared" if self.propagates else "private", sys.executable, *server]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.run += 1

    def kill(self) -> None:
        """SIGKILL; its mounts stay, as dead ones of FUSE would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def unmount_all(self) -> None:
        unmount_all_below(self.directory / "mnt")

    def history(self) -> list[dict[str, str]]:
        """Its starts and what it was called."""
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.directory / "calls").read_text().splitlines()]
        return []

    def calls(self, name: str = "") -> list[dict[str, str]]:
        """What it was called, of this method only if it is given."""
        return [each for each in self.history() if name in each["call"] and each["call"] != "start"]

    def table(self, published: Path, state: ProxyState = "ready", **options: Any) -> PluginTable:
        return PluginTable(
            id=(self.name * 64)[:64],
            name=f"{self.name}:latest",
            types=("docker.volumedriver/1.0", "docker.logdriver/1.0"),
            state=state,
            run=self.run,
            runtime=str(self.directory),
            socket="plugin.sock",
            published=(str(published / f"{self.name}.sock"),),
            pid=self.process.pid if self.process is not None and state == "ready" else 0,
            paths=(
                PathRule(str(self.directory / "inside"), str(self.directory / "mnt"), "propagated"),
                PathRule("/", "/root", "root"),
            ),
            options=PublishOptions(**options),
        )


class ProxyProcess:
    """The proxy of one state directory, and an engine's connection to it."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "proxy",
        source: Path = _SOURCE,
        packages: Path = _PACKAGES,
        prefix: Sequence[str] = (),
    ) -> None:
        """``source`` is where it imports moorage from: another checkout to compare with, or one that is replaced.

        ``packages`` is where it imports the packages from that it needs; ``prefix`` is a command that starts it.
        """
        self.state = directory / name
        self.source, self.packages, self.prefix = source, packages, prefix
        self.state.mkdir(mode=0o700, exist_ok=True)
        stop_proxy_at_exit(self.state)
        self.published = directory / ("plugins" if name == "proxy" else f"plugins-{name}")
        self.news: News | None = None
        self.listeners: dict[str, int] = {}
        self.number = 0
        self.reports: list[str] = []
        self._engine: socket.socket | None = None
        self._reader = FrameReader()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self.close_listeners()
        with suppress(OSError, ValueError):
            self.signal(signal.SIGTERM)
            self.wait_exit()

    # the process

    def start(self) -> None:
        """Start it, which returns when it serves, and connect."""
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{self.source}{os.pathsep}{self.packages}"}
        command = [*self.prefix, sys.executable, "-S", "-s", "-P", "-m", "moorage.proxy.server", str(self.state)]
        with open(self.state / "log", "ab") as log:
            subprocess.run(command, stdout=log, stderr=log, env=environment, cwd="/", check=True, timeout=_LIMIT)
        self.connect()

    @property
    def pid(self) -> int:
        return int((self.state / "pid").read_text())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_exit(self) -> None:
        descriptor = os.pidfd_open(self.pid)
        try:
            assert select.select([descriptor], [], [], _LIMIT)[0]
        finally:
            os.close(descriptor)

    def kill(self) -> None:
        pid = os.pidfd_open(self.pid)
        self.signal(signal.SIGKILL)
        assert select.select([pid], [], [], _LIMIT)[0]
        os.close(pid)
        self.disconnect()

    @property
    def guard(self) -> int:
        """The process that starts the proxy again."""
        return parent(self.pid)

    def kill_all(self) -> None:
        """As an OOM kill of everything, with the engine's connection."""
        guard, killed = self.guard, self.pid
        processes = [os.pidfd_open(each) for each in (guard, killed)]
        os.kill(guard, signal.SIGKILL)
        for each in processes:  # the kernel kills the proxy with its guard
            assert select.select([each], [], [], _LIMIT)[0]
            os.close(each)
        self.disconnect()

    def log(self) -> str:
        return (self.state / "log").read_text()

    def status(self, field: str) -> int:
        """A number of /proc/PID/status: VmRSS in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise AssertionError(field)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # the engine's side

    def connect(self) -> None:
        self._engine = socket.socket(socket.AF_UNIX)
        self._engine.settimeout(_LIMIT)
        self._engine.connect(str(self.state / "p.sock"))
        self._reader = FrameReader()
        self.number = 0
        assert self._message() == GREETING
        self.receive()

    def disconnect(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._reader.close()
            self._engine = None

    def _message(self) -> bytes:
        assert self._engine is not None
        while (message := self._reader.next()) is None:
            data, descriptors = read_some(self._engine)
            assert data, "the proxy closed the connection"
            self._reader.feed(data, descriptors)
        return message

    def receive(self) -> News:
        """The next news."""
        news = decode_news(self._message())
        if news.listeners is not None:
            taken = self._reader.take(len(news.listeners))
            if news.number or taken:  # before the first tables, those of the proxy before it are all there are
                self.close_listeners()
                self.listeners = dict(zip(news.listeners, taken, strict=True))
        self.reports += [f"{each.action} {' '.join(each.attributes.values())}" for each in news.reports]
        self.news = news
        return news

    def close_listeners(self) -> None:
        """As the exit of the engine does."""
        for each in self.listeners.values():
            os.close(each)
        self.listeners = {}

    def send(self, *tables: PluginTable) -> News:
        """Send tables, to a new proxy with the sockets of the former one; wait until it has carried them out."""
        assert self._engine is not None
        self.number += 1
        handed = dict(self.listeners) if self.number == 1 else {}
        message = encode(Tables(tables, tuple(handed), self.number))
        assert FrameWriter(message, list(handed.values())).send(self._engine)
        news = self.receive()
        while news.number != self.number:
            news = self.receive()
        return news

    def quit(self) -> None:
        assert self._engine is not None
        FrameWriter(QUIT).send(self._engine)

    def plugin_news(self) -> PluginNews:
        """Of the only plugin."""
        assert self.news is not None
        [plugin] = self.news.plugins
        return plugin

    def wait_news(self, condition: Any) -> PluginNews:
        """Of the only plugin, when a condition is true of it."""
        until = time.monotonic() + _LIMIT
        while not condition(self.plugin_news()):
            assert time.monotonic() < until
            self.receive()
        return self.plugin_news()

    def publish(self, *plugins: Plugin, state: ProxyState = "ready", **options: Any) -> News:
        return self.send(*(each.table(self.published, state, **options) for each in plugins))

    def path(self, plugin: Plugin) -> str:
        return str(self.published / f"{plugin.name}.sock")

    def internal(self, plugin: Plugin) -> str:
        return str(self.state / "s" / f"{plugin.table(self.published).id[:12]}.sock")


@contextmanager
def published(directory: Path, **options: Any) -> Iterator[tuple[ProxyProcess, Plugin, str]]:
    """A proxy, one plugin that is ready, and the path of its published socket."""
    plugin = Plugin(directory)
    plugin.start()
    try:
        with ProxyProcess(directory) as proxy:
            proxy.publish(plugin, **options)
            yield proxy, plugin, proxy.path(plugin)
            assert "Traceback" not in proxy.log(), proxy.log()
    finally:
        plugin.kill()
        plugin.unmount_all()


def parent(pid: int) -> int:
    """The pid of the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(condition: Callable[[], object]) -> None:
    """Return when a condition is true; a fault runs into the limit."""
    until = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < until, inspect.getsource(condition)
        time.sleep(0.01)

"""Real podman and real dockerd with plugins: those of an engine, or the same programs without one to compare with."""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.dockerd import Dockerd
from support.consumers import ConsumerMachine, Docker, Podman, consumer_machine, podman_on
from support.drivers import create_driver, direct_driver, driver_config
from support.engines import EngineProcess, UnixConnection, engine
from support.limits import limit

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Driver:
    """A plugin as its consumers know it."""

    name: str
    socket: Path
    data: Path
    """What it stores, on the host."""

    @property
    def plain_name(self) -> str:
        """Its name, as a part of a volume's."""
        return self.name.replace(":", "-")

    def calls(self) -> dict[str, int]:
        """How often each call came since it was started."""
        return {str(path): int(times) for path, times in json.loads(self.post("/Test.Calls")[1]).items()}

    def mounts(self) -> set[str]:
        """``VOLUME ID`` of each mount that it knows."""
        return set(json.loads(self.post("/Test.Mounts")[1]))

    def post(self, path: str, body: bytes = b"{}", within: float = limit(60)) -> tuple[int, bytes]:
        """A call by its socket; the status and the body."""
        connection = UnixConnection(self.socket, within)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Consumers:
    """A machine with podman, and with a dockerd once a test needs it."""

    def __init__(self, machine: ConsumerMachine, podman: Podman, stack: ExitStack) -> None:
        self.machine, self.podman, self._stack = machine, podman, stack
        self._docker: Docker | None = None
        self._drivers: dict[str, Path] = {}

    @property
    def docker(self) -> Docker:
        if self._docker is None:
            peer = self._stack.enter_context(dockerd_on(self.machine))
            peer.wait_until_serving()
            self._docker = Docker(self.machine, peer.address)
            self._docker.load_image()
        return self._docker

    @property
    def commands(self) -> tuple[Podman | Docker, ...]:
        """Those of both consumers."""
        return self.podman, self.docker

    @contextmanager
    def registered(self, driver: Driver) -> Iterator[Driver]:
        """Let podman know it, for the block."""
        self._drivers[driver.name] = driver.socket
        self.podman.use(self._drivers)
        try:
            yield driver
        finally:
            del self._drivers[driver.name]
            self.podman.use(self._drivers)


@contextmanager
def dockerd_on(machine: ConsumerMachine, *options: str, name: str = "dockerd") -> Iterator[Dockerd]:
    """A dockerd on that machine, stopped at the end; ``wait_until_serving`` is the caller's."""
    directory = machine.directory / name
    directory.mkdir()
    peer = Dockerd(directory, prefix=machine.command(), options=options)
    try:
        yield peer
    finally:
        peer.stop()


@contextmanager
def direct(consumers: Consumers, kind: str, *options: str) -> Iterator[Driver]:
    """A driver whose own socket the consumers use."""
    name = f"direct{next(_numbers)}"
    directory = consumers.machine.directory / name
    directory.mkdir()
    driver = Driver(name, consumers.machine.sockets / f"{name}.sock", directory / "data")
    with direct_driver(directory, driver.socket, kind, *options), consumers.registered(driver):
        yield driver


def plugin_name(driver: Driver) -> str:
    """Of the plugin of an engine that `published` made."""
    return f"{driver.data.name}:1"


@contextmanager
def published(
    consumers: Consumers,
    house: EngineProcess,
    kind: str,
    *options: str,
    fields: Mapping[str, Any] | None = None,
    **publication: Any,
) -> Iterator[Driver]:
    """A driver that an engine runs and publishes, by default under its own name; removed at the end."""
    data = consumers.machine.directory / f"{kind}{next(_numbers)}"
    data.mkdir()
    plugin = f"{data.name}:1"
    create_driver(house, plugin, driver_config(kind, data, *options, **(fields or {})))
    try:
        house.request_own("POST", plugin, "publish", publication)
        name = publication.get("names", [plugin])[0]
        driver = Driver(name, consumers.machine.sockets / f"{name}.sock", data)
        yield driver
    finally:
        house.remove(plugin, force=True)
    assert not driver.socket.exists()


Make = Callable[..., Driver]


@pytest.fixture
def make(consumers: Consumers, publisher: EngineProcess) -> Iterator[Make]:
    """Makes a published driver: kind, options, fields=, and how it is published."""
    with ExitStack() as stack:

        def publish(kind: str, *options: str, fields: Mapping[str, Any] | None = None, **how: Any) -> Driver:
            return stack.enter_context(published(consumers, publisher, kind, *options, fields=fields, **how))

        yield publish


def timed(what: Callable[[], object]) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    what()
    return time.monotonic() - started


def kill_plugin(house: EngineProcess, driver: Driver) -> None:
    """Kill its process, which must run."""
    os.kill(house.more(plugin_name(driver))["Pid"], signal.SIGKILL)


def kill_proxy(house: EngineProcess) -> int:
    """Its process id until now."""
    pid = int((house.exec_root / "proxy/pid").read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def publisher_on(machine: ConsumerMachine, **options: Any) -> Iterator[EngineProcess]:
    """An engine that publishes to the consumers of that machine."""
    paths = {"publish_directory": str(machine.sockets), "podman_config": str(machine.podman_config)}
    with engine(machine.directory / "engine", **paths, **options) as made:
        yield made


@pytest.fixture(scope="module")
def publisher(consumers: Consumers) -> Iterator[EngineProcess]:
    """An engine that publishes to podman and dockerd."""
    with publisher_on(consumers.machine) as made:
        yield made


@pytest.fixture(scope="module")
def consumers() -> Iterator[Consumers]:
    """podman and dockerd for the tests of a module."""
    with consumer_machine() as machine, podman_on(machine) as podman, ExitStack() as stack:
        yield Consumers(machine, podman, stack)

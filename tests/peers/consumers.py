"""Real podman and real dockerd with plugins: those of an engine, or the same programs without one to compare with."""

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from peers.dockerd import Dockerd
from support.consumers import ConsumerMachine, Docker, Podman, consumer_machine, podman_on
from support.drivers import direct_driver
from support.engines import UnixConnection
from support.limits import limit

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Driver:
    """A plugin as its consumers know it."""

    name: str
    socket: Path
    data: Path
    """What it stores, on the host."""

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


@pytest.fixture(scope="module")
def consumers() -> Iterator[Consumers]:
    """podman and dockerd for the tests of a module."""
    with consumer_machine() as machine, podman_on(machine) as podman, ExitStack() as stack:
        yield Consumers(machine, podman, stack)

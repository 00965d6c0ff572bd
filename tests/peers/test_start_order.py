"""podman and dockerd that start before, with and after Moorage, with a container on a published volume."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from peers.consumers import Consumers, dockerd_on, published, publisher_on
from peers.dockerd import Dockerd
from support.consumers import IMAGE, Docker, Failed, consumer_machine, podman_on
from support.engines import EngineProcess
from support.foreground import wait_until
from support.limits import limit

pytestmark = [
    pytest.mark.real,
    pytest.mark.extensive,
    pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc"),
]

World = tuple[Consumers, EngineProcess, Dockerd, Docker]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """An engine and a dockerd that run, with a container of each consumer on a volume of the plugin ``vieux/fs:1``."""
    with (
        consumer_machine() as machine,
        podman_on(machine) as podman,
        ExitStack() as stack,
        publisher_on(machine) as house,
    ):
        consumers = Consumers(machine, podman, stack)
        with published(consumers, house, "volume", names=["fs"]), dockerd_on(machine) as peer:
            peer.wait_until_serving()
            docker = Docker(machine, peer.address)
            docker.load_image()
            docker("volume", "create", "--driver=fs", "of-docker")
            script = "while true; do echo again >>/mnt/times; sleep 1000; done"
            words = (
                "--network=none",
                "--restart=always",
                "--name=always",
                "-v",
                "of-docker:/mnt",
                IMAGE,
                "sh",
                "-c",
                script,
            )
            docker("run", "-d", *words)
            podman("volume", "create", "--driver=fs", "of-podman")
            podman(
                "create",
                "--network=none",
                "--name=mine",
                "-v",
                "of-podman:/mnt",
                IMAGE,
                "sh",
                "-c",
                "echo it >>/mnt/times",
            )
            yield consumers, house, peer, docker
            docker("rm", "-f", "always")


def stop_all(world: World) -> None:
    _, house, peer, _ = world
    peer.stop()
    house.down()


def start_ready(world: World) -> None:
    """Start Moorage, and return when its unit would be started: when its sockets listen."""
    consumers, house, _, _ = world
    house.start()
    wait_until((consumers.machine.sockets / "fs.sock").is_socket, "the socket", limit(20))


def is_up(docker: Docker) -> bool:
    return docker("inspect", "--format={{.State.Running}}", "always").strip() == "true"


@pytest.mark.parametrize("first", ["dockerd", "moorage", "together"])
def test_p16_a_container_that_restarts_always_finds_its_volume(world: World, first: str) -> None:
    consumers, house, peer, docker = world
    stop_all(world)
    if first == "moorage":
        house.start()
        peer.start_again()
    else:
        peer.start_again()
        time.sleep(2 if first == "dockerd" else 0)  # it looks for the plugin for 15 s
        house.start()
    started = time.monotonic()
    peer.wait_until_serving()
    assert time.monotonic() - started < limit(20)
    wait_until(lambda: is_up(docker), "the container runs", limit(30))
    docker("exec", "always", "sh", "-c", f"echo {first} >>/mnt/times")
    (times,) = consumers.machine.directory.glob("volume*/of-docker/times")
    assert first in times.read_text().split()


def test_p16_podman_without_moorage_fails_at_once_and_works_afterwards(world: World) -> None:
    consumers, house, _, _ = world
    podman = consumers.podman
    house.down()
    started = time.monotonic()
    with pytest.raises(Failed):
        podman("start", "--attach", "mine")
    assert "mine" in podman("ps", "--all")
    assert time.monotonic() - started < limit(10)
    start_ready(world)
    podman("start", "--attach", "mine")
    (times,) = consumers.machine.directory.glob("volume*/of-podman/times")
    assert times.read_text().startswith("it\n")
    assert "of-podman" in podman("volume", "ls", "-q").split()


def test_p16_a_podman_service_that_started_before_moorage_finds_it(world: World) -> None:
    consumers, house, _, _ = world
    house.down()
    address = consumers.machine.directory / "podman.sock"
    service = threading.Thread(
        target=lambda: consumers.podman("system", "service", "--time=20", f"unix://{address}", within=limit(120))
    )
    service.start()
    try:
        wait_until(address.is_socket, "podman's service listens", limit(20))
        house.start()
        remote = ("--remote", f"--url=unix://{address}")
        volumes = consumers.machine.run("podman", *remote, "volume", "ls", "-q").split()
        assert "of-podman" in volumes
        consumers.machine.run("podman", *remote, "start", "mine")
    finally:
        service.join()

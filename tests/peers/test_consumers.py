"""Unmodified podman and dockerd with plugins of each kind: without an engine, and as an engine publishes them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from peers.consumers import Consumers, Driver, direct
from support.consumers import IMAGE, Failed

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc")]

Side = Callable[..., Driver]


@pytest.fixture(params=["direct", "published"])
def side(request: pytest.FixtureRequest, consumers: Consumers) -> Iterator[Side]:
    """Makes a driver of a kind with these options, without an engine or published by one."""
    if request.param == "published":
        yield request.getfixturevalue("make")
        return
    with ExitStack() as stack:
        yield lambda kind, *options: stack.enter_context(direct(consumers, kind, *options))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", ["fuse", "bind", "tmpfs"])
def test_podman_containers_write_to_a_volume(consumers: Consumers, side: Side, how: str) -> None:
    driver, podman = side("volume", f"how={how}"), consumers.podman
    volume = f"v{how}-{driver.plain_name}"
    podman("volume", "create", f"--driver={driver.name}", volume)
    script = "echo one >/mnt/a; mkdir /mnt/d; echo two >/mnt/d/b; mv /mnt/d/b /mnt/c; rm -r /mnt/d; cat /mnt/a /mnt/c"
    assert podman.run("-v", f"{volume}:/mnt", script=script) == "one\ntwo\n"
    if how != "tmpfs":
        assert {path.name: path.read_text() for path in (driver.data / volume).iterdir()} == {
            "a": "one\n",
            "c": "two\n",
        }
    assert driver.mounts() == set()
    assert volume in podman("volume", "ls")
    podman("volume", "rm", volume)
    assert not (driver.data / volume).exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ["fuse", "bind"])
def test_dockerd_containers_write_to_a_volume(consumers: Consumers, side: Side, how: str) -> None:
    driver, docker = side("volume", f"how={how}"), consumers.docker
    volume = f"d{how}-{driver.plain_name}"
    docker("volume", "create", f"--driver={driver.name}", volume)
    docker("run", "-d", "--name=holder", "--network=none", "-v", f"{volume}:/mnt", IMAGE, "sleep", "1000")
    try:
        assert docker.run("-v", f"{volume}:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
        assert docker("exec", "holder", "cat", "/mnt/a") == "one\n"
        assert len(driver.mounts()) == 1, "dockerd counts the containers of a volume by itself"
    finally:
        docker("rm", "-f", "holder")
    assert (driver.data / volume / "a").read_text() == "one\n"
    assert driver.mounts() == set()
    assert volume in docker("volume", "ls", "-q").split()
    docker("volume", "rm", volume)
    assert not (driver.data / volume).exists()


def test_dockerd_makes_a_volume_as_a_container_needs_it(consumers: Consumers, side: Side) -> None:
    driver, docker = side("volume"), consumers.docker
    volume = f"new-{driver.plain_name}"
    words = ("-v", f"{volume}:/mnt", f"--volume-driver={driver.name}")
    assert docker.run(*words, script="echo one >/mnt/a; cat /mnt/a") == "one\n"
    assert (driver.data / volume / "a").read_text() == "one\n"
    docker("volume", "rm", volume)


def test_what_a_driver_refuses_is_an_error_of_the_command(consumers: Consumers, side: Side) -> None:
    driver = side("volume")
    for command in (consumers.podman, consumers.docker):
        with pytest.raises(Failed, match="no space left"):
            command(
                "volume", "create", f"--driver={driver.name}", "--opt=fail=no space left", f"no-{driver.plain_name}"
            )


def test_docker_logs_come_from_a_log_driver(consumers: Consumers, side: Side) -> None:
    driver, docker = side("log"), consumers.docker
    script = "for i in $(seq 1 2000); do echo line $i; done; sleep 1; echo last"
    words = ("--network=none", f"--log-driver={driver.name}", IMAGE, "/bin/sh", "-c", script)
    id = docker("run", "-d", *words).strip()
    try:
        followed = docker("logs", "-f", id)
        assert followed.startswith("line 1line 2line 3"), "the frames are returned as they came, without newlines"
        assert followed.endswith("line 2000last")
        lines = [f"line {number}" for number in range(1, 2001)]
        assert (driver.data / f"{id}.txt").read_text().splitlines() == [*lines, "last"]
        assert docker("logs", id) == followed
    finally:
        docker("rm", "-f", id)
    assert driver.calls()["/LogDriver.StopLogging"] >= 1


def test_a_container_gets_its_network_and_address_from_a_plugin(consumers: Consumers, side: Side) -> None:
    driver, docker = side("network", "prefix=10.213.78"), consumers.docker
    docker("network", "create", f"--driver={driver.name}", f"--ipam-driver={driver.name}", "net")
    try:
        printed = docker.run(script="ip addr show eth0; ping -c 1 10.213.78.1", network="net")
        assert "inet 10.213.78.2/24" in printed
        assert "1 packets received" in printed
    finally:
        docker("network", "rm", "net")
    assert driver.calls()["/NetworkDriver.DeleteEndpoint"] == 1
    assert driver.calls()["/IpamDriver.ReleasePool"] == 1

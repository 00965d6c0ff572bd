"""Log, authorization, network and metrics drivers that an engine publishes to a real dockerd."""

import itertools
import time
from collections.abc import Iterator

import pytest

from peers.consumers import Consumers, Driver, Make, dockerd_on, kill_plugin, plugin_name, timed
from support.consumers import IMAGE, Docker, Failed
from support.engines import EngineProcess, Refused
from support.foreground import wait_until
from support.limits import limit

pytestmark = [
    pytest.mark.real,
    pytest.mark.extensive,
    pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc"),
]


@pytest.mark.parametrize("options", [(), ("types=LoggingDriver",), ("activate=404",)])
def test_p13_a_log_driver_reads_the_fifos_of_the_host(
    consumers: Consumers, publisher: EngineProcess, make: Make, options: tuple[str, ...]
) -> None:
    driver, docker = make("log", *options), consumers.docker
    words = ("--network=none", f"--log-driver={driver.name}", IMAGE, "/bin/sh", "-c")
    id = docker("run", "-d", *words, "echo one; sleep 1; echo two").strip()
    try:
        assert docker("logs", "-f", id) == "onetwo"
        assert (driver.data / f"{id}.txt").read_text() == "one\ntwo\n"
    finally:
        docker("rm", "-f", id)


def test_p11_a_log_driver_that_was_killed_goes_on_reading(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver, docker = make("log"), consumers.docker
    script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done"
    words = ("--network=none", f"--log-driver={driver.name}", IMAGE, "/bin/sh", "-c", script)
    id = docker("run", "-d", *words).strip()
    try:
        text = driver.data / f"{id}.txt"
        wait_until(lambda: text.exists() and text.stat().st_size > 100, "it reads", limit(20))
        before = publisher.more(plugin_name(driver))
        kill_plugin(publisher, driver)
        publisher.until_restarted(plugin_name(driver), before["Restarts"] + 1)
        read = text.stat().st_size
        wait_until(lambda: text.stat().st_size > read + 200, "it reads again", limit(20))
        numbers = [int(line.split()[1]) for line in text.read_text().splitlines()]
        gaps = sum(1 for one, two in itertools.pairwise(numbers) if two != one + 1)
        assert gaps <= 1, "what it had read and not stored"
        assert driver.calls()["/LogDriver.StartLogging"] == 1
    finally:
        docker("rm", "-f", id)


def test_p10_logs_of_any_length_are_streamed(consumers: Consumers, make: Make) -> None:
    driver, docker = make("log"), consumers.docker
    script = "seq 1 200000"
    words = ("--network=none", f"--log-driver={driver.name}", IMAGE, "/bin/sh", "-c", script)
    id = docker("run", "-d", *words).strip()
    try:
        docker("wait", id)
        text = driver.data / f"{id}.txt"
        wait_until(lambda: text.read_text().endswith("200000\n"), "all lines", limit(60))
        assert docker("logs", id) == "".join(map(str, range(1, 200001)))
    finally:
        docker("rm", "-f", id)


@pytest.fixture
def guarded(consumers: Consumers, make: Make) -> Iterator[tuple[Driver, Docker]]:
    """An authorization plugin that denies new volumes, and a dockerd that asks it."""
    driver = make("authorization", "deny=/volumes/create")
    name = f"guarded-{driver.data.name}"
    with dockerd_on(consumers.machine, f"--authorization-plugin={driver.name}", name=name) as peer:
        peer.wait_until_serving()
        yield driver, Docker(consumers.machine, peer.address)


def test_an_authorization_plugin_allows_and_denies(guarded: tuple[Driver, Docker]) -> None:
    driver, docker = guarded
    docker("network", "ls")
    with pytest.raises(Failed, match="volumes/create is denied"):
        docker("volume", "create", "no")
    calls = driver.calls()
    assert calls["/AuthZPlugin.AuthZReq"] > 1
    assert calls["/AuthZPlugin.AuthZRes"] > 1


def test_p04_calls_of_a_guarded_dockerd_wait_for_the_restart(
    guarded: tuple[Driver, Docker], publisher: EngineProcess
) -> None:
    driver, docker = guarded
    for _ in range(3):
        publisher.until(plugin_name(driver), "ready")
        kill_plugin(publisher, driver)
        docker("network", "ls")
        with pytest.raises(Failed, match="volumes/create is denied"):
            docker("volume", "create", "no")


def test_p03_an_authorization_plugin_in_use_is_not_disabled(
    guarded: tuple[Driver, Docker], publisher: EngineProcess
) -> None:
    driver, docker = guarded
    docker("network", "ls")
    with pytest.raises(Refused, match="dockerd"):
        publisher.disable(plugin_name(driver))
    docker("network", "ls")
    publisher.disable(plugin_name(driver), force=True)
    publisher.enable(plugin_name(driver))
    docker("network", "ls")


def test_p10_large_bodies_reach_an_authorization_plugin(guarded: tuple[Driver, Docker]) -> None:
    driver, docker = guarded
    before = driver.calls()["/AuthZPlugin.AuthZReq"]
    labels = [f"--label=k{number}={'x' * 30000}" for number in range(20)]  # dockerd sends bodies up to 1 MiB
    with pytest.raises(Failed, match="volumes/create is denied"):
        docker("volume", "create", *labels)
    assert driver.calls()["/AuthZPlugin.AuthZReq"] > before


def test_p13_a_metrics_collector_is_refused(consumers: Consumers, publisher: EngineProcess, make: Make) -> None:
    with pytest.raises(Refused, match="deadlock") as refused:
        make("metrics")
    assert refused.value.status == 409
    assert timed(lambda: consumers.docker("volume", "ls")) < limit(8)


def test_p13_a_metrics_collector_is_published_by_force(make: Make) -> None:
    driver = make("metrics", names=["metrics/forced"], force=True)  # below a directory that no dockerd scans
    assert driver.post("/MetricsCollector.StartMetrics")[0] == 200


def test_networks_survive_a_killed_plugin(consumers: Consumers, publisher: EngineProcess, make: Make) -> None:
    driver, docker = make("network", "prefix=10.213.79"), consumers.docker
    docker("network", "create", f"--driver={driver.name}", f"--ipam-driver={driver.name}", "net2")
    try:
        kill_plugin(publisher, driver)
        started = time.monotonic()
        assert "1 packets received" in docker.run(script="ping -c 1 10.213.79.1", network="net2")
        assert time.monotonic() - started < limit(30)
    finally:
        docker("network", "rm", "net2")

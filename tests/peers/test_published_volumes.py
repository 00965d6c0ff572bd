"""Volume drivers that an engine publishes, with unmodified podman and dockerd."""

import json
import os
import signal
import socket
import time

import pytest

from peers.consumers import Consumers, Driver, Make, dockerd_on, kill_plugin, kill_proxy, plugin_name, timed
from support.consumers import Docker, Failed
from support.engines import EngineProcess, Refused
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc")]

QUICK = limit(8.0)
"""Seconds: less than the 15 that a dead socket costs dockerd, more than any answer takes."""


@pytest.mark.parametrize("name", ["vieux/sshfs:latest", "plain"])
def test_p01_names_with_slash_and_colon_work_in_both(consumers: Consumers, make: Make, name: str) -> None:
    driver = make("volume", names=[name])
    for command in consumers.commands:
        volume = f"p01-{type(command).__name__.lower()}"
        command("volume", "create", f"--driver={name}", volume)
        assert command.run("-v", f"{volume}:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
        assert (driver.data / volume / "a").read_text() == "one\n"
        assert volume in command("volume", "ls", "-q").split()
        command("volume", "rm", volume)


def test_p01_names_are_unique_and_shown(consumers: Consumers, publisher: EngineProcess, make: Make) -> None:
    first, second = make("volume", names=["mine", "also/mine:2"]), make("volume")
    shown = publisher.more(plugin_name(first))["Published"]
    assert shown["Names"] == ["mine", "also/mine:2"]
    with pytest.raises(Refused, match=plugin_name(first)) as refused:
        publisher.request_own("POST", plugin_name(second), "publish", {"names": ["mine"]})
    assert refused.value.status == 409
    assert second.socket.exists()


def test_p01_a_publication_outlives_disable_and_an_engine(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver = make("volume")
    publisher.disable(plugin_name(driver))
    publisher.end()
    publisher.start()
    publisher.enable(plugin_name(driver))
    consumers.podman("volume", "create", f"--driver={driver.name}", "p01-kept")
    assert (driver.data / "p01-kept").exists()
    consumers.podman("volume", "rm", "p01-kept")


def test_p02_a_live_socket_of_another_program_is_refused(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver = make("volume")
    path = consumers.machine.sockets / "taken.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Refused, match=str(os.getpid())) as refused:
            publisher.request_own("POST", plugin_name(driver), "publish", {"names": ["taken"]})
        assert refused.value.status == 409
        assert path.is_socket()
    # now it is a file of no process
    publisher.request_own("POST", plugin_name(driver), "publish", {"names": ["taken"]})
    assert json.loads(Driver("taken", path, driver.data).post("/VolumeDriver.List")[1])["Volumes"] == []
    assert not driver.socket.exists(), "a publication replaces the one before"


def test_p03_listing_volumes_is_quick_while_a_plugin_is_disabled(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver = make("volume", names=["p03"])
    consumers.podman("volume", "create", "--driver=p03", "p03-a")
    consumers.docker("volume", "create", "--driver=p03", "p03-b")
    publisher.disable(plugin_name(driver))
    assert timed(lambda: consumers.podman("volume", "ls")) < QUICK
    assert timed(lambda: consumers.docker("volume", "ls")) < QUICK
    started = time.monotonic()
    with pytest.raises(Failed, match="disabled"):
        consumers.podman.run("-v", "p03-a:/mnt", script="echo no >/mnt/a")
    assert time.monotonic() - started < QUICK
    publisher.enable(plugin_name(driver))
    for command, volume in zip(consumers.commands, ("p03-a", "p03-b"), strict=True):
        assert command.run("-v", f"{volume}:/mnt", script="echo yes >/mnt/a; cat /mnt/a") == "yes\n"
        command("volume", "rm", volume)


def test_p03_the_socket_of_a_disabled_plugin_without_podman_volumes_is_removed(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver = make("volume", names=["p03-docker"])
    consumers.docker("volume", "create", "--driver=p03-docker", "p03-c")
    publisher.disable(plugin_name(driver))
    assert not driver.socket.exists()
    assert timed(lambda: consumers.docker("volume", "ls")) < QUICK
    publisher.enable(plugin_name(driver))
    assert driver.socket.exists()
    assert consumers.docker.run("-v", "p03-c:/mnt", script="echo yes >/mnt/a; cat /mnt/a") == "yes\n"
    consumers.docker("volume", "rm", "p03-c")


def test_p03_no_dead_socket_is_left_after_everything_was_killed(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    make("volume", names=["p03-killed"])
    # a dockerd of its own: one that has used drivers which were removed since waits 15 s for each of them
    with dockerd_on(consumers.machine, name="p03-dockerd") as peer:
        peer.wait_until_serving()
        docker = Docker(consumers.machine, peer.address)
        docker("volume", "create", "--driver=p03-killed", "p03-k")
        publisher.end(signal.SIGKILL)
        kill_proxy(publisher)
        publisher.start()
        assert timed(lambda: docker("volume", "ls")) < QUICK
        assert timed(lambda: consumers.podman("volume", "ls")) < QUICK
        docker("volume", "rm", "p03-k")


def test_p04_no_command_fails_while_a_plugin_restarts(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver = make("volume")
    for number, command in enumerate(consumers.commands):
        volume = f"p04-{number}"
        kill_plugin(publisher, driver)
        command("volume", "create", f"--driver={driver.name}", volume)
        publisher.until(plugin_name(driver), "ready")
        kill_plugin(publisher, driver)
        assert command.run("-v", f"{volume}:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
        command("volume", "rm", volume)
    publisher.until(plugin_name(driver), "ready")


@pytest.mark.parametrize("options", [("activate=404",), ("types=LoggingDriver",)])
def test_p05_what_a_plugin_answers_to_activate_does_not_matter(
    consumers: Consumers, make: Make, options: tuple[str, ...]
) -> None:
    driver = make("volume", *options)
    for command in consumers.commands:
        command("volume", "create", f"--driver={driver.name}", "p05")
        assert command.run("-v", "p05:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
        command("volume", "rm", "p05")
    assert "/Plugin.Activate" not in driver.calls()


def test_p06_a_plugin_that_demands_json_gets_it(consumers: Consumers, make: Make) -> None:
    driver = make("volume", "strict")
    (driver.data / "p06").mkdir()
    consumers.podman("volume", "reload")  # List with an empty body
    assert consumers.podman.run("-v", "p06:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
    consumers.podman("volume", "rm", "p06")
    words = ("-v", "p06-d:/mnt", f"--volume-driver={driver.name}")
    assert consumers.docker.run(*words, script="echo one >/mnt/a; cat /mnt/a") == "one\n"
    consumers.docker("volume", "rm", "p06-d")


@pytest.mark.parametrize(
    ("options", "cause"), [(("errors=200",), "no space left"), (("answer=html",), "<html>/VolumeDriver.Create")]
)
def test_p08_a_failed_call_fails_the_command(
    consumers: Consumers, make: Make, options: tuple[str, ...], cause: str
) -> None:
    driver = make("volume", *options)
    for command in consumers.commands:
        with pytest.raises(Failed, match=cause):
            command("volume", "create", f"--driver={driver.name}", "--opt=fail=no space left", "p08")


def test_p08_podman_makes_no_container_without_its_volume(consumers: Consumers, make: Make) -> None:
    driver = make("volume", "errors=200", "how=bind")
    consumers.podman("volume", "create", f"--driver={driver.name}", "p08-m")
    (driver.data / "p08-m").rmdir()
    with pytest.raises(Failed, match="no volume p08-m"):
        consumers.podman.run("-v", "p08-m:/mnt", script="echo never")
    (driver.data / "p08-m").mkdir()
    consumers.podman("volume", "rm", "p08-m")


def test_p09_a_hung_plugin_delays_no_other(consumers: Consumers, make: Make) -> None:
    hung = make("volume", "hang=/VolumeDriver.Create", time_limits={"VolumeDriver.Create": 2})
    other = make("volume")
    for command in consumers.commands:
        started = time.monotonic()
        with pytest.raises(Failed, match=r"Create|2 s|answer"):
            command("volume", "create", f"--driver={hung.name}", "p09-hung")
        assert time.monotonic() - started < QUICK
        command("volume", "create", f"--driver={other.name}", "p09")
        command("volume", "rm", "p09")

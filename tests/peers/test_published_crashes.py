"""What is killed while podman and dockerd use volumes, and what they must not lose."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peers.consumers import Consumers, Driver, Make, kill_plugin, kill_proxy, plugin_name
from support import leftovers
from support.consumers import IMAGE, Docker, Failed, Podman
from support.engines import EngineProcess
from support.foreground import wait_until
from support.limits import limit

pytestmark = [
    pytest.mark.real,
    pytest.mark.extensive,
    pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc"),
]

Command = Podman | Docker


@pytest.fixture(params=["podman", "docker"])
def command(request: pytest.FixtureRequest, consumers: Consumers) -> Command:
    """The commands of one consumer."""
    return consumers.podman if request.param == "podman" else consumers.docker


@contextmanager
def volume_in_use(command: Command, driver: Driver, name: str) -> Iterator[str]:
    """A volume that a container has; the container's name. Both are removed at the end."""
    container = f"user-of-{name}"
    command("volume", "create", f"--driver={driver.name}", name)
    words = ("--network=none", f"--name={container}", "-v", f"{name}:/mnt", IMAGE, "sleep", "1000")
    command("run", "-d", *words)
    try:
        yield container
    finally:
        command("rm", "--force", container)
        command("volume", "rm", name)


def replayed(house: EngineProcess, driver: Driver, volume: str) -> bool:
    """Whether all that is outstanding is mounted again, for a plugin that was started again."""
    more = house.more(plugin_name(driver))
    return more["State"] == "ready" and any(each["Volume"] == volume and not each["Problem"] for each in more["Mounts"])


def mount_points(consumers: Consumers) -> list[str]:
    return [each for each in leftovers.mounts_below(consumers.machine.directory) if "propagated-mount/" in each]


def test_p11_a_killed_file_system_serves_new_containers_again(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume")
    with volume_in_use(command, driver, "p11") as container:
        command("exec", container, "sh", "-c", "echo before >/mnt/a")
        before = publisher.more(plugin_name(driver))
        kill_plugin(publisher, driver)
        publisher.until_restarted(plugin_name(driver), before["Restarts"] + 1)
        script = "cat /mnt/a; echo after >/mnt/b; cat /mnt/b"
        assert command.run("-v", "p11:/mnt", script=script) == "before\nafter\n"
        assert (driver.data / "p11/b").read_text() == "after\n"
        check_running_container(command, container)
        (mount,) = publisher.more(plugin_name(driver))["Mounts"]
        assert (mount["Volume"], mount["Problem"], mount["Stale"]) == ("p11", "", True)
    assert driver.mounts() == set()
    assert mount_points(consumers) == []
    assert publisher.more(plugin_name(driver))["Mounts"] == []


def check_running_container(command: Command, container: str) -> None:
    """podman's mounts are private, and keep the dead one; those of dockerd are slaves, and may get the one upon it."""
    try:
        seen = command("exec", container, "cat", "/mnt/a")
    except Failed as error:
        seen = error.output
    assert "not connected" in seen or (seen == "before\n" and isinstance(command, Docker))


def test_p11_mounts_are_made_again_after_everything_was_killed(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume")
    with volume_in_use(command, driver, "p11-all"):
        pid = publisher.more(plugin_name(driver))["Pid"]
        publisher.end(signal.SIGKILL)
        kill_proxy(publisher)
        os.kill(pid, signal.SIGKILL)
        publisher.start()
        publisher.wait_until(lambda: replayed(publisher, driver, "p11-all"), "mounted again")
        assert command.run("-v", "p11-all:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
        assert (driver.data / "p11-all/a").read_text() == "one\n"
    assert driver.mounts() == set()
    assert mount_points(consumers) == []


def test_p11a_no_container_writes_to_the_hosts_disk(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume")
    with volume_in_use(command, driver, "p11a") as container:
        (mount,) = publisher.more(plugin_name(driver))["Mounts"]
        publisher.disable(plugin_name(driver), force=True)
        assert os.path.ismount(mount["Path"])
        with pytest.raises(Failed):
            command.run("-v", "p11a:/mnt", script="echo lost >/mnt/lost")
        publisher.enable(plugin_name(driver))
        publisher.wait_until(lambda: replayed(publisher, driver, "p11a"), "mounted again")
        assert command.run("-v", "p11a:/mnt", script="echo found >/mnt/found; ls /mnt") == "found\n"
        assert [path.name for path in (driver.data / "p11a").iterdir()] == ["found"]
        with pytest.raises(Failed):
            command("exec", container, "sh", "-c", "echo lost >/mnt/lost")
    assert mount_points(consumers) == []


def test_p11a_containers_that_start_during_the_restart_write_to_the_volume_or_fail(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume", "listen=1500")
    written: list[str] = []
    with volume_in_use(command, driver, "p11w"):
        kill_plugin(publisher, driver)
        started = time.monotonic()
        while time.monotonic() - started < 3:
            name = f"f{len(written)}"
            try:
                command.run("-v", "p11w:/mnt", script=f"echo {name} >/mnt/{name}")
            except Failed:
                continue
            written.append(name)
        publisher.until(plugin_name(driver), "ready")
        assert sorted(path.name for path in (driver.data / "p11w").iterdir()) == sorted(written)
    assert mount_points(consumers) == []


def test_p12_a_plugin_in_use_is_not_disabled(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume")
    consumer = "podman" if isinstance(command, Podman) else "dockerd"
    with (
        volume_in_use(command, driver, "p12"),
        pytest.raises(Exception, match=rf"in use by.*{consumer}.*volume p12, 1 mount") as refused,
    ):
        publisher.disable(plugin_name(driver))
    assert getattr(refused.value, "status", 0) == 409
    publisher.disable(plugin_name(driver))


def test_p07_a_mount_that_is_not_propagated_is_refused(consumers: Consumers, make: Make, command: Command) -> None:
    driver = make("volume", "how=bind", "at=/volumes", fields={"propagatedMount": ""})
    command("volume", "create", f"--driver={driver.name}", "p07")
    with pytest.raises(Failed, match=r"/volumes/p07") as refused:
        command.run("-v", "p07:/mnt", script="echo lost >/mnt/lost")
    assert "propagatedMount" in refused.value.output
    assert driver.mounts() == set()
    command("volume", "rm", "p07")
    assert not list(driver.data.rglob("lost"))


def test_p07_a_path_below_a_bind_mount_is_its_source(consumers: Consumers, make: Make, command: Command) -> None:
    driver = make("volume", "how=none")
    command("volume", "create", f"--driver={driver.name}", "p07-bind")
    assert command.run("-v", "p07-bind:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
    assert (driver.data / "p07-bind/a").read_text() == "one\n"
    command("volume", "rm", "p07-bind")


def test_p07_a_path_in_the_root_is_refused_or_stays(consumers: Consumers, make: Make, command: Command) -> None:
    driver = make("volume", "how=none", "at=/volumes")
    command("volume", "create", f"--driver={driver.name}", "p07-root")
    try:
        with pytest.raises(Failed, match=r"/volumes/p07-root"):
            command.run("-v", "p07-root:/mnt", script="echo one >/mnt/a")
    finally:
        command("volume", "rm", "p07-root")


def test_p18_the_proxy_is_started_again_on_the_same_names(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume")
    with volume_in_use(command, driver, "p18"):
        killed = kill_proxy(publisher)
        assert command.run("-v", "p18:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
        command("volume", "create", f"--driver={driver.name}", "p18-new")
        command("volume", "rm", "p18-new")
        wait_until(lambda: int((publisher.exec_root / "proxy/pid").read_text()) != killed, "another proxy", limit(5))
        assert len(publisher.more(plugin_name(driver))["Mounts"]) == 1
    assert driver.mounts() == set()


def test_p11_volumes_are_served_while_there_is_no_engine(
    consumers: Consumers, publisher: EngineProcess, make: Make, command: Command
) -> None:
    driver = make("volume")
    publisher.end(signal.SIGKILL)
    try:
        with volume_in_use(command, driver, "p11-alone"):
            assert command.run("-v", "p11-alone:/mnt", script="echo one >/mnt/a; cat /mnt/a") == "one\n"
            publisher.start()
            (mount,) = publisher.more(plugin_name(driver))["Mounts"]
            assert mount["Volume"] == "p11-alone"
    finally:
        if publisher.child is None:
            publisher.start()
    assert publisher.more(plugin_name(driver))["Mounts"] == []


@pytest.mark.parametrize("call", ["Get", "Unmount"])
def test_p11_a_volume_can_be_removed_although_its_unmount_waited_while_everything_was_killed(
    consumers: Consumers, publisher: EngineProcess, make: Make, call: str
) -> None:
    """dockerd forgets a mount whatever becomes of its Unmount, and of the Get with which it begins one.

    It repeats a call that broke without its body. A soak had seen such a volume: the driver refused to remove it for
    ever, as a container that did not exist used it.
    """
    driver, docker = make("volume", "how=fuse"), consumers.docker
    docker("volume", "create", f"--driver={driver.name}", "waits")
    docker("run", "-d", "--network=none", "--name=user", "-v", "waits:/mnt", IMAGE, "sleep", "1000")
    plugin = publisher.more(plugin_name(driver))["Pid"]
    publisher.end(signal.SIGKILL)
    os.kill(plugin, signal.SIGKILL)
    proxy = publisher.exec_root / "proxy"
    user = Path("/proc", docker("inspect", "--format={{.State.Pid}}", "user").strip())
    removal = threading.Thread(target=docker, args=("rm", "--force", "user"))
    removal.start()
    if call == "Get":
        wait_until(lambda: not user.exists(), "the container has exited", limit(30))  # the Get waits for 3 s
    else:
        wait_until(
            lambda: any(b'"is_returned":true' in each.read_bytes() for each in proxy.glob("ledger/*.json")),
            "the Unmount waits for the plugin",
            limit(30),
        )
    kill_proxy(publisher)
    removal.join()
    publisher.start()
    publisher.until(plugin_name(driver), "ready")
    docker("volume", "rm", "waits")
    assert driver.mounts() == set()
    assert mount_points(consumers) == []

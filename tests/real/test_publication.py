"""Published plugins of a real engine: names, sockets, mounts, while each of its processes is killed in turn."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moorage.host.mounts import mount_state
from moorage.host.sockets import accepts_connections
from moorage.proxy.core.calls import wait_limit
from support.drivers import create_driver, driver_config, write_driver
from support.engines import EngineProcess, Refused, config, engine
from support.foreground import wait_until
from support.limits import limit
from support.publication import Consumer, Driver, guard_pid, proxy_pid
from support.service_manager import service_manager

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine for tests that need no other."""
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def driver(house: EngineProcess, tmp_path: Path) -> Driver:
    return Driver(house, tmp_path)


def kill_plugin(driver: Driver) -> None:
    """Kill it, and wait until it is ready again with what was mounted."""
    restarts = driver.house.more(driver.name)["Restarts"]
    os.kill(driver.pid, signal.SIGKILL)
    driver.house.until_restarted(driver.name, restarts + 1)


def until_replayed(driver: Driver, path: Path) -> None:
    driver.house.wait_until(lambda: mount_state(path) == "live", "the volume is mounted again")


def until_in_use(driver: Driver) -> None:
    driver.house.wait_until(lambda: in_use(driver), "the engine knows the mounts")


def in_use(driver: Driver) -> list[str]:
    return [each["Owner"] for each in driver.house.more(driver.name)["Holders"]]


# names


@pytest.mark.parametrize("how", ["unpublish", "disable", "remove", "other name"])
def test_case_306_the_directories_of_a_name_with_slashes_exist_as_long_as_its_socket(
    shared_house: EngineProcess, how: str
) -> None:
    """docker's names have slashes: vieux/sshfs was published, and /run/docker/plugins/vieux stayed for ever."""
    house, name = shared_house, "vieux/sshfs"
    house.create(name, config())
    house.enable(name)
    house.request_own("POST", name, "publish", {"Names": [name, f"{name}2", "a/b/c"]})
    (house.published / "a/other").touch()
    assert len(list(house.published.rglob("*.sock"))) == 3
    if how == "unpublish":
        house.request_own("POST", name, "unpublish", {})
    elif how == "other name":
        house.request_own("POST", name, "publish", {"Names": ["flat"]})
    elif how == "disable":
        house.disable(name)
    house.wait_until(lambda: how == "remove" or not list(house.published.rglob("*/*.sock")), "the sockets are removed")
    house.remove(name, force=True)
    left = {str(each.relative_to(house.published)) for each in house.published.rglob("*")}
    assert left == {"a", "a/other"}, "a directory with something else in it stays"


def test_p01_a_plugin_is_published_by_its_own_name_and_by_others(house: EngineProcess, driver: Driver) -> None:
    assert driver.socket == house.published / "v:latest.sock"
    assert driver.call("Plugin.Activate") == (200, {"Implements": ["VolumeDriver"]})
    status = os.stat(driver.socket)
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, 0)
    driver.publish("vieux/sshfs:latest", "other", Group="adm")
    assert not driver.socket.exists()
    for name in ("vieux/sshfs:latest", "other"):
        assert Consumer(house.published / f"{name}.sock").call("VolumeDriver.List")[0] == 200
    assert os.stat(house.published / "other.sock").st_mode & 0o777 == 0o660
    assert house.more("v")["Published"]["Names"] == ["vieux/sshfs:latest", "other"]


def test_p01_names_stay_over_a_disable_an_upgrade_and_a_reboot(house: EngineProcess, driver: Driver) -> None:
    house.disable("v")
    assert house.more("v")["Published"]["Names"] == ["v:latest"]
    assert not driver.socket.exists(), "no consumer has volumes of it"
    house.enable("v")
    assert driver.call("VolumeDriver.List")[0] == 200
    house.down()
    assert not driver.socket.exists()
    house.start()
    house.until("v", "ready")
    assert driver.call("VolumeDriver.List")[0] == 200


def test_p02_a_name_of_another_plugin_or_program_is_refused(
    house: EngineProcess, driver: Driver, tmp_path: Path
) -> None:
    other = Driver(house, tmp_path, "w")
    with pytest.raises(Refused, match="409: cannot publish plugin w:latest as v:latest: plugin v:latest has that name"):
        other.publish("v:latest")
    path = house.published / "foreign.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(Refused, match=rf"409: .* as foreign: another program, pid {os.getpid()} "):
            other.publish("foreign")
    (house.published / "spec.spec").write_text("unix:///x")
    with pytest.raises(Refused, match=r"409: .*spec\.spec says where"):
        other.publish("spec")
    assert house.more("w")["Published"]["Names"] == ["w:latest"], "what was refused has changed nothing"
    assert other.call("VolumeDriver.List")[0] == 200
    other.publish("foreign")  # that program has exited
    assert Consumer(path).call("VolumeDriver.List")[0] == 200


def test_p13_a_metrics_collector_is_refused_with_the_reason(house: EngineProcess, tmp_path: Path) -> None:
    create_driver(house, "m", driver_config("metrics", tmp_path))
    with pytest.raises(Refused, match="409: cannot publish plugin m:latest: every dockerd deadlocks"):
        house.request_own("POST", "m", "publish", {})
    house.request_own("POST", "m", "publish", {"Force": True})
    assert Consumer(house.published / "m:latest.sock").call("Plugin.Activate")[0] == 200


def test_p13_a_published_log_driver_sees_the_fifos_of_the_host(house: EngineProcess, tmp_path: Path) -> None:
    create_driver(house, "l", driver_config("log", tmp_path))
    inside = Path(f"/proc/{house.more('l')['Pid']}/root/run/docker/logging")
    assert not inside.exists()
    more = house.request_own("POST", "l", "publish", {})["Moorage"]
    assert more["LogDirectory"] == "/run/docker/logging"
    inside = Path(f"/proc/{house.more('l')['Pid']}/root/run/docker/logging")
    assert os.path.samefile(inside, "/run/docker/logging")
    house.disable("l")
    house.enable("l")
    inside = Path(f"/proc/{house.more('l')['Pid']}/root/run/docker/logging")
    assert os.path.samefile(inside, "/run/docker/logging")


# who uses it


def test_p12_a_plugin_whose_volumes_are_mounted_is_disabled_only_by_force(house: EngineProcess, driver: Driver) -> None:
    path = driver.create_and_mount("data")
    driver.mount("data", "two")
    (path / "file").write_text("kept at the back end")
    assert (driver.data / "data/file").read_text() == "kept at the back end"
    house.wait_until(lambda: len(driver.mounts) == 2, "the engine knows it")
    assert in_use(driver) == ["python: volume data, 2 mounts"]
    requests: list[Callable[[], object]] = [lambda: house.disable("v"), lambda: house.remove("v"), driver.unpublish]
    for request in requests:
        with pytest.raises(Refused, match=r"409: .*in use by .*: volume data, 2 mounts"):
            request()
    with pytest.raises(Refused, match=r"409: .*in use by"):
        driver.publish("other")
    driver.publish("v:latest", "more")
    driver.unmount("data", "two")
    driver.unmount("data")
    house.wait_until(lambda: not in_use(driver), "the engine knows that it is not used")
    house.disable("v")


def test_p11a_a_forced_disable_leaves_a_placeholder_until_the_volume_is_mounted_again(
    house: EngineProcess, driver: Driver
) -> None:
    path = driver.create_and_mount("data")
    (path / "file").write_text("x")
    until_in_use(driver)
    house.disable("v", force=True)
    assert mount_state(path) == "placeholder"
    with pytest.raises(OSError, match="Read-only"):
        (path / "lost").write_text("")
    house.enable("v")
    until_replayed(driver, path)
    assert (path / "file").read_text() == "x"
    driver.unmount("data")
    house.wait_until(lambda: driver.mounts_on_host() == [], "placeholder and mount are removed")


def test_p11a_p03_a_forced_removal_leaves_nothing(house: EngineProcess, driver: Driver) -> None:
    driver.create_and_mount("data")
    until_in_use(driver)
    house.remove("v", force=True)
    assert not driver.socket.exists()
    assert not (house.root / "plugins").exists() or not list((house.root / "plugins").iterdir())


def test_p03_a_forced_unpublish_forgets_the_mounts(house: EngineProcess, driver: Driver) -> None:
    driver.create_and_mount("data")
    until_in_use(driver)
    driver.unpublish(force=True)
    assert not driver.socket.exists()
    house.wait_until(lambda: not in_use(driver), "nothing is known of mounts")
    assert house.more("v")["Published"] is None


def test_v02_the_engine_mounts_volumes_by_its_own_calls(house: EngineProcess, tmp_path: Path) -> None:
    data = tmp_path / "volumes"
    data.mkdir()
    create_driver(house, "v", driver_config("volume", data))
    house.request_json("POST", "/moorage/v1/volumes", {"Name": "a", "Driver": "v"})
    mounted = house.request_json("POST", "/moorage/v1/volumes/a/mount", {"Owner": "unit.service"})
    Path(mounted["Mountpoint"], "file").write_text("x")
    assert (data / "a/file").read_text() == "x"
    house.wait_until(lambda: house.more("v")["Mounts"], "the engine knows it")
    assert [each["Consumer"] for each in house.more("v")["Mounts"]] == ["unit.service"]
    os.kill(proxy_pid(house), signal.SIGKILL)
    again = house.request_json("POST", "/moorage/v1/volumes/a/mount", {"Owner": "unit.service"})
    assert again == mounted
    house.request_json("POST", "/moorage/v1/volumes/a/unmount", {"Owner": "unit.service"})
    house.request_json("DELETE", "/moorage/v1/volumes/a")


# kill -9


def test_p03_the_sockets_work_without_an_engine_and_the_next_one_finds_the_proxy(
    house: EngineProcess, driver: Driver
) -> None:
    path, pid = driver.create_and_mount("data"), proxy_pid(house)
    house.end(signal.SIGKILL)
    assert driver.call("VolumeDriver.Get", {"Name": "data"})[0] == 200
    driver.mount("data", "two")
    house.start()
    house.until("v", "ready")
    assert proxy_pid(house) == pid
    house.wait_until(lambda: len(driver.mounts) == 2, "the engine knows what was mounted without it")
    assert mount_state(path) == "live"
    driver.unmount("data")
    driver.unmount("data", "two")


def test_p18_a_killed_proxy_listens_again_within_a_second_and_knows_its_mounts(
    house: EngineProcess, driver: Driver
) -> None:
    driver.create_and_mount("data")
    for _ in range(3):
        pid = proxy_pid(house)
        os.kill(pid, signal.SIGKILL)
        failed = 0
        while driver.try_call("VolumeDriver.Get", {"Name": "data"}) != 200:
            failed += 1
        assert failed <= 1
        assert proxy_pid(house) != pid
    assert [each["Volume"] for each in driver.mounts] == ["data"]
    driver.unmount("data")


def test_p11_a_killed_plugin_has_its_volumes_mounted_again(house: EngineProcess, driver: Driver) -> None:
    path = driver.create_and_mount("data")
    (path / "file").write_text("before")
    stop, plain = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if mount_state(path) == "none":
                plain.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(3):
            kill_plugin(driver)
            until_replayed(driver, path)
            assert (path / "file").read_text() == "before"
    finally:
        stop.set()
        watcher.join()
    assert not plain, "the mount point was a plain directory of the host"
    (mount,) = driver.mounts
    assert mount["Stale"], "who had it open sees the dead mount"
    driver.unmount("data")
    house.wait_until(lambda: driver.mounts_on_host() == [], "nothing is left below it")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("order", ["engine proxy plugin", "plugin engine proxy", "proxy plugin engine"])
def test_p11_p18_volumes_survive_the_death_of_all_processes(house: EngineProcess, driver: Driver, order: str) -> None:
    path = driver.create_and_mount("data")
    (path / "file").write_text("before")
    plugin = driver.pid
    for victim in order.split():
        if victim == "engine":
            house.end(signal.SIGKILL)
        elif victim == "proxy":
            os.kill(proxy_pid(house), signal.SIGKILL)
        else:
            os.kill(plugin, signal.SIGKILL)
    assert mount_state(path) != "none"
    house.start()
    house.until("v", "ready")
    until_replayed(driver, path)
    assert (path / "file").read_text() == "before"
    driver.unmount("data")


def test_p03_after_a_kill_of_everything_no_dead_socket_outlives_the_next_start(
    house: EngineProcess, driver: Driver
) -> None:
    house.end(signal.SIGKILL)
    os.kill(guard_pid(house), signal.SIGKILL)
    wait_until(lambda: not accepts_connections(driver.socket), "no process listens", limit(10))
    assert driver.socket.exists()
    house.start(wait=False)
    wait_until(lambda: driver.try_call("Plugin.Activate") == 200, "it listens", limit(30))


def test_p11_down_keeps_what_is_mounted_known(house: EngineProcess, driver: Driver) -> None:
    path = driver.create_and_mount("data")
    until_in_use(driver)
    house.down()
    assert not driver.socket.exists()
    assert mount_state(path) == "placeholder"
    house.start()
    house.until("v", "ready")
    until_replayed(driver, path)
    driver.unmount("data")


class Callers:
    """Threads that call a driver again and again until the block ends, and the statuses that they got.

    A slow machine may need longer than calls wait for a plugin. There, a failure that came after the whole wait is
    none.
    """

    def __init__(self, driver: Driver, *calls: tuple[str, dict[str, str]]) -> None:
        self.statuses: dict[str, list[int]] = {method: [] for method, _ in calls}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(driver, *each)) for each in calls]

    def _repeat(self, driver: Driver, method: str, body: dict[str, str]) -> None:
        path = f"/VolumeDriver.{method}"
        while not self._stop.is_set():
            began = time.monotonic()
            status = driver.try_call(path[1:], body)
            if status == 200 or limit(1) <= 1 or time.monotonic() - began < wait_limit(path):
                self.statuses[method].append(status)

    def failures(self) -> dict[str, list[int]]:
        """Statuses other than 200, by method."""
        found = {method: [each for each in got if each != 200] for method, got in self.statuses.items()}
        return {method: failed for method, failed in found.items() if failed or not self.statuses[method]}

    def __enter__(self) -> "Callers":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()


CALLS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Get", {"Name": "data"}),
    ("List", {}),
    ("Mount", {"Name": "data", "ID": "one"}),
)


def test_p04_calls_wait_while_the_plugin_is_restarted(house: EngineProcess, driver: Driver) -> None:
    driver.create_and_mount("data")
    with Callers(driver, *CALLS) as callers:
        kill_plugin(driver)
        house.request_own("POST", "v", "restart")
    assert callers.failures() == {}
    driver.unmount("data")


def test_p04_p12_calls_wait_while_the_plugin_is_upgraded(house: EngineProcess, driver: Driver, tmp_path: Path) -> None:
    package = tmp_path / "package"
    write_driver(package, driver_config("volume", driver.data, description="the next one"))
    upgrade = ("moorage", "--host", str(house.socket), "upgrade", "--restart", "-y", "v", str(package))

    def run(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", *upgrade, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)

    path = driver.create_and_mount("data")
    until_in_use(driver)
    refused = run()
    assert (refused.returncode, "volume data, 1 mount" in refused.stderr) == (1, True), refused.stderr
    (path / "file").write_text("content")
    with Callers(driver, *CALLS) as callers:
        done = run("--force")
    assert done.returncode == 0, done.stderr
    assert house.inspect("v")["Config"]["Description"] == "the next one"
    assert callers.failures() == {}
    assert (path / "file").read_text() == "content", "the next version mounts it again"
    driver.unmount("data")
    assert driver.mounts_on_host() == []


def test_a_plugin_proxy_that_hangs_is_replaced(house: EngineProcess, driver: Driver) -> None:
    pid = proxy_pid(house)
    os.kill(pid, signal.SIGSTOP)
    driver.publish("v:latest", "more")  # something is to be carried out
    assert proxy_pid(house) != pid
    assert driver.call("VolumeDriver.List")[0] == 200
    assert subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, text=True).stdout[:1] in ("", "Z")


# the start


def test_p16_ready_is_sent_when_the_published_sockets_listen(
    house: EngineProcess, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.down()
    with service_manager(f"@{house.exec_root}") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{house.exec_root}")
        house.start(wait=False)
        manager.until("READY", "1")
        assert accepts_connections(driver.socket)
        assert driver.call("VolumeDriver.List")[0] == 200


def test_p16_an_engine_whose_proxy_cannot_start_runs_plugins_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(tmp_path, timeouts={"announce": limit(5.0)}) as house:
        driver = Driver(house, tmp_path)
        house.down()
        (house.exec_root).mkdir(exist_ok=True)
        (house.exec_root / "proxy").write_text("in the way")
        with service_manager(f"@{house.exec_root}") as manager:
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{house.exec_root}")
            house.start(wait=False)
            manager.until("READY", "1")
        house.until("v", "ready")
        house.wait_until(
            lambda: "cannot start the plugin proxy" in "".join(house.info()["Moorage"]["Notices"]), "it is reported"
        )
        with pytest.raises(Refused, match="503: cannot publish plugin v:latest: cannot start the plugin proxy"):
            driver.publish("v:latest", "more")
        (house.exec_root / "proxy").unlink()
        house.wait_until(lambda: driver.try_call("VolumeDriver.List") == 200, "the proxy is started")
        assert not house.info()["Moorage"]["Notices"]


def test_p02_of_two_plugins_that_want_a_name_at_once_one_gets_it(house: EngineProcess, tmp_path: Path) -> None:
    for name in "ab":
        create_driver(house, name, driver_config("volume", tmp_path))
    with ThreadPoolExecutor(2) as pool:
        requests = [
            pool.submit(lambda name=name: house.request_own("POST", name, "publish", {"Names": ["same"]}))  # type: ignore[misc]
            for name in "ab"
        ]
        failures = [str(each.exception()) for each in requests if each.exception() is not None]
    (failure,) = failures
    assert failure.startswith("409: cannot publish plugin ")
    assert Consumer(house.published / "same.sock").call("VolumeDriver.List")[0] == 200

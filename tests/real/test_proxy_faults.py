"""The plugin proxy when it, its plugin or its engine is killed: what consumers see, and what is mounted afterwards."""

import json
import os
import random
import socket
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from moorage.host.mounts import is_mount_point, mount_placeholder, mount_state
from moorage.proxy.checks import verify
from moorage.proxy.core.actions import EXITED, Verify
from support.limits import limit
from support.proxy_process import Plugin, ProxyProcess, call, published, wait_until

pytestmark = pytest.mark.real

MOUNT, UNMOUNT, GET, PATH, CREATE = (f"VolumeDriver.{each}" for each in ("Mount", "Unmount", "Get", "Path", "Create"))


def restart(proxy: ProxyProcess, plugin: Plugin, *, placeholders: bool = True) -> None:
    """What the engine does after a plugin was killed."""
    plugin.kill()
    proxy.publish(plugin, state="starting")
    for mount in proxy.plugin_news().mounts if placeholders else ():
        subprocess.run(["umount", mount.path], check=False, capture_output=True)  # a dead mount is hidden likewise
        if mount.mount_point:
            descriptor = os.open(mount.path, os.O_PATH)
            mount_placeholder(descriptor)
            os.close(descriptor)
    plugin.start()
    proxy.publish(plugin)


# ---- P04


def test_p04_a_restart_fails_no_call_that_may_be_repeated(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor(8) as threads:
        stop = threading.Event()

        def repeat() -> list[int]:
            found = []
            while not stop.is_set():
                found.append(call(path, GET, Name="a")[0])
            return found

        running = [threads.submit(repeat) for _ in range(4)]
        for _ in range(2):
            time.sleep(0.3)
            restart(proxy, plugin)
        stop.set()
        found = [status for each in running for status in each.result()]
        assert len(found) > 4
        assert set(found) == {200}


@pytest.mark.parametrize("method", [GET, MOUNT])
def test_p04_a_call_under_way_when_the_plugin_is_killed_is_sent_again(tmp_path: Path, method: str) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor() as threads:
        running = threads.submit(call, path, method, Name="slow", ID="1")
        wait_until(lambda: plugin.calls(method))
        restart(proxy, plugin)
        assert running.result()[0] == 200
        assert len(plugin.calls(method)) == 2


def test_p04_a_call_that_may_not_be_repeated_fails_clearly(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor() as threads:
        running = threads.submit(call, path, CREATE, Name="slow")
        wait_until(lambda: plugin.calls(CREATE))
        restart(proxy, plugin)
        status, answer = running.result()
        assert status == 500
        assert "vol:latest: it exited before it answered" in answer["Err"]
        assert len(plugin.calls(CREATE)) == 1


def test_p04_the_exit_of_a_plugin_is_noticed_without_the_engine(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor() as threads:
        proxy.disconnect()
        plugin.kill()
        start = time.monotonic()
        status, answer = call(path, GET, Name="a")
        assert (status, "is starting" in answer["Err"]) == (500, True)
        assert 2.9 < time.monotonic() - start < limit(5)
        waiting = threads.submit(call, path, MOUNT, Name="a", ID="1")
        proxy.connect()
        plugin.start()
        proxy.publish(plugin)
        assert waiting.result()[0] == 200


def test_p04_a_plugin_that_does_not_accept_yet_gets_the_call_when_it_does(tmp_path: Path) -> None:
    with published(tmp_path) as (_, plugin, path), ThreadPoolExecutor() as threads:
        hidden = plugin.directory / "hidden"
        (plugin.directory / "plugin.sock").rename(hidden)
        waiting = threads.submit(call, path, CREATE, Name="a")
        time.sleep(0.2)
        assert not waiting.done()
        hidden.rename(plugin.directory / "plugin.sock")
        assert waiting.result()[0] == 200


def test_p04_a_check_of_paths_says_that_the_plugin_has_exited(tmp_path: Path) -> None:
    """Its mounts are dead before the kernel reports its exit."""
    with subprocess.Popen(["sleep", "1000"]) as plugin:
        request = Verify(1, plugin.pid, str(tmp_path / "no"), str(tmp_path), str(tmp_path), needs_mount=False)
        killer = threading.Timer(0.1, plugin.kill)
        assert "cannot open" in verify(request)[0]
        killer.start()
        assert verify(request) == (EXITED, "")
        assert verify(request) == (EXITED, ""), "a zombie, or gone"


# ---- P11


def test_p11_mounts_are_made_again_before_calls_that_wait_and_placeholders_go_at_last(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        outside = plugin.directory / "mnt/fs"
        for mount in ("1", "2"):
            call(path, MOUNT, Name="fs", ID=mount)
        proxy.wait_news(lambda news: len(news.mounts) == 2)
        subprocess.run(["umount", outside], check=True)  # the test's plugin mounts for each id
        restart(proxy, plugin)
        assert call(path, PATH, Name="fs")[0] == 200
        methods = [each["call"].rpartition(".")[2] for each in plugin.calls()]
        assert methods == ["Mount", "Mount", "Mount", "Mount", "Path"]
        assert (outside / "data").read_text() == "fs"
        news = proxy.wait_news(lambda news: all(each.is_stale for each in news.mounts))
        assert [each.problem for each in news.mounts] == ["", ""]
        assert sum(each.startswith("replay ") for each in proxy.reports) == 2
        for mount in ("1", "2"):
            assert call(path, UNMOUNT, Name="fs", ID=mount)[0] == 200
        assert mount_state(outside) == "none"
        assert os.listdir(outside) == []
        outside.rmdir()


def test_p11a_a_replay_that_mounts_nothing_leaves_the_placeholder_until_it_succeeds(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        outside = plugin.directory / "mnt/fs"
        call(path, MOUNT, Name="fs", ID="1")
        proxy.wait_news(lambda news: news.mounts)
        (plugin.directory / "no-mount").touch()
        restart(proxy, plugin)
        problem = proxy.wait_news(lambda news: news.mounts[0].problem).mounts[0].problem
        assert "mounted nothing" in problem
        with pytest.raises(OSError, match="Read-only"):
            (outside / "file").touch()
        (plugin.directory / "no-mount").unlink()
        proxy.wait_news(lambda news: not news.mounts[0].problem)
        assert (outside / "data").read_text() == "fs"
        assert any(each.startswith("replay-failed") for each in proxy.reports)


def test_p11a_the_placeholder_of_a_plugin_that_was_disabled_goes_with_its_unmount(tmp_path: Path) -> None:
    with published(tmp_path, while_disabled="answer") as (proxy, plugin, path):
        outside = plugin.directory / "mnt/fs"
        call(path, MOUNT, Name="fs", ID="1")
        proxy.wait_news(lambda news: news.mounts)
        plugin.kill()
        proxy.publish(plugin, state="disabled", while_disabled="answer")
        subprocess.run(["umount", outside], check=True)
        descriptor = os.open(outside, os.O_PATH)
        mount_placeholder(descriptor)
        os.close(descriptor)
        assert call(path, UNMOUNT, Name="fs", ID="1")[0] == 200
        assert not is_mount_point(outside)


def test_p03_a_removed_plugin_leaves_no_placeholder_and_no_ledger(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        outside = plugin.directory / "mnt/fs"
        call(path, MOUNT, Name="fs", ID="1")
        assert len(list((proxy.state / "ledger").iterdir())) == 1
        subprocess.run(["umount", outside], check=True)
        descriptor = os.open(outside, os.O_PATH)
        mount_placeholder(descriptor)
        os.close(descriptor)
        proxy.send()
        wait_until(lambda: not is_mount_point(outside))
        assert list((proxy.state / "ledger").iterdir()) == []


def test_p11_logs_are_started_again_with_what_they_were_started_with(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        for number in range(3):
            call(path, "LogDriver.StartLogging", File=f"/run/docker/logging/{number}", Secret="of the container")
        call(path, "LogDriver.StopLogging", File="/run/docker/logging/1")
        proxy.wait_news(lambda news: [each[-1] for each in news.log_files] == ["0", "2"])
        restart(proxy, plugin)
        wait_until(lambda: len(plugin.calls("StartLogging")) == 5)
        bodies = [json.loads(each["body"]) for each in plugin.calls("StartLogging")[3:]]
        assert sorted(each["File"][-1] for each in bodies) == ["0", "2"]
        assert all(each["Secret"] == "of the container" for each in bodies)


def test_p11_a_mount_is_known_after_the_proxy_was_killed(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        call(path, MOUNT, Name="fs", ID="1")
        proxy.kill_all()
        proxy.start()
        assert proxy.plugin_news().mounts[0].path == str(plugin.directory / "mnt/fs")  # before any tables
        proxy.publish(plugin)
        assert call(path, GET, Name="a")[0] == 200
        assert len(plugin.calls(MOUNT)) == 1
        proxy.kill()
        proxy.start()
        restart(proxy, plugin)
        wait_until(lambda: len(plugin.calls(MOUNT)) == 2)
        assert call(path, UNMOUNT, Name="fs", ID="1")[0] == 200


def test_p11_what_was_under_way_when_the_proxy_was_killed_is_put_right(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor() as threads:
        running: Future[Any] = threads.submit(call, path, MOUNT, Name="slow", ID="1")
        wait_until(lambda: plugin.calls(MOUNT))
        proxy.kill()
        with pytest.raises((OSError, HTTPException)):
            running.result()
        proxy.start()
        proxy.publish(plugin)
        wait_until(lambda: plugin.calls(UNMOUNT))  # no consumer received it
        call(path, MOUNT, Name="slow", ID="2")
        running = threads.submit(call, path, UNMOUNT, Name="slow", ID="2")
        wait_until(lambda: len(plugin.calls(UNMOUNT)) == 2)
        proxy.kill()
        with pytest.raises((OSError, HTTPException)):
            running.result()
        proxy.start()
        proxy.publish(plugin)
        wait_until(lambda: len(plugin.calls(MOUNT)) == 3)  # its consumer takes it for mounted
        assert [each.id for each in proxy.plugin_news().mounts] == ["2"]


def test_p11_a_damaged_ledger_stops_nothing(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        call(path, MOUNT, Name="a", ID="1")
        proxy.kill_all()
        [ledger] = (proxy.state / "ledger").iterdir()
        ledger.write_bytes(b"{nonsense")
        proxy.start()
        proxy.publish(plugin)
        assert call(path, MOUNT, Name="a", ID="2")[0] == 200
        assert "which is ignored" in proxy.log()


def test_p11_without_room_for_its_record_a_mount_fails(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        ledger = proxy.state / "ledger"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "full", ledger], check=True)
        try:
            status, answer = call(path, MOUNT, Name="a", ID="1")
            assert (status, "cannot be saved" in answer["Err"]) == (500, True)
            assert call(path, GET, Name="a")[0] == 200
        finally:
            subprocess.run(["umount", "-l", ledger], check=True)
        assert call(path, MOUNT, Name="a", ID="1")[0] == 200


# ---- P18


def test_p18_connections_wait_in_the_queue_while_the_proxy_is_started_again(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor(20) as threads:
        inode = os.stat(path).st_ino
        proxy.kill_all()  # with the guard; the engine has the sockets
        waiting = [threads.submit(call, path, GET, Name="a") for _ in range(10)]
        time.sleep(0.2)
        assert not any(each.done() for each in waiting)
        start = time.monotonic()
        proxy.start()
        proxy.send(plugin.table(proxy.published))
        assert [each.result()[0] for each in waiting] == [200] * 10
        assert time.monotonic() - start < limit(2)
        assert os.stat(path).st_ino == inode


def test_p18_a_listener_that_is_of_no_plugin_any_more_is_closed_and_its_file_removed(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        proxy.kill_all()
        proxy.start()
        proxy.send()
        assert not os.path.lexists(path)


def test_p18_a_listener_whose_file_is_another_programs_is_not_adopted(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), socket.socket(socket.AF_UNIX) as other:
        proxy.kill_all()
        os.unlink(path)
        other.bind(path)
        other.listen()
        proxy.start()
        news = proxy.send(plugin.table(proxy.published))
        assert f"process {os.getpid()}" in news.plugins[0].socket_problems[path]
        proxy.send()
        assert os.path.lexists(path)


def test_p03_after_everything_was_killed_the_next_proxy_replaces_the_dead_sockets(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        proxy.kill_all()
        proxy.close_listeners()  # as the engine was killed, too
        assert os.path.lexists(path)
        proxy.start()
        proxy.publish(plugin)
        assert call(path, GET, Name="a")[0] == 200


def test_p03_a_socket_whose_file_was_removed_is_made_again(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        os.unlink(path)
        proxy.publish(plugin)
        assert call(path, GET, Name="a")[0] == 200


def test_p18_an_engine_that_sends_nonsense_is_disconnected_and_nothing_else_changes(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        for data in (
            b"\xff\xff\xff\xff",
            b"\0\0\0\x02{}x",  # no tables: those without plugins would unpublish all
            b"\0\0\0\x01[",
            b"\0\0\0\x13" + b'{"listeners":["/x"]}'[:19],
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(limit(10))
                client.connect(str(proxy.state / "p.sock"))
                client.sendall(data)
                with suppress(ConnectionError):
                    while client.recv(65536):
                        pass
        assert call(path, GET, Name="a")[0] in (200, 500)


# ---- all of it


@pytest.mark.parametrize("seed", range(2))
def test_p11_p18_whatever_is_killed_what_consumers_have_is_mounted(tmp_path: Path, seed: int) -> None:
    """Consumers mount and unmount while proxy and plugin are killed; afterwards both sides agree."""
    with published(tmp_path) as (proxy, plugin, path):
        stop = threading.Event()
        consumers = [_Consumer(path, f"v{number}", stop) for number in range(4)]
        for each in consumers:
            each.start()
        chance = random.Random(seed)
        for _ in range(8):
            time.sleep(chance.uniform(0.02, 0.3))
            if chance.random() < 0.6:
                proxy.kill()
                proxy.start()
                proxy.send(plugin.table(proxy.published))
            else:
                restart(proxy, plugin)
        stop.set()
        for each in consumers:
            each.join(limit(60))
            assert not each.is_alive()
        assert sum(each.succeeded for each in consumers) > 4
        proxy.publish(plugin)
        owned = {key for each in consumers for key in each.owned}
        unsure = {key for each in consumers for key in each.unsure}

        def agrees(news: Any) -> bool:
            mounts = {(each.volume, each.id) for each in news.mounts if not each.problem}
            return owned <= mounts <= owned | unsure

        proxy.wait_news(agrees)
        wait_until(lambda: owned <= _mounted(plugin) <= owned | unsure)


class _Consumer(threading.Thread):
    """Mounts and unmounts one volume by new ids."""

    def __init__(self, path: str, volume: str, stop: threading.Event) -> None:
        super().__init__()
        self.path, self.volume, self.stop = path, volume, stop
        self.owned: set[tuple[str, str]] = set()
        self.unsure: set[tuple[str, str]] = set()
        self.succeeded = 0

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            key = self.volume, str(number)
            if self.try_call(MOUNT, key):
                self.owned.add(key)
            else:
                self.unsure.add(key)
            if number % 3 and key in self.owned:
                self.owned.discard(key)
                if not self.try_call(UNMOUNT, key):
                    self.unsure.add(key)

    def try_call(self, method: str, key: tuple[str, str]) -> bool:
        try:
            status, _ = call(self.path, method, Name=key[0], ID=key[1])
        except (OSError, HTTPException, ValueError):
            return False
        self.succeeded += status == 200
        return status == 200


def _mounted(plugin: Plugin) -> set[tuple[str, str]]:
    """What the last run of a plugin has mounted, by its own record of its calls."""
    found: set[tuple[str, str]] = set()
    for each in plugin.history():
        fields = json.loads(each["body"])
        key = fields.get("Name", ""), fields.get("ID", "")
        if each["call"] == "start":
            found.clear()
        elif each["call"].endswith(".Mount"):
            found.add(key)
        elif each["call"].endswith(".Unmount"):
            found.discard(key)
    return found

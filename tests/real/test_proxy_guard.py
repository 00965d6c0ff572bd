"""The guard of the plugin proxy: the proxy is started again without an engine; what is killed in which order (P18)."""

import asyncio
import itertools
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import anyio
import h11
import msgspec
import pytest
import sniffio
from msgspec.structs import replace

import moorage
from moorage.proxy.guard import GuardLink
from moorage.proxy.service import ProxyService
from support.leftovers import is_alive
from support.limits import limit
from support.proxy_process import Plugin, ProxyProcess, call, parent, published, wait_until

pytestmark = [pytest.mark.real, pytest.mark.anyio]

MOUNT, UNMOUNT, GET, CREATE = (f"VolumeDriver.{each}" for each in ("Mount", "Unmount", "Get", "Create"))
SIGNALS = (signal.SIGTERM, signal.SIGQUIT)


def kill_and_wait(pid: int) -> None:
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([process], [], [], limit(20))[0]
    os.close(process)


def test_p18_without_an_engine_a_killed_proxy_serves_again_within_a_second_and_no_call_fails(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor(20) as threads:
        call(path, MOUNT, Name="a", ID="1")
        proxy.disconnect()
        proxy.close_listeners()  # the engine has gone
        inode, guard = os.stat(path).st_ino, proxy.guard
        for number in range(3):
            time.sleep(0.3)  # further kills come later than this
            kill_and_wait(proxy.pid)
            killed = time.monotonic()
            waiting = [threads.submit(call, path, GET, Name="a") for _ in range(10)]
            assert [each.result()[0] for each in waiting] == [200] * 10
            assert time.monotonic() - killed < limit(2 if number else 1)
        assert os.stat(path).st_ino == inode
        assert proxy.guard == guard
        assert call(path, UNMOUNT, Name="a", ID="1")[0] == 200
        assert len(plugin.calls(MOUNT)) == 1, "the ledger says that it is mounted"
        proxy.connect()
        assert proxy.plugin_news().mounts == ()


def test_p18_calls_that_never_stop_lose_at_most_the_ones_under_way_at_each_kill(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        proxy.disconnect()
        proxy.close_listeners()
        stop, kills, failed = threading.Event(), 4, [0, 0, 0]

        def repeat(consumer: int) -> None:
            while not stop.is_set():
                try:
                    assert call(path, GET, Name="a")[0] == 200
                except (OSError, HTTPException):
                    failed[consumer] += 1

        consumers = [threading.Thread(target=repeat, args=(number,)) for number in range(len(failed))]
        for each in consumers:
            each.start()
        for _ in range(kills):
            time.sleep(0.3)
            kill_and_wait(proxy.pid)
            assert call(path, GET, Name="a")[0] == 200
        stop.set()
        for each in consumers:
            each.join()
        assert all(count <= kills for count in failed), failed


def test_p18_a_proxy_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        proxy.disconnect()
        seen = {proxy.pid}
        kill_and_wait(proxy.pid)
        for _ in range(4):
            wait_until(lambda: proxy.pid not in seen and is_alive(proxy.pid))
            seen.add(proxy.pid)
            kill_and_wait(proxy.pid)
        assert call(path, GET, Name="a")[0] == 200
        proxy.connect()


@pytest.mark.parametrize("order", list(itertools.permutations(("guard", "proxy", "engine"))), ids="-".join)
def test_p18_whatever_is_killed_in_whatever_order_the_next_engine_serves_the_same_names(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        call(path, MOUNT, Name="a", ID="1")
        seen = {proxy.guard, proxy.pid}

        def kill_guard() -> None:
            guard = parent(proxy.pid) if is_alive(proxy.pid) else 0
            if guard > 1:
                seen.update((guard, proxy.pid))
                kill_and_wait(guard)
                wait_until(lambda: not is_alive(proxy.pid))

        def kill_proxy() -> None:
            if is_alive(proxy.pid):
                kill_and_wait(proxy.pid)
                wait_until(lambda: is_alive(proxy.pid))  # the guard has started another one

        def kill_engine() -> None:
            proxy.disconnect()
            proxy.close_listeners()

        kills: dict[str, Callable[[], None]] = {"guard": kill_guard, "proxy": kill_proxy, "engine": kill_engine}
        for each in order:
            kills[each]()
        assert not any(map(is_alive, seen)), "the kernel kills the proxy with its guard"
        proxy.disconnect()
        proxy.start()
        assert [each.id for each in proxy.plugin_news().mounts] == ["1"]
        proxy.publish(plugin)
        assert call(path, UNMOUNT, Name="a", ID="1")[0] == 200


def test_p18_calls_wait_in_the_engines_sockets_when_the_guard_is_killed(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor() as threads:
        proxy.kill_all()
        waiting = threads.submit(call, path, GET, Name="a")
        proxy.start()
        proxy.publish(plugin)
        assert waiting.result()[0] == 200


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGTERM", "SIGQUIT"])
@pytest.mark.parametrize("target", ["guard", "proxy"])
def test_p18_a_signal_to_one_of_them_ends_both_and_leaves_no_socket(tmp_path: Path, target: str, number: int) -> None:
    with published(tmp_path) as (proxy, _, path):
        pids = {"guard": proxy.guard, "proxy": proxy.pid}
        os.kill(pids[target], number)
        wait_until(lambda: not any(map(is_alive, pids.values())))
        assert not os.path.lexists(path)
        assert not os.path.lexists(proxy.state / "p.sock")


def test_p18_a_guard_that_exits_while_its_proxy_is_down_leaves_no_socket(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        guard = proxy.guard
        os.kill(guard, signal.SIGSTOP)
        kill = proxy.pid
        os.kill(kill, signal.SIGKILL)
        os.kill(guard, signal.SIGTERM)
        os.kill(guard, signal.SIGCONT)
        wait_until(lambda: not is_alive(guard) and not is_alive(proxy.pid))
        assert not os.path.lexists(path)


def test_p18_an_engine_that_requests_the_exit_ends_the_guard_too(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        pids = proxy.guard, proxy.pid
        proxy.quit()
        wait_until(lambda: not any(map(is_alive, pids)))
        assert not os.path.lexists(path)


def test_p18_the_proxy_never_waits_for_its_guard(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        os.kill(proxy.guard, signal.SIGSTOP)
        try:
            for number in range(300):
                proxy.publish(plugin, at_once=number + 1)
            assert call(path, GET, Name="a")[0] == 200
        finally:
            os.kill(proxy.guard, signal.SIGCONT)
        kill_and_wait(proxy.pid)
        assert call(path, GET, Name="a")[0] == 200


def test_p03_what_was_unpublished_is_not_served_again_by_the_next_proxy(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        proxy.send()
        proxy.disconnect()
        kill_and_wait(proxy.pid)
        proxy.connect()
        assert proxy.news is not None
        assert proxy.news.plugins == ()
        assert not os.path.lexists(path)


def test_p04_the_next_proxy_does_not_take_another_process_for_a_plugin_that_exited(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor() as threads:
        plugin.kill()  # its pid may be another process's from now on

        def is_known() -> bool:
            """The first one may be killed before it knows; then the next one finds no such process."""
            proxy.disconnect()
            kill_and_wait(proxy.pid)
            proxy.connect()
            news = proxy.plugin_news()
            return (news.state, news.pid) == ("starting", 0)

        wait_until(is_known)
        waiting = threads.submit(call, path, MOUNT, Name="a", ID="1")
        plugin.start()
        proxy.publish(plugin)
        assert waiting.result()[0] == 200


@pytest.mark.parametrize("tables", [b"{", b"null", b'{"plugins": [{"id": 1}]}', b"\xff"])
async def test_p18_tables_that_the_next_proxy_cannot_read_stop_nothing(tmp_path: Path, tables: bytes) -> None:
    """They may be of another version; the engine's next ones replace them."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "p.sock"))
        async with asyncio.TaskGroup() as tasks:
            local, remote = socket.socketpair()
            with local:
                guard = GuardLink(remote, asyncio.get_running_loop())
                service = ProxyService(tmp_path, listener, tasks, guard)
                service.start(tables, {})
                service.close()
                guard.close()
                assert local.recv(100) == b"\0\0\0\x01Q"


@pytest.mark.usefixtures("many_descriptors")
def test_p18_a_thousand_sockets_survive_a_killed_proxy(tmp_path: Path) -> None:
    """More descriptors than select(2) knows."""
    plugin = Plugin(tmp_path)
    plugin.start()
    try:
        with ProxyProcess(tmp_path) as proxy:
            table = plugin.table(proxy.published)
            names = tuple(str(proxy.published / f"n{number}.sock") for number in range(1100))
            proxy.send(replace(table, published=names))
            proxy.disconnect()
            proxy.close_listeners()
            for _ in range(2):
                kill_and_wait(proxy.pid)
                assert [call(names[number], GET, Name="a")[0] for number in (0, 600, 1099)] == [200] * 3
    finally:
        plugin.kill()
        plugin.unmount_all()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_p18_a_proxy_is_started_again_after_its_package_was_upgraded_on_the_disk(tmp_path: Path, how: str) -> None:
    """The engine of the new version, which replaces guard and proxy, comes a moment later, or is not started at all."""
    installed = tmp_path / "installed"
    ignored = shutil.ignore_patterns("__pycache__")
    for module in (moorage, anyio, h11, msgspec, sniffio):
        directory = Path(str(module.__file__)).parent
        shutil.copytree(directory, installed / directory.name, ignore=ignored)
    plugin = Plugin(tmp_path)
    plugin.start()
    try:
        with ProxyProcess(tmp_path, source=installed, packages=installed) as proxy:
            proxy.publish(plugin)
            path = proxy.path(plugin)
            assert call(path, MOUNT, Name="fs", ID="1")[0] == 200
            shutil.rmtree(installed)
            if how == "replaced":
                for other in ("moorage", "moorage/proxy", "moorage/host", "anyio", "h11", "msgspec", "sniffio"):
                    (installed / other).mkdir(parents=True)
                    (installed / other / "__init__.py").write_text("raise ImportError('of another version')")
            guard = proxy.guard
            proxy.disconnect()
            for _ in range(3):
                kill_and_wait(proxy.pid)
                assert call(path, GET, Name="fs")[0] == 200
                assert call(path, MOUNT, Name="fs", ID="2")[0] == 200
                assert call(path, UNMOUNT, Name="fs", ID="2")[0] == 200
            assert call(path, UNMOUNT, Name="fs", ID="1")[0] == 200
            plugin.kill()  # which it notices, although it cannot import anything any more
            assert call(path, GET, Name="fs")[0] == 500
            assert proxy.guard == guard
            assert "Error" not in proxy.log()
            proxy.signal(signal.SIGTERM)
            wait_until(lambda: not os.path.lexists(path))
            wait_until(lambda: not is_alive(guard))
    finally:
        plugin.kill()
        plugin.unmount_all()

"""The plugin proxy's process between real sockets: what consumers see of a plugin, its paths, its sockets."""

import json
import os
import random
import socket
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from moorage.host.mounts import is_mount_point
from moorage.host.sockets import accepts_connections
from support.limits import limit
from support.local_user import open_to_all
from support.proxy_process import Plugin, ProxyProcess, UnixConnection, call, published, wait_until

pytestmark = pytest.mark.real


def test_p05_activate_is_answered_by_the_proxy(tmp_path: Path) -> None:
    with published(tmp_path) as (_, plugin, path):
        assert call(path, "Plugin.Activate") == (200, {"Implements": ["VolumeDriver", "LogDriver"]})
        assert plugin.calls() == []


def test_p06_an_empty_body_becomes_an_object_and_a_missing_type_is_added(tmp_path: Path) -> None:
    with published(tmp_path) as (_, plugin, path):
        call(path, "VolumeDriver.List")
        call(path, "VolumeDriver.Get", {"Content-Type": "application/vnd.docker.plugins.v1.1+json"}, Name="a")
        call(path, "NetworkDriver.GetCapabilities")
        assert [(each["body"], each["type"]) for each in plugin.calls()] == [
            ("{}", "application/json"),
            ('{"Name": "a"}', "application/vnd.docker.plugins.v1.1+json"),
            ("{}", "application/json"),
        ]


def test_p06_consumers_that_hang_up_without_reading_disturb_no_other(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        before = proxy.descriptors()
        for number in range(150):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                body = b'{"Name": "v"}'
                client.sendall(
                    b"POST /VolumeDriver.Remove HTTP/1.1\r\nHost: plugin\r\nContent-Length: 13\r\n\r\n" + body
                )
                if number >= 50:  # as podman, which reads the status only
                    client.recv(12)
        assert call(path, "VolumeDriver.Get", Name="a")[0] == 200
        wait_until(lambda: len(plugin.calls("Remove")) == 150)
        wait_until(lambda: proxy.descriptors() <= before)


def test_p06_the_answer_comes_in_one_piece(tmp_path: Path) -> None:
    with published(tmp_path) as (_, _, path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: plugin\r\nContent-Length: 0\r\n\r\n")
        assert client.recv(65536).endswith(b'{"Implements":["VolumeDriver","LogDriver"]}')


def test_p06_a_connection_serves_one_call_after_another(tmp_path: Path) -> None:
    with published(tmp_path) as (_, _, path):
        connection = UnixConnection(path)
        for _ in range(3):
            connection.request("POST", "/VolumeDriver.Get", b'{"Name": "a"}')
            assert json.loads(connection.getresponse().read()) == {"Volume": {"Name": "a"}}
            first = connection.sock
            connection.request("POST", "/NetworkDriver.Join", b"{}")
            assert connection.getresponse().read() == b"{}"
            assert connection.sock is first
        connection.close()


@pytest.mark.parametrize(
    "request_bytes",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n"],
)
def test_p06_what_is_no_call_is_refused(tmp_path: Path, request_bytes: bytes) -> None:
    with published(tmp_path) as (_, _, path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit(10))
        client.connect(path)
        client.sendall(request_bytes)
        answer = client.recv(1000)
        assert not answer or answer.startswith(b"HTTP/1.1 405")
        assert call(path, "VolumeDriver.List")[0] == 200


def test_p06_whatever_a_consumer_sends_the_proxy_serves_the_next_one(tmp_path: Path) -> None:
    chance = random.Random(6)
    bodies = (b'{"Name": "a", "ID": "1"}', b"[]", b"", b"\xff", b'{"Name": 1}')
    with published(tmp_path) as (proxy, _, path):
        before = proxy.descriptors()
        for _ in range(400):
            body = chance.choice(bodies)
            target = chance.choice(
                ("VolumeDriver.Mount", "VolumeDriver.Get", "NetworkDriver.Join", "LogDriver.StartLogging")
            )
            length = chance.choice((len(body), len(body), len(body) + 3, 10**9))
            framing = chance.choice(
                (f"Content-Length: {length}", "Transfer-Encoding: chunked", "X: y", "Expect: 100-continue")
            )
            data = bytearray(f"POST /{target} HTTP/1.1\r\nHost: p\r\n{framing}\r\n\r\n".encode() + body)
            for _ in range(chance.choice((0, 0, 1, 3))):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(0.02)
                client.connect(path)
                client.sendall(data[: chance.randrange(1, len(data) + 1)])
                with suppress(OSError):
                    client.recv(chance.choice((1, 4096)))
        assert call(path, "VolumeDriver.Get", Name="a")[0] == 200
        wait_until(lambda: proxy.descriptors() <= before)
        assert "internal error" not in proxy.log()


def test_p07_paths_are_the_hosts_and_a_mount_is_seen_there(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        outside = plugin.directory / "mnt"
        assert call(path, "VolumeDriver.Mount", Name="fs", ID="1") == (200, {"Mountpoint": f"{outside}/fs"})
        assert (outside / "fs/data").read_text() == "fs"
        assert call(path, "VolumeDriver.Path", Name="fs")[1] == {"Mountpoint": f"{outside}/fs"}
        assert call(path, "VolumeDriver.List")[1] == {"Volumes": [{"Name": "a", "Mountpoint": f"{outside}/a"}]}
        mount = proxy.wait_news(lambda news: news.mounts).mounts[0]
        assert (mount.path, mount.mount_point) == (f"{outside}/fs", f"{outside}/fs")
        assert f"(pid {os.getpid()})" in mount.consumer
        assert call(path, "VolumeDriver.Unmount", Name="fs", ID="1")[0] == 200
        assert not is_mount_point(outside / "fs")
        proxy.wait_news(lambda news: not news.mounts)


def test_p07_a_mount_that_is_not_propagated_is_undone(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path, propagates=False)
    plugin.start()
    try:
        with ProxyProcess(tmp_path) as proxy:
            proxy.publish(plugin)
            status, answer = call(proxy.path(plugin), "VolumeDriver.Mount", Name="fs", ID="1")
            assert status == 500
            for text in (f"{plugin.directory}/inside/fs", f"{plugin.directory}/mnt/fs", "propagatedMount"):
                assert text in answer["Err"]
            wait_until(lambda: [each["body"] for each in plugin.calls("Unmount")] == ['{"Name":"fs","ID":"1"}'])
    finally:
        plugin.kill()
        plugin.unmount_all()


def test_p07_links_and_parents_do_not_lead_outside(tmp_path: Path) -> None:
    with published(tmp_path) as (_, plugin, path):
        (plugin.directory / "mnt/link").symlink_to("/etc")
        for name in ("link", "parent"):
            status, answer = call(path, "VolumeDriver.Mount", Name=name, ID="1")
            assert status == 500, answer


def test_p07_a_path_in_the_plugins_root_is_refused(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        table = plugin.table(proxy.published)
        fields = {name: getattr(table, name) for name in table.__struct_fields__} | {"paths": table.paths[1:]}
        proxy.send(type(table)(**fields))
        status, answer = call(path, "VolumeDriver.Mount", Name="a", ID="1")
        assert status == 500
        assert "propagatedMount" in answer["Err"]


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("err", 500, "no space"),
        ("status", 404, "no"),
        ("text", 500, "no JSON object: <html>no"),
        ("close", 500, "closed"),
    ],
)
def test_p08_a_failure_is_a_failed_status_with_err(tmp_path: Path, name: str, status: int, text: str) -> None:
    with published(tmp_path) as (_, _, path):
        found, answer = call(path, "VolumeDriver.Get", Name=name)
        assert found == status
        assert text in answer["Err"]
        found, answer = call(path, "VolumeDriver.Create", Name=name)
        assert (found, text in answer["Err"]) == (status, True)


def test_p09_a_hung_plugin_fails_at_its_limit_and_delays_no_other(tmp_path: Path) -> None:
    other = Plugin(tmp_path, "other")
    other.start()
    try:
        with published(tmp_path) as (proxy, plugin, path), ThreadPoolExecutor(20) as threads:
            seconds = limit(2.0)
            limits = {"VolumeDriver.Get": seconds}
            tables = [plugin.table(proxy.published, at_once=10, time_limits=limits), other.table(proxy.published)]
            proxy.send(*tables)
            hung = [threads.submit(call, path, "VolumeDriver.Get", Name="hang") for _ in range(15)]
            assert call(proxy.path(other), "VolumeDriver.Get", Name="a")[0] == 200
            assert not any(each.done() for each in hung)
            for each in hung:
                status, answer = each.result()
                assert status == 500
                assert f"within {seconds:g} s" in answer["Err"] or "earlier calls" in answer["Err"]
            assert call(path, "VolumeDriver.Get", Name="a")[0] == 200
    finally:
        other.kill()
        other.unmount_all()


def test_p09_a_thousand_calls_side_by_side(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        before = proxy.descriptors()
        body = b'{"Name": "a"}'
        request = (
            b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: p\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        )
        clients = [socket.socket(socket.AF_UNIX) for _ in range(1000)]
        try:
            for client in clients:
                client.settimeout(limit(60))
                client.connect(path)
                client.sendall(request + body)
            for client in clients:
                answer = b""
                while data := client.recv(65536):
                    answer += data
                assert answer.startswith(b"HTTP/1.1 200")
                assert answer.endswith(b'{"Volume":{"Name":"a"}}')
        finally:
            for client in clients:
                client.close()
        wait_until(lambda: proxy.descriptors() <= before)


def test_p10_large_bodies_pass_in_both_directions(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        data = os.urandom(1024) * 10 * 1024
        connection = UnixConnection(path)
        connection.request("POST", "/AuthZPlugin.AuthZReq", data)
        assert connection.getresponse().read() == data
        connection.request("POST", "/AuthZPlugin.AuthZReq", iter([data[:1000], b"x"]), {"Content-Length": "1001"})
        assert connection.getresponse().read() == data[:1000] + b"x"
        connection.close()
        assert proxy.status("VmHWM") < 40 * 1024


def test_p10_an_endless_stream_is_passed_at_once_and_without_limit(tmp_path: Path) -> None:
    with published(tmp_path, time_limits={"LogDriver.ReadLogs": 1.0}) as (_, _, path):
        connection = UnixConnection(path)
        connection.request("POST", "/LogDriver.ReadLogs", b"{}", {"X-Count": "0"})
        response = connection.getresponse()
        assert response.read1() == b"entry of the log\n" * 60  # although the plugin sends nothing more
        assert call(path, "VolumeDriver.Get", Name="slow")[0] == 200
        assert connection.sock is not None
        connection.sock.settimeout(1.2)
        with pytest.raises(TimeoutError):
            response.read1()
        connection.close()


def test_p10_what_a_consumer_does_not_read_is_not_stored(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        connection = UnixConnection(path)
        connection.request("POST", "/LogDriver.ReadLogs", b"{}", {"X-Count": "-1"})
        response = connection.getresponse()
        before = proxy.status("VmRSS")
        time.sleep(1)
        assert proxy.status("VmRSS") < before + 2048
        total = 0
        while total < 50 * 1024 * 1024:
            total += len(response.read(1024 * 1024))
        assert proxy.status("VmHWM") < 40 * 1024
        before = proxy.descriptors()
        connection.close()
        wait_until(lambda: proxy.descriptors() <= before - 2)  # to the consumer, and to the plugin


def test_p10_a_stream_that_ends_is_complete(tmp_path: Path) -> None:
    with published(tmp_path) as (_, _, path):
        connection = UnixConnection(path)
        for _ in range(2):
            connection.request("POST", "/LogDriver.ReadLogs", b"{}", {"X-Count": "1000"})
            assert len(connection.getresponse().read()) == 1000 * 60 * 17
        connection.close()


def test_p02_a_socket_of_another_program_is_left_alone_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    plugins = [Plugin(tmp_path, name) for name in ("live", "dead", "file", "directory")]
    sockets = tmp_path / "plugins"
    sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as dead, ProxyProcess(tmp_path) as proxy:
        live.bind(str(sockets / "live.sock"))
        live.listen()
        dead.bind(str(sockets / "dead.sock"))
        dead.close()
        (sockets / "file.sock").write_text("mine")
        (sockets / "directory.sock").mkdir()
        news = proxy.publish(*plugins, state="starting")
        problems = {each.id[:4]: list(each.socket_problems.values()) for each in news.plugins}
        assert f"process {os.getpid()}" in problems["live"][0]
        assert problems["dead"] == []
        assert "no socket" in problems["file"][0]
        assert "no socket" in problems["dire"][0]
        proxy.send()
        assert sorted(os.listdir(sockets)) == ["directory.sock", "file.sock", "live.sock"]
        assert accepts_connections(sockets / "live.sock")
        live.close()
        (sockets / "live.sock").unlink()
        assert not any(each.socket_problems for each in proxy.publish(plugins[0], state="starting").plugins)
    for plugin in plugins:
        plugin.unmount_all()


def test_p01_names_have_sub_directories_and_their_mode(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    with ProxyProcess(tmp_path) as proxy:
        table = plugin.table(proxy.published, "starting")
        names = ("vieux/sshfs:latest.sock", "other.sock")
        paths = tuple(str(proxy.published / name) for name in names)
        fields = {name: getattr(table, name) for name in table.__struct_fields__}
        proxy.send(type(table)(**fields | {"published": paths}))
        assert [stat.S_IMODE(os.lstat(path).st_mode) for path in paths] == [0o600, 0o600]
        assert stat.S_IMODE(proxy.published.stat().st_mode) == 0o755
        assert stat.S_IMODE((proxy.published / "vieux").stat().st_mode) == 0o755
        proxy.send(type(table)(**fields | {"published": paths[:1], "mode": 0o660, "gid": 4}))
        status = os.lstat(paths[0])
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, 4)
        assert not os.path.lexists(paths[1])
    plugin.unmount_all()


def test_p03_a_plugin_that_is_removed_or_disabled_loses_its_socket_at_once(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        proxy.publish(plugin, state="disabled")
        assert not os.path.lexists(path)
        proxy.publish(plugin, state="disabled", while_disabled="answer")
        assert call(path, "VolumeDriver.List")[0] == 200
        assert call(path, "VolumeDriver.Mount", Name="a", ID="1")[0] == 500
        proxy.publish(plugin)
        assert call(path, "VolumeDriver.Get", Name="a")[0] == 200
        proxy.send()
        assert not os.path.lexists(path)
        assert os.listdir(proxy.state / "s") == []


def test_p03_the_socket_listens_before_the_plugin_runs(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    try:
        with ProxyProcess(tmp_path) as proxy, ThreadPoolExecutor() as threads:
            proxy.publish(plugin, state="starting")
            waiting = threads.submit(call, proxy.path(plugin), "VolumeDriver.Get", Name="a")
            plugin.start()
            proxy.publish(plugin)
            assert waiting.result() == (200, {"Volume": {"Name": "a"}})
    finally:
        plugin.kill()
        plugin.unmount_all()


def test_p03_an_exit_that_is_requested_leaves_no_socket(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        proxy.quit()
        proxy.wait_exit()
        assert not os.path.lexists(path)
        assert not (proxy.state / "p.sock").exists()
        proxy.disconnect()
        proxy.start()


def test_p14_only_root_and_the_group_may_connect(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs other users")
    with published(tmp_path) as (proxy, plugin, path):
        open_to_all(tmp_path)
        program = (
            "import os, socket, sys; os.setgroups([int(sys.argv[2])]); os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(b'POST /Plugin.Activate HTTP/1.1\\r\\nHost: p\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
            "print(s.recv(12).decode())"
        )

        def try_as_user(group: int) -> str:
            command = ["python3", "-c", program, path, str(group)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(20))
            return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

        assert "PermissionError" in try_as_user(4)
        os.chmod(path, 0o666)  # not the proxy's doing
        assert "HTTP" not in try_as_user(4)
        proxy.wait_news(lambda _: any("refuse" in each and "65534" in each for each in proxy.reports))
        assert "user 65534" in proxy.log()
        table = plugin.table(proxy.published)
        fields = {name: getattr(table, name) for name in table.__struct_fields__} | {"mode": 0o660, "gid": 4}
        proxy.send(type(table)(**fields))
        assert try_as_user(4) == "HTTP/1.1 200"
        assert "PermissionError" in try_as_user(5)


def test_p12_the_engines_own_calls_name_their_consumer(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, plugin, path):
        header = {"Moorage-Consumer": "nerdctl web"}
        assert call(proxy.internal(plugin), "VolumeDriver.Mount", header, Name="a", ID="web")[0] == 200
        assert call(path, "VolumeDriver.Mount", header, Name="a", ID="2")[0] == 200  # which may not name itself
        mounts = proxy.wait_news(lambda news: len(news.mounts) == 2).mounts
        assert mounts[0].consumer == "nerdctl web"
        assert f"(pid {os.getpid()})" in mounts[1].consumer

"""What the plugin proxy costs (row P17). Times are figures of scripts/bench, which a busy machine does not falsify."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from moorage.host import proc
from moorage.proxy.checks import verify
from moorage.proxy.core.actions import Verify
from support.limits import limit
from support.proxy_process import Plugin, ProxyProcess, call, published, wait_until

pytestmark = pytest.mark.real

CALLS, PLUGINS, MOST_MEMORY = 10_000, 30, 25 * 1024  # KiB


def test_p17_ten_thousand_calls_leave_no_descriptor_and_no_memory(tmp_path: Path) -> None:
    with published(tmp_path) as (proxy, _, path):
        for _ in range(100):
            call(path, "VolumeDriver.Mount", Name="a", ID="1")
            call(path, "VolumeDriver.Unmount", Name="a", ID="1")
        before, memory = proxy.descriptors(), proxy.status("VmRSS")
        body = b'{"Name": "a"}'
        head = b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: p\r\nContent-Length: 13\r\nConnection: close\r\n\r\n"
        for number in range(CALLS):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(limit(20))
                client.connect(path)
                if number % 10 == 0:
                    continue  # it hangs up at once
                client.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: p\r\n\r\n" if number % 3 else head + body)
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
        wait_until(lambda: proxy.descriptors() <= before)
        assert proxy.status("VmRSS") < memory + 2048


def test_p17_paths_are_compared_without_the_list_of_all_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with containers has hundreds: reading their list took 13 ms of each Mount of a file system."""
    monkeypatch.setattr(proc, "mounts", lambda: pytest.fail("the list was read"))
    (tmp_path / "top/fs").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to("top")
    subprocess.run(["mount", "-t", "tmpfs", "vol", tmp_path / "top/fs"], check=True)
    try:
        (tmp_path / "top/fs/a/b").mkdir(parents=True)
        for below in (tmp_path / "top", link):
            for name, point in (("fs", "fs"), ("fs/a/b", "fs"), ("", "")):
                path = str(tmp_path / "top" / name)
                request = Verify(1, os.getpid(), path, str(below / name), str(below), needs_mount=point != "")
                assert verify(request) == ("", str(tmp_path / "top" / point) if point else "")
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "top/fs"], check=True)


def test_p17_thirty_published_plugins_take_little_memory_and_no_time_when_idle(tmp_path: Path) -> None:
    plugins = [Plugin(tmp_path, f"p{number:02d}") for number in range(PLUGINS)]
    plugins[0].start()
    try:
        with ProxyProcess(tmp_path) as proxy:
            proxy.send(*(each.table(proxy.published, "ready" if each.run else "starting") for each in plugins))
            for number in range(20):
                assert call(proxy.path(plugins[0]), "VolumeDriver.Mount", Name="a", ID=str(number))[0] == 200
            for each in plugins:
                assert call(proxy.path(each), "Plugin.Activate")[0] == 200
            assert shared_memory(proxy.pid) + shared_memory(proxy.guard) < MOST_MEMORY
            time.sleep(0.2)  # so that the news of these calls are sent
            before = processor_ticks(proxy.pid) + processor_ticks(proxy.guard)
            time.sleep(2)
            assert processor_ticks(proxy.pid) + processor_ticks(proxy.guard) - before <= 1
    finally:
        for each in plugins:
            each.kill()
            each.unmount_all()


def shared_memory(pid: int) -> int:
    """KiB of a process, with its part of what it shares with others: the guard and its proxy have much in common."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_p17_it_loads_no_library_that_it_does_not_use() -> None:
    source = Path(__file__).resolve().parents[2] / "src"
    program = (
        "import sys\n"
        "from moorage.proxy import server\n"
        "server._exclude_modules()\n"
        "import moorage.proxy.run\n"
        "names = ('ssl', '_ssl', 'aiohttp', 'uvloop', 'grpclib', 'typing_extensions', 'http.client', 'email')\n"
        "print(*(name for name in names if sys.modules.get(name)))\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join((str(source), str(Path(msgspec.__file__).parents[1])))}
    command = [sys.executable, "-S", "-s", "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=limit(20))
    assert done.stdout.split() == []

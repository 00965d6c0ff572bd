"""Persistent connections, as dockerd has them for its life, while plugins come and go under one name."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from support.foreground import wait_until
from support.limits import limit
from support.local_user import open_to_all
from support.proxy_process import Plugin, ProxyProcess, UnixConnection, published

pytestmark = pytest.mark.real

GROUP = 4
_CALLS = """
import http.client, os, socket, sys
os.setgroups([int(sys.argv[2])]); os.setgid(65534); os.setuid(65534)
connection = http.client.HTTPConnection("plugin")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
for _ in sys.stdin:
    connection.request("POST", "/VolumeDriver.Get", '{"Name": "a"}')
    response = connection.getresponse()
    response.read()
    print(response.status, flush=True)
"""


@pytest.fixture
def successor(tmp_path: Path) -> Iterator[Plugin]:
    """A plugin that gets the name of another one."""
    plugin = Plugin(tmp_path, "next")
    plugin.start()
    try:
        yield plugin
    finally:
        plugin.kill()
        plugin.unmount_all()


def get(connection: UnixConnection) -> tuple[int, dict[str, Any]]:
    """Status and answer of a call on a persistent connection."""
    before = connection.sock
    connection.request("POST", "/VolumeDriver.Get", b'{"Name": "a"}')
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    assert before is None or connection.sock is before
    return answer


def hand_over(proxy: ProxyProcess, path: str, successor: Plugin, **fields: Any) -> None:
    """The plugin that has this path is in no table any more, and another one has the path."""
    proxy.send(replace(successor.table(proxy.published), published=(path,), **fields))


@pytest.mark.parametrize("gap", [True, False])
def test_p03_a_persistent_connection_leads_to_the_next_plugin_of_the_name(
    tmp_path: Path, successor: Plugin, gap: bool
) -> None:
    with published(tmp_path) as (proxy, plugin, path), closing(UnixConnection(path)) as connection:
        assert get(connection)[0] == 200
        if gap:
            proxy.send()
            assert get(connection) == (500, {"Err": "the plugin was removed or is not published any more"})
        hand_over(proxy, path, successor)
        assert get(connection)[0] == 200
        assert (len(plugin.calls("Get")), len(successor.calls("Get"))) == (1, 1)


def test_p03_a_persistent_connection_leads_to_the_plugin_that_took_the_name_from_another(
    tmp_path: Path, successor: Plugin
) -> None:
    with published(tmp_path) as (proxy, plugin, path), closing(UnixConnection(path)) as connection:
        assert get(connection)[0] == 200
        renamed = replace(plugin.table(proxy.published), published=(str(proxy.published / "renamed.sock"),))
        proxy.send(renamed, replace(successor.table(proxy.published), published=(path,)))
        assert get(connection)[0] == 200
        assert (len(plugin.calls("Get")), len(successor.calls("Get"))) == (1, 1)


def test_p14_a_persistent_connection_leads_to_no_plugin_that_its_user_may_not_use(
    tmp_path: Path, successor: Plugin
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs other users")
    with published(tmp_path) as (proxy, plugin, path):
        open_to_all(tmp_path)
        proxy.send(replace(plugin.table(proxy.published), mode=0o660, gid=GROUP))
        with subprocess.Popen(
            [sys.executable, "-c", _CALLS, path, str(GROUP)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as consumer:  # fmt: skip
            assert consumer.stdin is not None
            assert consumer.stdout is not None
            consumer.stdin.write("\n")
            consumer.stdin.flush()
            assert consumer.stdout.readline() == "200\n"
            hand_over(proxy, path, successor, mode=0o600, gid=-1)
            _, problem = consumer.communicate("\n", timeout=limit(20))
        assert "RemoteDisconnected" in problem
        assert successor.calls("Get") == []
        wait_until(lambda: "refused" in proxy.log() and "user 65534" in proxy.log(), "it is logged", limit(10))

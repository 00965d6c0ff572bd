"""Calls to a plugin that answers in an unusual way."""

import socket
from pathlib import Path

import anyio
import anyio.abc
import pytest

from moorage import errors
from moorage.api.http.errors import status_of
from moorage.host.sockets import PluginSocket
from moorage.runs.http_call import call

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


@pytest.mark.parametrize("length", [9_000, 60_000, 70_000])
async def test_case_202_a_plugins_answer_may_have_long_headers_up_to_a_limit_that_is_named(
    tmp_path: Path, length: int
) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * length + b"\r\nContent-Length: 2\r\n\r\n{}")

    listener = await anyio.create_unix_listener(tmp_path / "p.sock")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        plugin = PluginSocket(tmp_path, "p.sock")
        if length < 64 * 1024:
            answer = await call(plugin, "VolumeDriver.List", b"{}", 20.0)
            assert (answer.status, answer.body) == (200, b"{}")
        else:
            with pytest.raises(errors.Unavailable, match=r"cannot call VolumeDriver\.List: .*65536 bytes"):
                await call(plugin, "VolumeDriver.List", b"{}", 20.0)
        tasks.cancel_scope.cancel()


async def test_case_235_a_call_waits_for_a_plugin_whose_queue_is_full(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "p.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "p.sock"))  # fills the queue
        answers = []

        async def send_request() -> None:
            answers.append(await call(PluginSocket(tmp_path, "p.sock"), "Echo", b"{}", 20.0))

        def serve() -> None:
            listener.accept()[0].close()
            client, _ = listener.accept()
            client.recv(10_000)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            client.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_request)
            await anyio.wait_all_tasks_blocked()
            await anyio.to_thread.run_sync(serve)
        assert [answer.body for answer in answers] == [b"{}"]


async def test_d14_an_answer_that_is_too_long_is_the_plugins_fault(tmp_path: Path) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000)

    listener = await anyio.create_unix_listener(tmp_path / "p.sock")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        words = "cannot call Big of plugin p:latest: the plugin's answer has more than 1000 bytes"
        with pytest.raises(errors.InvalidResponse, match=words) as raised:
            await call(PluginSocket(tmp_path, "p.sock"), "Big", b"{}", 20.0, plugin="p:latest", most_bytes=1000)
        assert status_of(raised.value) == 502
        tasks.cancel_scope.cancel()

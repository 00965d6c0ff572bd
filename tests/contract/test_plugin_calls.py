"""Calls to a plugin that answers in an unusual way."""

from pathlib import Path

import anyio
import anyio.abc
import pytest

from moorage import errors
from moorage.engine.calls import call
from moorage.host.sockets import PluginSocket

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

"""A peer that accepts bytes and never reads them keeps neither a descriptor nor the bytes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage import errors
from moorage.host.sockets import PluginSocket
from moorage.plugins import parse_reference
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from moorage.runs.http_call import call
from moorage.timeouts import Timeouts
from support.limits import limit

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")]

BODY = b"x" * 3_000_000  # more than the buffers of a unix socket take
QUICK = Timeouts(
    registry_connect=limit(0.5), registry_stall=limit(0.3), registry_retry_first=0.01, registry_retry_limit=0.02
)


class Stalled:
    """A server that lets an upload begin, and of everything else reads only the head, until the test says so."""

    def __init__(self) -> None:
        self.readers: list[asyncio.StreamReader] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            while b"POST /v2/" in (await reader.readuntil(b"\r\n\r\n")):
                writer.write(b"HTTP/1.1 202 Accepted\r\nLocation: /upload\r\nContent-Length: 0\r\n\r\n")
            self.readers.append(reader)

    async def rest(self) -> list[int]:
        """How many bytes still come on each connection until it is closed."""
        found = []
        for reader in self.readers:
            count = 0
            with suppress(OSError):
                while piece := await reader.read(65536):
                    count += len(piece)
            found.append(count)
        return found

    async def close(self, server: Any) -> None:
        server.close()
        for writer in self.writers:
            writer.transport.abort()


@asynccontextmanager
async def stalled(path: Path | None = None) -> AsyncIterator[tuple[Stalled, int]]:
    made = Stalled()
    if path is not None:
        server = await asyncio.start_unix_server(made.take, path, limit=4096)
        port = 0
    else:
        server = await asyncio.start_server(made.take, "127.0.0.1", 0, limit=4096)
        port = server.sockets[0].getsockname()[1]
    try:
        yield made, port
    finally:
        await made.close(server)


async def test_a_call_that_is_given_up_ends_its_connection(tmp_path: Path) -> None:
    async with stalled(tmp_path / "p.sock") as (server, _):
        with pytest.raises(errors.Unavailable, match="no answer within"):
            await call(PluginSocket(tmp_path, "p.sock"), "VolumeDriver.List", BODY, 0.3)
        with anyio.fail_after(limit(20)):
            assert [count < len(BODY) // 2 for count in await server.rest()] == [True]


async def many() -> AsyncGenerator[bytes, None]:
    """A gigabyte: more than the buffers of TCP take."""
    for _ in range(1000):
        yield b"x" * 10**6


async def test_a_push_that_is_given_up_ends_its_connections() -> None:
    async with stalled() as (server, port):
        reference = parse_reference(f"127.0.0.1:{port}/a/b:1")
        options = Options(insecure=("127.0.0.1",), environ={})
        with pytest.raises(errors.Unavailable):
            async with Registry(reference, "push", options=options, timeouts=QUICK) as registry:
                await registry.push_blob("sha256:" + "0" * 64, 10**9, many)
        with anyio.fail_after(limit(20)):
            assert all(count < 10**8 for count in await server.rest())
        assert server.readers

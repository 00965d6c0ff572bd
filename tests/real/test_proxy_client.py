"""The engine's connection to the plugin proxy, over a small stand-in: found, started again, replaced."""

import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from msgspec.structs import replace

from moorage._lib.task_groups import background_tasks
from moorage.background_process import BackgroundProcess, BackgroundProgram
from moorage.host.proc import descriptors, process_stat
from moorage.proxy.client import ProxyClient
from moorage.proxy.protocol import GREETING, MAGIC, QUIT, News, PluginTable
from moorage.timeouts import Timeouts
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.anyio]

TIMEOUTS = Timeouts(proxy=limit(2.0), proxy_check=limit(0.5), proxy_news=limit(1.0))
PROGRAM = BackgroundProgram(
    "plugin proxy",
    "support.proxy_stand_in",
    "p.sock",
    "proxy",
    MAGIC,
    GREETING,
    QUIT,
    is_stream=True,
    packages=("msgspec", "support"),
)


class House:
    """A state directory, the tables of an engine, and what the proxy reported."""

    def __init__(self, base: Path) -> None:
        self.state = base / "state"
        self.published = base / "published"
        self.names: list[str] = []
        self.news: list[News] = []
        self.client = self.new_client()

    def new_client(self, program: BackgroundProgram = PROGRAM) -> ProxyClient:
        self.client = ProxyClient(self.state, TIMEOUTS, self.tables, self.news.append, program=program)
        return self.client

    async def tables(self) -> Sequence[PluginTable]:
        return [
            PluginTable(name * 64, name, (), "ready", 1, "/run", "s/p.sock", (self.path(name),)) for name in self.names
        ]

    def path(self, name: str) -> str:
        return f"{self.published}/{name}.sock"

    @asynccontextmanager
    async def serve(self, program: BackgroundProgram = PROGRAM) -> AsyncIterator[ProxyClient]:
        """An engine, until the block ends."""
        client = self.new_client(program)
        client.need()
        async with background_tasks() as tasks:
            tasks.start_soon(client.serve)
            yield client

    async def publish(self, *names: str) -> None:
        self.names = list(names)
        self.client.notify()
        with anyio.fail_after(limit(20)):
            await self.client.settle()

    def request(self, name: str) -> int:
        """The pid of the proxy that answers on a published socket."""
        with socket.socket(socket.AF_UNIX) as consumer:
            consumer.settimeout(limit(20))
            consumer.connect(self.path(name))
            return int(consumer.recv(100))

    async def pid_after(self, name: str) -> int:
        return await anyio.to_thread.run_sync(self.request, name)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    with TemporaryDirectory(prefix="mt-", dir="/run") as base:
        made = House(Path(base))
        made.state.mkdir()
        try:
            yield made
        finally:
            (made.state / "behavior").unlink(missing_ok=True)
            await BackgroundProcess(PROGRAM, made.state, TIMEOUTS.proxy, TIMEOUTS.killed).stop()


async def test_p18_a_killed_proxy_is_started_again_with_the_same_sockets(house: House) -> None:
    async with house.serve():
        await house.publish("a", "b")
        first, inode = await house.pid_after("a"), os.stat(house.path("b")).st_ino
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(limit(10)):
            second = await house.pid_after("b")  # it waits in the queue of the listening socket
        assert second != first
        assert os.stat(house.path("b")).st_ino == inode, "the socket was never away"


async def test_p18_a_proxy_that_keeps_dying_is_started_again_each_time(house: House) -> None:
    async with house.serve():
        await house.publish("a")
        seen = set()
        for _ in range(4):
            seen.add(pid := await house.pid_after("a"))
            os.kill(pid, signal.SIGKILL)
        seen.add(await house.pid_after("a"))
        assert len(seen) == 5


async def test_the_next_engine_finds_the_proxy_and_what_it_knows(house: House) -> None:
    async with house.serve():
        await house.publish("a")
        first = await house.pid_after("a")
    assert await house.pid_after("a") == first, "it continues without an engine"
    house.news.clear()
    async with house.serve() as client:
        with anyio.fail_after(limit(10)):
            await client.settle()
        assert [each.name for each in await house.tables()] == ["a"]
        assert house.news[0].plugins[0].run == 1, "reported before the tables of this engine came"
        assert await house.pid_after("a") == first
        os.kill(first, signal.SIGKILL)
        assert await house.pid_after("a") != first, "this engine has the sockets, too"


async def test_p03_a_name_that_is_unpublished_loses_its_socket(house: House) -> None:
    async with house.serve():
        await house.publish("a", "b")
        await house.publish("b")
        assert not exists(house.path("a"))
        assert list(house.client.listeners) == [house.path("b")]


async def test_p03_a_name_that_is_unpublished_while_the_proxy_is_down_loses_its_socket(house: House) -> None:
    async with house.serve():
        await house.publish("a", "b")
        os.kill(await house.pid_after("a"), signal.SIGKILL)
        await house.publish("b")
        assert not exists(house.path("a"))
        await house.pid_after("b")


@pytest.mark.parametrize("behavior", ["silent", "old", "deaf", "garbage"])
async def test_a_proxy_that_misbehaves_is_replaced(house: House, behavior: str) -> None:
    (house.state / "behavior").write_text(behavior)
    async with house.serve():
        house.names = ["a"]
        house.client.notify()
        await anyio.to_thread.run_sync(
            lambda: wait_until((house.state / "p.sock").exists, "the stand-in serves", limit(20))
        )
        (house.state / "behavior").unlink()
        with anyio.fail_after(limit(30)):
            await house.client.settle()
        await house.pid_after("a")


async def test_p18_a_proxy_of_another_version_is_replaced_without_a_gap(house: House) -> None:
    (house.state / "behavior").write_text("old")
    async with house.serve(replace(PROGRAM, greeting=MAGIC + b"0.0\n")):
        await house.publish("a")
        first, inode = await house.pid_after("a"), os.stat(house.path("a")).st_ino
    (house.state / "behavior").unlink()
    pids = {first}
    async with house.serve():
        with anyio.fail_after(limit(30)):
            while pids == {first}:
                pids.add(await house.pid_after("a"))  # never refused
        await house.publish("a")
    assert os.stat(house.path("a")).st_ino == inode


async def test_several_changes_are_sent_together_and_none_without_one(house: House) -> None:
    async with house.serve():
        await house.publish("a")
        count = len(house.news)
        for _ in range(50):
            house.client.notify()
        await house.publish("a")
        assert len(house.news) <= count + 1, "the tables are the same, so they are not sent"
        await house.publish(*(f"n{number}" for number in range(20)))
        assert len(house.client.listeners) == 20


async def test_p18_three_hundred_sockets_survive_the_proxy(house: House) -> None:
    async with house.serve():
        await house.publish(*(f"n{number}" for number in range(300)))
        os.kill(await house.pid_after("n7"), signal.SIGKILL)
        pids = {await house.pid_after(f"n{number}") for number in (0, 150, 299)}
        assert len(pids) == 1


async def test_stop_leaves_no_process_and_no_socket(house: House) -> None:
    async with house.serve() as client:
        await house.publish("a")
        pid = await house.pid_after("a")
        await client.stop()
        assert not exists(house.path("a"))
        stat = process_stat(pid)
        assert stat is None or stat.state == "Z"
        assert not client.listeners


async def test_an_engine_that_exits_leaves_no_descriptor_open(house: House) -> None:
    before = len(list(descriptors("self")))
    async with house.serve():
        await house.publish("a", "b")
        os.kill(await house.pid_after("a"), signal.SIGKILL)
        await house.pid_after("a")
        with anyio.fail_after(limit(10)):
            await house.client.settle()
    assert len(list(descriptors("self"))) <= before


def exists(path: str) -> bool:
    return os.path.exists(path)

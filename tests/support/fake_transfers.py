"""Packages of an engine in memory, for tests of the API: names and archives, nothing of a registry."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from msgspec.structs import replace

from moorage import errors
from moorage.engine.installation import Operation
from moorage.engine.transfers import LoadResult
from moorage.packages.source import ProgressStep, ReportProgress
from moorage.packages.usage import DiskUsage, PluginUsage, Pruned
from moorage.plugins import local_name, parse_reference
from moorage.registry.credentials import Credentials

ARCHIVE = (b"an ", b"archive")


class FakeTransfers:
    """The Transfers protocol; the owner adds and finds plugins."""

    def __init__(self, owner: Any) -> None:
        self.tags: dict[str, str] = {}
        self.pushed: list[tuple[str, Credentials]] = []
        self.failure: Exception | None = None
        """What happens to an operation after its first line, or to a save after its first piece."""
        self.stuck = False
        self.under_way = 0
        self._owner = owner

    async def tag(self, text: str, name: str) -> object:
        plugin = self._owner.get(text)
        if any(each.name == local_name(name) for each in self._owner.list()):
            raise errors.Conflict(f"plugin {name} already exists")
        self.tags[local_name(name)] = plugin.id
        return plugin

    async def rename(self, text: str, name: str) -> object:
        plugin, new = self._owner.get(text), local_name(name)
        if any(each.name == new for each in self._owner.list()):
            raise errors.Conflict(f"plugin {new} already exists")
        self._owner.plugins[plugin.id] = replace(plugin, name=new)
        return plugin

    @asynccontextmanager
    async def push(self, text: str, to: str, credentials: Credentials) -> AsyncIterator[Operation]:
        plugin = self._owner.get(text)
        target = parse_reference(local_name(to or plugin.name))

        async def run(report: ReportProgress) -> Mapping[str, object]:
            report(ProgressStep(f"The push refers to repository [{target.familiar_name}]"))
            await self._work()
            self.pushed.append((str(target), credentials))
            return {"Tag": target.tag, "Digest": "sha256:0", "Size": 1}

        yield Operation(plugin.name, run)

    async def _work(self) -> None:
        self.under_way += 1
        try:
            if self.stuck:
                await anyio.sleep_forever()
        finally:
            self.under_way -= 1
        if self.failure is not None:
            raise self.failure

    @asynccontextmanager
    async def save(self, names: Sequence[str]) -> AsyncIterator[AsyncIterator[bytes]]:
        if not names:
            raise errors.Invalid("cannot save nothing: give the names of plugins")
        for name in names:
            self._owner.get(name)

        async def pieces() -> AsyncIterator[bytes]:
            for piece in ARCHIVE:
                yield piece
                await self._work()

        yield pieces()

    async def usage(self) -> DiskUsage:
        plugins = tuple(PluginUsage(each.id, each.name, 1, 0, 2, 0, 3, 4, 5) for each in self._owner.list())
        return DiskUsage(plugins, 1, 2, 3, 0, 0, 0)

    async def prune(self) -> Pruned:
        return Pruned(7, 1, 0)

    async def load(self, archive: AsyncIterator[bytes], name: str = "") -> Sequence[LoadResult]:
        raw = b"".join([chunk async for chunk in archive])
        await self._work()
        if raw != b"".join(ARCHIVE):
            raise errors.Invalid("cannot read the archive: it is no tar")
        return [LoadResult(each, is_new=False) for each in self._owner.list()]

    @asynccontextmanager
    async def create_from(
        self, name: str, body: AsyncIterator[bytes], remote: str, credentials: Credentials
    ) -> AsyncIterator[Operation]:
        local = local_name(name)
        async for _ in body:
            pass

        async def run(report: ReportProgress) -> Mapping[str, object]:
            await self._work()
            return {"Id": "0", "Name": local, "Digest": "sha256:0", "Warnings": []}

        yield Operation(local, run)

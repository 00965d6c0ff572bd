"""Packages taken in side by side: what one has read, the other need not read."""

import os

import anyio
import pytest
from aiohttp import web

from moorage import errors
from moorage.containerd import connect
from moorage.containerd.storage import Storage
from moorage.packages.content import ImportContext, Package
from moorage.packages.pull import PullLocks, pull_package, resolve_package
from moorage.packages.source import ProgressStep
from moorage.plugins import parse_reference
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from support.conditions import eventually
from support.fault_registry import Answer, FaultRegistry, first, sends, sends_slowly, serve_faults
from support.packages import Made, layer, make
from support.registry_faults import offer
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.needs("static-cc")]

BIG = layer({"big": os.urandom(3_000_000)})


class Pull:
    """One who takes a package in, under a lease of his own."""

    def __init__(self, storage: Storage, name: str, shared: PullLocks) -> None:
        self.storage, self.name, self.shared = storage, name, shared
        self.reported: list[ProgressStep] = []
        self.scope = anyio.CancelScope()
        self.package: Package | None = None

    async def run(self, remote: str) -> None:
        await self.storage.create_lease(self.name)
        reference = parse_reference(remote)
        with self.scope:
            async with Registry(reference, options=Options(environ={})) as source:
                found = await resolve_package(source, reference)
                context = ImportContext(self.storage.under(self.name), self.name, "overlayfs", self.name)
                self.package = await pull_package(context, source, found, self.shared, self.reported.append)

    def statuses(self, made: Made) -> list[str]:
        """What was reported of the second layer."""
        id = made.layers[1].digest.partition(":")[2][:12]
        return [each.status for each in self.reported if each.id == id]


def pauses(data: bytes) -> Answer:
    """The first half, and the rest so slowly that it takes minutes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        at = len(data) // 2
        await response.write(data[:at])
        while at < len(data):
            await anyio.sleep(0.2)
            await response.write(data[at : at + 1024])
            at += 1024
        return response

    return answer


async def test_d08_what_one_pull_began_another_goes_on_with(workspace: Workspace) -> None:
    made = make(None, BIG)
    slow, fast = pauses(BIG.data), sends(BIG.data)
    async with serve_faults() as registry, connect(workspace.session.containerd.address, workspace.namespace) as client:
        storage, shared = client.storage, PullLocks()
        remote = offer(registry, made, instead={"layer1": first(slow, fast)})
        one, two = Pull(storage, "one", shared), Pull(storage, "two", shared)

        async def has_started() -> bool:
            """Whether some of the layer is in containerd."""
            return any(each.offset_bytes for each in await storage.list_ingests() if BIG.digest in each.ref)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run, remote)
            await eventually(has_started)
            tasks.start_soon(two.run, remote)
            await eventually(lambda: shared.downloads.is_awaited(BIG.digest))
            one.scope.cancel()
        assert (one.package, two.package is not None) == (None, True)
        assert two.statuses(made)[-1] == "Complete"
        (begin, goes_on) = ranges(registry)
        assert begin is None
        assert goes_on is not None, "from where the first one was, and not from the beginning"
        await empty(storage)


def ranges(registry: FaultRegistry) -> list[str | None]:
    return [each.range for each in registry.seen if BIG.digest in each.path]


async def test_d08_two_at_once_read_and_unpack_once(workspace: Workspace) -> None:
    made = make(None, BIG)
    async with serve_faults() as registry, connect(workspace.session.containerd.address, workspace.namespace) as client:
        storage, shared = client.storage, PullLocks()
        remote = offer(registry, made)
        pulls = [Pull(storage, name, shared) for name in ("one", "two", "three")]
        async with anyio.create_task_group() as tasks:
            for pull in pulls:
                tasks.start_soon(pull.run, remote)
        assert pulls[0].package is not None
        assert [pull.package for pull in pulls] == [pulls[0].package] * 3
        assert len(ranges(registry)) == 1
        assert sum("Pulling fs layer" in pull.statuses(made) for pull in pulls) == 1
        # each lease holds all of it
        for name in ("one", "three"):
            await storage.delete_lease(name, collect=True)
        assert len(await storage.list_content()) == 4
        assert len(await storage.list_snapshots("overlayfs")) == 2
        await empty(storage)


async def empty(storage: Storage) -> None:
    for name in await storage.list_leases():
        await storage.delete_lease(name, collect=True)
    await storage.collect()
    assert await storage.list_content() == []
    assert await storage.list_snapshots("overlayfs") == []
    assert await storage.list_ingests() == []


async def test_case_096_a_pull_that_is_cut_off_keeps_no_upload(workspace: Workspace) -> None:
    made = make(None, BIG)
    async with serve_faults() as registry, connect(workspace.session.containerd.address, workspace.namespace) as client:
        remote = offer(registry, made, instead={"layer1": sends_slowly(len(BIG.data), 0.2, BIG.data[:32768])})
        pull = Pull(client.storage, "one", PullLocks())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull.run, remote)
            await eventually(lambda: "Downloading" in pull.statuses(made))
            pull.scope.cancel()
        assert await client.storage.list_ingests() == []
        with pytest.raises(errors.NotFound):
            await client.storage.get_content(BIG.digest)
        await empty(client.storage)

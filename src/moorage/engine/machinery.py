"""What plugins run on, while containerd is there: client, executor and the storage of roots."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage._lib.importing import importing
from moorage._lib.threads import run_blocking
from moorage.containerd.types import RuntimeOptions
from moorage.engine.mounts import mount_all, unmount_all_below
from moorage.engine.ownership import LEASE_PREFIX, PLUGIN_LABEL, Ownership, plugin_of
from moorage.executor import Executor, ExitHandler, open_executor
from moorage.logs.keeping import LogKeeper
from moorage.timeouts import Timeouts

if TYPE_CHECKING:
    from moorage.containerd import Client, Heard
    from moorage.containerd.containers import BundledContainers
    from moorage.containerd.storage import Storage

__all__ = ("Machinery", "choose_snapshotter", "open_machinery")

log = logging.getLogger(__name__)

_COLLECT = 60.0  # seconds; a collection that takes longer goes on without anybody who waits


class Machinery(Struct, frozen=True):
    """Everything of one containerd that an engine uses, and who keeps the output."""

    client: "Client"
    containers: "BundledContainers"
    executor: Executor
    keeper: LogKeeper
    version: str
    ownership: Ownership
    creating: anyio.CapacityLimiter
    """Creations at once: more than this only make each other slow."""
    leases: set[str] = field(default_factory=set)
    """Those of what is under way."""
    gate: anyio.Lock = field(default_factory=anyio.Lock)
    """Held where a lease begins, and by what must not see one begin."""

    @property
    def storage(self) -> "Storage":
        """Content, images, snapshots, leases; all that is created through it is marked as this engine's."""
        return self.ownership.mark(self.client.storage)

    async def owners(self, plugin: str = "") -> dict[str, str]:
        """Every container of this engine, with the id of the plugin that it belongs to.

        Of one plugin only those that may be its: they say so, or their id begins with the plugin's.
        """
        filters = (f'labels."{PLUGIN_LABEL}"=={plugin}', f"id~=^{plugin}") if plugin else ()
        return {
            each.id: plugin_of(each.labels, each.id)
            for each in await self.client.list_containers(*filters)
            if self.ownership.owns(each.labels, each.id)
        }

    async def destroy(self, container: str) -> None:
        """Kill and remove a container of this engine that no executor holds."""
        log.warning("removing container %s, which belongs to no run of a plugin", container)
        await self.containers.delete_task(container)
        await self.containers.delete(container)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[str]:
        """The id of a lease for the length of the block; whatever only it holds is collected before this returns.

        Otherwise that stays until containerd has a reason of its own to collect: after a failure there may be no room
        for a next try, and what was removed within the block has been held by this lease only.
        """
        id = f"{LEASE_PREFIX}{secrets.token_hex(8)}"
        async with self.gate:
            self.leases.add(id)
        try:
            await self.storage.create_lease(id)
            yield id
        finally:
            await _without(self.storage, id)
            self.leases.discard(id)

    async def delete_image(self, name: str, plugin: str) -> None:
        """Remove the image record of a plugin, and what only it held; one that is not ours and the plugin's stays.

        Raises: NotFound where there is none.
        """
        labels = (await self.storage.get_image(name)).labels
        if not self.ownership.owns(labels) or plugin_of(labels) != plugin:
            log.warning("leaving image %s alone: it is not of plugin %s of this engine", name, plugin)
            return
        await self.storage.delete_image(name, collect=True)

    async def drop_stale_leases(self) -> None:
        """Delete the leases that this engine left when it was killed, and collect what only they held."""
        marks = self.ownership.marks.items()
        found = await self.storage.list_leases()
        stale = [id for id, labels in found.items() if id.startswith(LEASE_PREFIX) and marks <= labels.items()]
        for id in stale:
            await self.storage.delete_lease(id)
        if stale:
            await self.storage.collect()


async def _without(storage: "Storage", lease: str) -> None:
    with anyio.move_on_after(_COLLECT, shield=True):
        try:
            await storage.delete_lease(lease, collect=True)
        except errors.NotFound:
            pass
        except errors.MoorageError as error:
            log.warning("cannot end lease %s, the next start does: %s", lease, error)


def _find_client() -> "tuple[Callable[..., AbstractAsyncContextManager[Client]], type[BundledContainers]]":
    """gRPC is imported beside the loop, which has an API to serve, where the supervisor has not done so before."""
    with importing():
        from moorage.containerd import connect
        from moorage.containerd.containers import BundledContainers

        return connect, BundledContainers


@asynccontextmanager
async def open_machinery(
    address: str,
    runtime: Path,
    namespace: str,
    handler: ExitHandler,
    keeper: LogKeeper,
    timeouts: Timeouts,
    ownership: Ownership,
    heard: "Heard | None" = None,
) -> AsyncIterator[Machinery]:
    """The machinery of the containerd at this socket, until the block ends. Bundles are below ``runtime``.

    ``heard`` is told of every call.

    Raises: Unavailable where it cannot be reached.
    """
    connect, make_containers = await run_blocking(_find_client)
    options = RuntimeOptions(root=str(runtime / "runtime-root"))
    async with connect(address, namespace, timeouts, heard) as client:
        version = await client.version()
        containers = make_containers(client, runtime, runtime=options, timeouts=timeouts)
        async with open_executor(containers, handler, runtime=options, timeouts=timeouts) as executor:
            creating = anyio.CapacityLimiter((os.cpu_count() or 1) + 1)
            yield Machinery(client, containers, executor, keeper, version.version, ownership, creating)


async def choose_snapshotter(storage: "Storage", scratch: Path) -> str:
    """overlayfs where a trial mount works, else native: containerd says "ok" of one that cannot mount.

    Two layers, because the first one alone is a plain bind mount. Raises: Unavailable where it cannot be tried.
    """
    lease = base = f"{LEASE_PREFIX}trial-{secrets.token_hex(8)}"
    target = scratch / base
    await storage.create_lease(lease)
    held = storage.under(lease)
    try:
        await held.prepare_snapshot("overlayfs", f"{base}-1")
        await held.commit_snapshot("overlayfs", base, f"{base}-1")
        mounts = await held.prepare_snapshot("overlayfs", f"{base}-2", base)

        def attempt() -> None:
            target.mkdir()
            try:
                mount_all(mounts, target)
            finally:
                unmount_all_below(target)
                target.rmdir()

        await run_blocking(attempt)
    except errors.Unavailable:
        raise
    except OSError as error:
        raise errors.Unavailable(f"cannot try a mount at {target}: {error.strerror}") from error
    except errors.MoorageError as error:
        if errors.is_disk_full(error):  # says nothing about overlayfs
            raise errors.Unavailable(f"cannot use containerd's store: the disk is full ({error})") from error
        log.warning("overlayfs cannot be used, every plugin gets a whole copy of its files: %s", error)
        return "native"
    finally:
        await _without(storage, lease)
    return "overlayfs"

"""A plugin from a package: content and root in containerd first, the image record that holds them, our record last."""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.storage import Storage
from moorage.containerd.types import Image
from moorage.distribution.package import UPLOAD_PREFIX, Package, create_package
from moorage.engine.machinery import PLUGIN_LABEL, Machinery, choose_snapshotter
from moorage.engine.places import SHORT_ID
from moorage.engine.plugin import Plugin
from moorage.engine.store import Record, new_id
from moorage.engine.work import Work
from moorage.plugins import as_it_came, local_name, parse_reference

__all__ = ("Creation", "Desk", "Taking")

log = logging.getLogger(__name__)

_SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."
"""Label of an image record, with the snapshotter's name: the snapshot that it holds."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a package is put together."""

    storage: Storage
    """Under the lease."""
    lease: str
    snapshotter: str
    scratch: str
    """What the names of snapshots begin with that are gone at the end."""


Taking = Callable[[Desk], Awaitable[Package]]
"""Brings a package in, from wherever it comes; what it makes is held by the desk's lease."""


class Creation:
    """Makes plugins, and removes what is left of ones that were not finished."""

    def __init__(self, work: Work, take: Callable[[Record], Plugin]) -> None:
        self.snapshotter = ""
        """Which one new plugins use; empty until the first one is made."""
        self._work = work
        self._take = take
        self._choosing = anyio.Lock()

    async def create(self, name: str, package: AsyncIterator[bytes]) -> Plugin:
        """Make a plugin of this name. Cancelled, it leaves nothing.

        Raises: Conflict where the name is taken; Invalid for what is no package; Unavailable.
        """

        async def take(desk: Desk) -> Package:
            return await create_package(
                desk.storage, desk.lease, desk.snapshotter, package, scratch_key=f"{desk.scratch}-layer"
            )

        local = local_name(name)
        with self._work.registry.reserve(local):
            plugin = await self.make(local, local, take)
        self._work.tell(plugin, "create")
        return plugin

    async def make(self, local: str, reference: str, take: Taking) -> Plugin:
        """Make a plugin of a package; ``local``, its name, is reserved by the caller. Cancelled, it leaves nothing.

        Raises: what ``take`` does; Unavailable.
        """
        machinery = self._work.need_machinery()
        snapshotter = await self._choose(machinery)
        id = self._fresh_id()
        async with self._naming(local), machinery.lease() as lease:
            storage = machinery.storage.under(lease)
            made = await take(Desk(storage, lease, snapshotter, f"moorage-{id}-scratch"))
            await storage.prepare_snapshot(snapshotter, f"moorage-{id}", made.chain)
            # containerd 1.6 syncs none of what it unpacked: a power cut would leave empty files in the layer
            await run_blocking(os.sync)
            record = replace(_record(id, local, made, snapshotter), reference=reference)
            with anyio.CancelScope(shield=True):
                plugin = await self._register(machinery, record, made)
        return plugin

    async def sweep(self, machinery: Machinery) -> None:
        """Remove the image records of plugins that are not there, and the uploads and leases of engines that are not.

        The lease of an upload holds it no longer, but containerd 1.6 collects none before its first whole blob.
        """
        for image in await machinery.storage.list_images():
            owner = image.labels.get(PLUGIN_LABEL)
            if owner is not None and self._work.registry.find_id(owner) is None and self._work.store.is_free(owner):
                log.warning("removing image %s: its plugin %s was never finished", image.name, owner)
                await machinery.storage.delete_image(image.name, collect=True)
        for ingest in await machinery.storage.list_ingests():
            if ingest.ref.startswith(UPLOAD_PREFIX):
                with suppress(errors.NotFound):
                    await machinery.storage.abort_ingest(ingest.ref)
        await machinery.drop_stale_leases()

    @asynccontextmanager
    async def _naming(self, name: str) -> AsyncIterator[None]:
        """What containerd does not find, or finds in its way, is no plugin that is unknown or exists."""
        try:
            yield
        except errors.MoorageError as error:
            if "no space left on device" in str(error) and not isinstance(error, errors.Unavailable):
                raise errors.Unavailable(f"cannot create plugin {name}: {error}") from error
            if isinstance(error, errors.NotFound | errors.Conflict):
                raise errors.MoorageError(f"cannot create plugin {name}: {error}") from error
            raise

    async def _choose(self, machinery: Machinery) -> str:
        async with self._choosing, machinery.gate:  # the trial has a lease that is none of those under way
            if not self.snapshotter:
                self.snapshotter = await choose_snapshotter(machinery.storage, self._work.store.temporary)
        return self.snapshotter

    def _fresh_id(self) -> str:
        """An id whose beginning names a run-time directory that no other plugin has."""
        taken = {plugin.id[:SHORT_ID] for plugin in self._work.registry.all()}
        while (id := new_id())[:SHORT_ID] in taken:
            pass
        return id

    async def _register(self, machinery: Machinery, record: Record, package: Package) -> Plugin:
        labels = {f"{_SNAPSHOT_REF}{record.snapshotter}": record.snapshot, PLUGIN_LABEL: record.id}
        image = Image(record.image, package.manifest, labels)
        try:
            await machinery.storage.create_image(image)
        except errors.Conflict:  # of a plugin that was cut off while it was made or removed: the name is ours now
            await machinery.storage.delete_image(image.name)
            await machinery.storage.create_image(image)
        try:
            await run_blocking(lambda: self._work.store.save(record))
        except errors.MoorageError:
            await machinery.storage.delete_image(image.name)
            raise
        return self._take(record)


def _record(id: str, name: str, package: Package, snapshotter: str) -> Record:
    return Record(
        id=id,
        name=name,
        reference=name,
        config=as_it_came(package.config).decode(),
        image=str(parse_reference(name)),
        digest=package.manifest.digest,
        snapshotter=snapshotter,
        snapshot=f"moorage-{id}",
        created_at=datetime.now(UTC),
        warnings=package.warnings,
    )

"""A plugin from a package: content and root in containerd first, the image record that holds them, our record last."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.types import Image
from moorage.distribution.package import Package, create_package
from moorage.engine.consent import Granted
from moorage.engine.machinery import Machinery, choose_snapshotter
from moorage.engine.ownership import PLUGIN_LABEL, plugin_of
from moorage.engine.package_repair import is_lost, is_package_of
from moorage.engine.places import SHORT_ID
from moorage.engine.plugin import Plugin
from moorage.engine.store import Record, Version, new_id
from moorage.engine.versions import restore_package
from moorage.engine.work import Work
from moorage.plugins import (
    NO_OVERRIDES,
    Overrides,
    as_it_came,
    compute_privileges,
    effective_settings,
    local_name,
    parse_reference,
)

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("Creation", "Desk", "Taking")

log = logging.getLogger(__name__)

_SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."
"""Label of an image record, with the snapshotter's name: the snapshot that it holds."""


class Desk(Struct, frozen=True):
    """Where a package is put together."""

    storage: "Storage"
    """Under the lease."""
    lease: str
    snapshotter: str
    scratch: str
    """What the names of snapshots begin with that are gone at the end."""


Taking = Callable[[Desk], Awaitable[Package]]
"""Brings a package in, from wherever it comes; what it makes is held by the desk's lease."""


class Creation:
    """Makes plugins and new versions of them, and removes what is left of those that were not finished."""

    def __init__(self, work: Work, take: Callable[[Record], Plugin]) -> None:
        self.snapshotter = ""
        """Which one new plugins use; empty until the first one is made."""
        self._work = work
        self._take = take
        self._choosing = anyio.Lock()
        self._making: set[str] = set()
        """Names of image records of versions that no record names yet."""

    async def create(self, name: str, package: AsyncIterator[bytes]) -> Plugin:
        """Make a plugin of this name. Cancelled, it leaves nothing.

        Raises: Conflict where the name is taken; Invalid for what is no package; Unavailable.
        """

        async def take(desk: Desk) -> Package:
            return await create_package(
                desk.storage, desk.lease, desk.snapshotter, package, scratch_key=f"{desk.scratch}-layer"
            )

        local = local_name(name)
        async with self.reserve(local):
            plugin = await self.make(local, local, take)
        self._work.tell(plugin, "create")
        return plugin

    async def find_lost(self, local: str) -> Plugin | None:
        """The plugin of this name, where its package is not in containerd any more. Raises: Unavailable."""
        for plugin in self._work.registry.all():
            if plugin.is_called(local) and not plugin.record.removing:
                return plugin if await is_lost((await self._work.await_machinery()).storage, plugin) else None
        return None

    @asynccontextmanager
    async def reserve(self, local: str) -> AsyncIterator[None]:
        """Keep a name for what ``make`` makes: a new plugin, or the package of one that has lost its own.

        Raises: Conflict where another plugin has the name; Unavailable.
        """
        if await self.find_lost(local) is not None:
            yield
            return
        with self._work.registry.reserve(local):
            yield

    async def make(
        self,
        local: str,
        reference: str,
        take: Taking,
        overrides: Overrides = NO_OVERRIDES,
        granted: Granted | None = None,
        *,
        verb: str = "create",
    ) -> Plugin:
        """Make a plugin of a package; ``local``, its name, is reserved by the caller. Cancelled, it leaves nothing.

        A plugin of this name whose package is lost gets this one, and stays what it is otherwise.

        Without ``granted`` it has what it requests: who makes a plugin of a config of his own grants what is in it.

        Raises: what ``take`` does; Unavailable.
        """
        machinery = await self._work.await_machinery()
        if (lost := await self.find_lost(local)) is not None:
            return await self._restore(lost, reference, take, overrides, granted)
        id = self._fresh_id()
        base = str(parse_reference(local))
        async with self._taken(machinery, f"{verb} plugin {local}", f"moorage-{id}", take) as (desk, made):
            version = _version(made, reference, base, desk.snapshotter, f"moorage-{id}")
            has = granted or Granted(compute_privileges(made.config, effective_settings(made.config, overrides)))
            version = replace(version, overrides=overrides, **has.as_fields())
            record = Record(id=id, name=local, created_at=datetime.now(UTC), **version.as_fields())  # type: ignore[arg-type]
            with anyio.CancelScope(shield=True):
                plugin = await self._register(machinery, record, made)
        return plugin

    async def _restore(
        self, plugin: Plugin, reference: str, take: Taking, given: Overrides, granted: Granted | None
    ) -> Plugin:
        async with self.new_version(plugin, reference, take) as version:
            with anyio.CancelScope(shield=True):  # the job has its own bounds
                await self._work.inboxes.run(
                    plugin.id, lambda: restore_package(self._work, plugin, version, given, granted)
                )
        log.info("plugin %s has its package again", plugin.name)
        return plugin

    async def refresh(self, plugin: Plugin, take: Taking) -> bool:
        """Fetch again what is missing or damaged of a plugin's package; False where ``take`` brings another one.

        Neither its root nor what runs is touched. Raises: what ``take`` does; Unavailable.
        """
        machinery = await self._work.await_machinery()
        snapshotter = await self._choose(machinery)
        async with _naming(f"upgrade plugin {plugin.name}"), machinery.lease() as lease:
            scratch = f"moorage-{plugin.id}-{secrets.token_hex(4)}-scratch"
            package = await take(Desk(machinery.storage.under(lease), lease, snapshotter, scratch))
            return await is_package_of(machinery.storage, plugin, package)

    @asynccontextmanager
    async def new_version(self, plugin: Plugin, reference: str, take: Taking) -> AsyncIterator[Version]:
        """A package as another version of a plugin: beside the present one, its image record made.

        Unless the plugin's record names it at the end of the block, it is removed again. Overrides are none yet, and
        nothing is granted.

        Raises: what ``take`` does; Unavailable.
        """
        machinery = await self._work.await_machinery()
        mark = secrets.token_hex(4)
        snapshot, name = f"moorage-{plugin.id}-{mark}", f"{parse_reference(plugin.name)}#{mark}"
        self._making.add(name)
        try:
            async with self._taken(machinery, f"upgrade plugin {plugin.name}", snapshot, take) as (desk, made):
                version = _version(made, reference, name, desk.snapshotter, snapshot)
                await machinery.storage.create_image(_image(plugin.id, version, made))
            try:
                yield version
            finally:
                if plugin.record.image != name:
                    await self.forget(name, plugin.id)
        finally:
            self._making.discard(name)

    async def forget(self, image: str, plugin: str) -> None:
        """Remove the image record of a version that no plugin has any more, and what only it held."""
        with anyio.CancelScope(shield=True):
            try:
                await self._work.need_machinery().delete_image(image, plugin)
            except errors.NotFound:
                pass
            except errors.MoorageError as error:
                log.warning("cannot remove image %s, the next start does: %s", image, error)

    async def sweep(self, machinery: Machinery) -> None:
        """Remove the image records of this engine that belong to no version of a plugin, and the uploads and leases
        that it left when it was killed.

        The lease of an upload holds it no longer, but containerd 1.6 collects none before its first whole blob.
        """
        for image in await machinery.storage.list_images():
            owner = image.labels.get(PLUGIN_LABEL)
            if owner is not None and machinery.ownership.owns(image.labels) and self._is_left(image.name, owner):
                log.warning("removing image %s: what it was for was never finished", image.name)
                await machinery.storage.delete_image(image.name, collect=True)
        prefix = machinery.ownership.ref_prefix
        for ingest in await machinery.storage.list_ingests():
            if ingest.ref.startswith(prefix):
                with suppress(errors.NotFound):
                    await machinery.storage.abort_ingest(ingest.ref)
        await machinery.drop_stale_leases()

    def _is_left(self, image: str, owner: str) -> bool:
        """Whether an image record belongs to no version of any plugin."""
        plugin = self._work.registry.find_id(owner)
        if plugin is None:
            return self._work.store.is_free(owner)
        previous = plugin.record.previous
        return image not in {plugin.record.image, previous.image if previous else "", *self._making}

    @asynccontextmanager
    async def _taken(
        self, machinery: Machinery, what: str, snapshot: str, take: Taking
    ) -> AsyncIterator[tuple[Desk, Package]]:
        """A package and a root on it, safe on the disk, for as long as the block lasts: then only images hold it."""
        snapshotter = await self._choose(machinery)
        async with _naming(what), machinery.lease() as lease:
            desk = Desk(machinery.storage.under(lease), lease, snapshotter, f"{snapshot}-scratch")
            made = await take(desk)
            await desk.storage.prepare_snapshot(snapshotter, snapshot, made.chain)
            # containerd 1.6 syncs none of what it unpacked: a power cut would leave empty files in the layer
            await run_blocking(os.sync)
            yield desk, made

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
        image = _image(record.id, Version.of(record), package)
        try:
            await machinery.storage.create_image(image)
        except errors.Conflict:
            if await self._may_replace(machinery, image.name):
                await machinery.storage.delete_image(image.name)
            else:  # of another program, or of another plugin: ours gets a name that nobody has
                record = replace(record, image=f"{image.name}#{secrets.token_hex(4)}")
                image = _image(record.id, Version.of(record), package)
            await machinery.storage.create_image(image)
        try:
            await run_blocking(lambda: self._work.store.save(record))
        except errors.MoorageError:
            await machinery.storage.delete_image(image.name)
            raise
        return self._take(record)

    async def _may_replace(self, machinery: Machinery, name: str) -> bool:
        """Whether an image record is this engine's, of a plugin that was cut off while it was created or removed."""
        try:
            labels = (await machinery.storage.get_image(name)).labels
        except errors.NotFound:
            return False
        return machinery.ownership.owns(labels) and not machinery.ownership.is_recorded(plugin_of(labels))


@asynccontextmanager
async def _naming(what: str) -> AsyncIterator[None]:
    """What containerd does not find, or finds in its way, is no plugin that is unknown or exists."""
    try:
        yield
    except errors.MoorageError as error:
        if errors.is_disk_full(error) and not isinstance(error, errors.Unavailable):
            raise errors.Unavailable(f"cannot {what}: {error}") from error
        if isinstance(error, errors.NotFound | errors.Conflict):
            raise errors.MoorageError(f"cannot {what}: {error}") from error
        raise


def _image(id: str, version: Version, package: Package) -> Image:
    labels = {f"{_SNAPSHOT_REF}{version.snapshotter}": version.snapshot, PLUGIN_LABEL: id}
    return Image(version.image, package.manifest, labels)


def _version(package: Package, reference: str, image: str, snapshotter: str, snapshot: str) -> Version:
    return Version(
        reference=reference,
        config=as_it_came(package.config).decode(),
        image=image,
        digest=package.manifest.digest,
        snapshotter=snapshotter,
        snapshot=snapshot,
        overrides=NO_OVERRIDES,
        warnings=package.warnings,
        granted=(),
    )

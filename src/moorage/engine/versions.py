"""Versions of plugins, made of packages in containerd. ``changes.trial`` makes one of them current."""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import anyio
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.integrity import sync_storage
from moorage.containerd.types import Image
from moorage.engine.changes.trial import restore_package
from moorage.engine.grants import Grants
from moorage.engine.runtime import PLUGIN_LABEL, ContainerRuntime, EngineContext, plugin_of
from moorage.engine.store import new_id
from moorage.engine.supervisor import Supervisor
from moorage.engine.values import PluginRecord, PluginVersion
from moorage.packages.content import (
    LEASE_PREFIX,
    ImportContext,
    Package,
    as_import_error,
    create_image_record,
    end_lease,
    image_record,
    is_same_package,
    is_stored,
)
from moorage.packages.snapshots import choose_snapshotter
from moorage.plugins import (
    NO_OVERRIDES,
    Overrides,
    as_it_came,
    compute_privileges,
    effective_settings,
    parse_reference,
)
from moorage.runs.directories import SHORT_ID

__all__ = (
    "Importer",
    "VersionBuilder",
)

log = logging.getLogger(__name__)

_FETCHED = timedelta(hours=1)

Importer = Callable[[ImportContext], Awaitable[Package]]
"""Imports a package from any source; the lease of the context protects what it makes."""


class VersionBuilder:
    """Makes plugins and new versions of them from packages, and removes orphans of those that were not completed."""

    def __init__(self, context: EngineContext, add: Callable[[PluginRecord], Supervisor]) -> None:
        """``add`` makes the supervisor of a new plugin with this record, which has been saved."""
        self.snapshotter = ""
        """The one that new plugins use; empty until the first one is made."""
        self._context = context
        self._add = add
        self._choosing = anyio.Lock()
        self._incomplete: set[str] = set()
        """Names of image records of versions that no plugin's record has yet."""

    async def find_lost(self, local: str) -> Supervisor | None:
        """The plugin of this name, if containerd lost its package. Raises: errors.Unavailable."""
        for plugin in self._context.plugins.all():
            if plugin.is_called(local) and not plugin.record.removing:
                storage = (await self._context.availability.wait()).storage
                return None if await is_stored(storage, plugin.record.stored_package) else plugin
        return None

    @asynccontextmanager
    async def reserve(self, local: str) -> AsyncIterator[None]:
        """Reserve a name for ``make``, unless it is that of a plugin whose package is lost.

        Raises:
            errors.Conflict: another plugin has the name
            errors.Unavailable: containerd does not answer
        """
        if await self.find_lost(local) is not None:
            yield
            return
        with self._context.plugins.reserve(local):
            yield

    async def make(
        self,
        local: str,
        reference: str,
        importer: Importer,
        overrides: Overrides = NO_OVERRIDES,
        granted: Grants | None = None,
        applied_by: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        verb: str = "create",
    ) -> Supervisor:
        """Make a plugin of a package; ``local``, its name, is reserved by the caller. Cancelled, it leaves nothing.

        A plugin of this name whose package is lost gets this one, and is otherwise unchanged. Without ``granted`` it is
        granted what it requests: the caller wrote the config.

        Raises:
            errors.Unavailable: containerd does not answer
            errors.MoorageError: what ``importer`` raises
        """
        runtime = await self._context.availability.wait()
        if (lost := await self.find_lost(local)) is not None:
            return await self._restore(lost, reference, importer, overrides, granted)
        id = self._fresh_id()
        base = str(parse_reference(local))
        async with self._imported(runtime, f"{verb} plugin {local}", f"moorage-{id}", importer) as (context, made):
            version = _version(made, reference, base, context.snapshotter, f"moorage-{id}")
            has = granted or Grants(compute_privileges(made.config, effective_settings(made.config, overrides)))
            version = replace(version, overrides=overrides, **has.as_fields())
            fields = {**version.as_fields(), "applied_by": applied_by, "labels": labels or {}}
            record = PluginRecord(id=id, name=local, created_at=datetime.now(UTC), **fields)  # type: ignore[arg-type]
            with anyio.CancelScope(shield=True):
                plugin = await self._register(runtime, record, made)
        return plugin

    async def _restore(
        self, plugin: Supervisor, reference: str, importer: Importer, given: Overrides, granted: Grants | None
    ) -> Supervisor:
        async with self.new_version(plugin, reference, importer) as version:
            with anyio.CancelScope(shield=True):  # the job has its own bounds
                await plugin.inbox.run_job(lambda: restore_package(plugin, version, given, granted))
        log.info("plugin %s has its package again", plugin.name)
        return plugin

    async def refresh(self, plugin: Supervisor, importer: Importer) -> bool:
        """Import what is missing or damaged of a plugin's package; False if ``importer`` imports another package.

        Neither its root nor its run is changed.

        Raises:
            errors.Unavailable: containerd does not answer
            errors.MoorageError: what ``importer`` raises
        """
        runtime = await self._context.availability.wait()
        snapshotter = await self._choose(runtime)
        async with as_import_error(f"upgrade plugin {plugin.name}"), runtime.lease() as lease:
            scratch = f"moorage-{plugin.id}-{secrets.token_hex(4)}-scratch"
            package = await importer(ImportContext(runtime.storage.under(lease), lease, snapshotter, scratch))
            return await is_same_package(runtime.storage, plugin.record.stored_package, package)

    async def fetch(self, action: str, digest: str, importer: Importer) -> None:
        """Import a package for a plugin that is made or changed within an hour; then, or when the engine starts
        again, containerd collects it unless a plugin has it. ``digest`` is its manifest's.

        Raises:
            errors.Unavailable: containerd does not answer
            errors.MoorageError: what ``importer`` raises
        """
        runtime = await self._context.availability.wait()
        snapshotter = await self._choose(runtime)
        lease = f"{_fetched(digest)}{secrets.token_hex(4)}"
        async with as_import_error(action):
            try:
                await runtime.storage.create_lease(lease, expires_at=datetime.now(UTC) + _FETCHED)
                await importer(ImportContext(runtime.storage.under(lease), lease, snapshotter, f"{lease}-scratch"))
            except BaseException:
                await end_lease(runtime.storage, lease)
                raise
        await self.release_fetched(digest, but=lease)

    async def release_fetched(self, digest: str, but: str = "") -> None:
        """Delete the leases of a fetched package, but this one, which has the manifest. Best effort: they expire."""
        try:
            storage = (await self._context.availability.wait()).storage
            for lease in await storage.list_leases():
                if lease.startswith(_fetched(digest)) and lease != but:
                    with suppress(errors.NotFound):
                        await storage.delete_lease(lease)
        except errors.MoorageError as error:
            log.warning("cannot delete the lease of %s, it expires: %s", digest, error)

    @asynccontextmanager
    async def new_version(self, plugin: Supervisor, reference: str, importer: Importer) -> AsyncIterator[PluginVersion]:
        """A package as another version of a plugin, with an image record of its own, without overrides and grants.

        It is removed at the end of the block unless the plugin's record has it by then.

        Raises:
            errors.Unavailable: containerd does not answer
            errors.MoorageError: what ``importer`` raises
        """
        runtime = await self._context.availability.wait()
        mark = secrets.token_hex(4)
        snapshot, name = f"moorage-{plugin.id}-{mark}", f"{parse_reference(plugin.name)}#{mark}"
        self._incomplete.add(name)
        try:
            async with self._imported(runtime, f"upgrade plugin {plugin.name}", snapshot, importer) as (context, made):
                version = _version(made, reference, name, context.snapshotter, snapshot)
                await runtime.storage.create_image(_image(plugin.id, version, made))
            try:
                yield version
            finally:
                if plugin.record.image != name:
                    await self.delete_image(name, plugin.id)
        finally:
            self._incomplete.discard(name)

    async def delete_image(self, image: str, plugin: str) -> None:
        """Remove the image record of a version that no plugin has any more, and what only it protects."""
        with anyio.CancelScope(shield=True):
            try:
                await self._context.availability.require().delete_image(image, plugin)
            except errors.NotFound:
                pass
            except errors.MoorageError as error:
                log.warning("cannot remove image %s, the next start does: %s", image, error)

    async def sweep(self, runtime: ContainerRuntime) -> None:
        """Remove the orphaned image records, uploads and leases of this engine, which a killed engine left.

        containerd 1.6 collects no upload before its first whole blob, whatever its lease.
        """
        for image in await runtime.storage.list_images():
            owner = image.labels.get(PLUGIN_LABEL)
            if owner is not None and runtime.ownership.owns(image.labels) and self._is_orphan(image.name, owner):
                log.warning("removing orphaned image %s", image.name)
                await runtime.storage.delete_image(image.name, collect=True)
        prefix = runtime.ownership.ref_prefix
        for ingest in await runtime.storage.list_ingests():
            if ingest.ref.startswith(prefix):
                with suppress(errors.NotFound):
                    await runtime.storage.abort_ingest(ingest.ref)
        await runtime.drop_stale_leases()

    def _is_orphan(self, image: str, owner: str) -> bool:
        """Whether an image record belongs to no version of any plugin."""
        plugin = self._context.plugins.find_id(owner)
        if plugin is None:
            return self._context.store.is_free(owner)
        previous = plugin.record.previous
        return image not in {plugin.record.image, previous.image if previous else "", *self._incomplete}

    @asynccontextmanager
    async def _imported(
        self, runtime: ContainerRuntime, action: str, snapshot: str, importer: Importer
    ) -> AsyncIterator[tuple[ImportContext, Package]]:
        """A package and a snapshot on it, synced to the disk; after the block only image records protect them."""
        snapshotter = await self._choose(runtime)
        async with as_import_error(action), runtime.lease() as lease:
            context = ImportContext(runtime.storage.under(lease), lease, snapshotter, f"{snapshot}-scratch")
            made = await importer(context)
            mounts = await context.storage.prepare_snapshot(snapshotter, snapshot, made.chain)
            await sync_storage(runtime.client, snapshotter, mounts)  # a power cut would leave empty files in the layer
            yield context, made

    async def _choose(self, runtime: ContainerRuntime) -> str:
        async with self._choosing, runtime.gate:  # the trial has a lease that is none of those under way
            if not self.snapshotter:
                self.snapshotter = await choose_snapshotter(runtime.storage, self._context.store.temporary)
        return self.snapshotter

    def _fresh_id(self) -> str:
        """An id whose beginning names a run-time directory that no other plugin has."""
        taken = {plugin.id[:SHORT_ID] for plugin in self._context.plugins.all()}
        while (id := new_id())[:SHORT_ID] in taken:
            pass
        return id

    async def _register(self, runtime: ContainerRuntime, record: PluginRecord, package: Package) -> Supervisor:
        """Write image record and record. The image record of an interrupted creation or removal is replaced."""

        def is_replaceable(labels: Mapping[str, str]) -> bool:
            return runtime.ownership.owns(labels) and not runtime.ownership.is_recorded(plugin_of(labels))

        made = _image(record.id, PluginVersion.of(record), package)
        image = await create_image_record(runtime.storage, made, is_replaceable)
        record = replace(record, image=image.name)
        try:
            await run_blocking(lambda: self._context.store.save(record))
        except errors.MoorageError:
            await runtime.storage.delete_image(image.name)
            raise
        return self._add(record)


def _fetched(digest: str) -> str:
    """What the ids of leases begin with that protect a package before a plugin does."""
    return f"{LEASE_PREFIX}fetched-{digest.rpartition(':')[2][:32]}-"


def _image(id: str, version: PluginVersion, package: Package) -> Image:
    return image_record(version.image, package, version.snapshotter, version.snapshot, {PLUGIN_LABEL: id})


def _version(package: Package, reference: str, image: str, snapshotter: str, snapshot: str) -> PluginVersion:
    return PluginVersion(
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

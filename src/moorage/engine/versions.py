"""Versions of plugins: made of packages in containerd, and made current by jobs of the plugin's inbox.

The record says which version is current, and is written in one step. While a new version of a running plugin is tried
out, the record has the one before it as well; a start that finds that rolls back.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import anyio
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.integrity import sync_storage
from moorage.containerd.types import Image
from moorage.engine.grants import Grants, grants_of
from moorage.engine.lifecycle import State
from moorage.engine.requests import as_user_error
from moorage.engine.runtime import PLUGIN_LABEL, ContainerRuntime, EngineContext, plugin_of
from moorage.engine.store import new_id
from moorage.engine.supervisor import Supervisor
from moorage.engine.values import ChangeTerms, PluginRecord, PluginVersion
from moorage.host.mounts import mount_points_below
from moorage.packages.content import (
    ImportContext,
    Package,
    as_import_error,
    create_image_record,
    image_record,
    is_same_package,
    is_stored,
)
from moorage.packages.snapshots import choose_snapshotter
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Overrides,
    as_it_came,
    compute_privileges,
    effective_settings,
    merge_overrides,
    parse_config,
    parse_reference,
    rebase,
)
from moorage.runs.directories import SHORT_ID

__all__ = (
    "Agreement",
    "Importer",
    "VersionBuilder",
    "change_version",
    "check_can_change",
    "restore_package",
    "roll_back",
)

log = logging.getLogger(__name__)

Importer = Callable[[ImportContext], Awaitable[Package]]
"""Imports a package from any source; the lease of the context protects what it makes."""

Agreement = Callable[[Config, Overrides], Awaitable[Grants]]
"""What is granted to a plugin with this config and these settings. Raises: Denied."""


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
            record = PluginRecord(id=id, name=local, created_at=datetime.now(UTC), **version.as_fields())  # type: ignore[arg-type]
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


def check_can_change(plugin: Supervisor, terms: ChangeTerms) -> None:
    """Whether a plugin may get another version now.

    Raises: Conflict where it is enabled, in Docker's words, or in use, unless forced.
    """
    if plugin.state is State.REMOVING:
        raise errors.Conflict(f"cannot upgrade plugin {plugin.name}: it is being removed")
    if not terms.restart and (plugin.record.enabled or plugin.state is not State.DISABLED):
        raise errors.Conflict(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
    plugin.check_unused(force=terms.force)


async def change_version(
    context: EngineContext, plugin: Supervisor, version: PluginVersion, agree: Agreement, terms: ChangeTerms
) -> tuple[str, ...]:
    """Let a plugin have this version; the names of settings that no longer apply and are dropped.

    ``agree`` says what is granted to it.

    A plugin that is enabled is stopped, changed and started; where the new version does not become ready, the one
    before it is started again. When this returns the record permanently names one of the two.

    Raises: Conflict; Denied; why the new version did not become ready; Unavailable where nothing could be changed.
    """
    check_can_change(plugin, terms)
    before = PluginVersion.of(plugin.record)
    config = parse_config(version.config.encode(), is_stored=True).config
    rebased = rebase(config, plugin.record.overrides)
    granted = await agree(config, rebased.overrides)
    made = replace(version, overrides=rebased.overrides, **granted.as_fields())
    is_enabled = plugin.record.enabled
    if is_enabled:
        await plugin.stop()
    try:
        await _check_nothing_is_mounted(plugin)
        await plugin.save(**made.as_fields(), previous=before if is_enabled else None)
    except errors.MoorageError:
        await plugin.start_if_due()
        raise
    if is_enabled:
        await _try_out(context, plugin, terms.wait)
    return rebased.dropped


async def roll_back(context: EngineContext, plugin: Supervisor) -> None:
    """End what runs of a version that was tried out, and let the one before it count again.

    Raises: Unavailable; the record has both then, and the next start of the engine goes back.
    """
    previous = plugin.record.previous
    assert previous is not None, "a version is being tried out"
    if plugin.state is not State.DISABLED:
        await plugin.stop()
    await plugin.runner.remove_orphans(context.availability.require())
    await plugin.runner.remove_files()  # the root that is mounted is the other one's
    await plugin.save(**previous.as_fields(), previous=None)


async def restore_package(plugin: Supervisor, version: PluginVersion, given: Overrides, granted: Grants | None) -> None:
    """Give a plugin whose package is lost this one: a job of its inbox. One that is enabled is started.

    ``given`` are settings that go before its own, ``granted`` is what it may have beside what it had (None: whatever it
    requests). Raises: Unavailable where nothing could be changed.
    """
    config = parse_config(version.config.encode(), is_stored=True).config
    rebased = rebase(config, plugin.record.overrides)
    overrides = merge_overrides(rebased.overrides, given)
    if granted is None:
        granted = Grants(compute_privileges(config, effective_settings(config, overrides)))
    made = replace(
        version, overrides=overrides, **grants_of(plugin.record, plugin.config).and_also(granted).as_fields()
    )
    for key in rebased.dropped:
        log.warning("the setting %s of plugin %s does not apply any more and was dropped", key, plugin.name)
    if plugin.state is not State.DISABLED:
        await plugin.stop()
    await plugin.runner.remove_files()
    await plugin.save(**made.as_fields(), previous=None)
    await plugin.start_if_due()


async def _try_out(context: EngineContext, plugin: Supervisor, wait: float) -> None:
    """Start the new version and make it the only one. Raises: why that failed, after going back."""
    failure = await plugin.start(context.timeouts.ready, failures=0)
    if failure is None and not plugin.is_ready:
        failure = errors.Conflict("a stop was requested while it started")
    if failure is None:
        try:
            if wait:
                await plugin.health.wait_healthy(wait)
            await plugin.save(previous=None)
        except errors.MoorageError as error:
            failure = error
    if failure is None:
        plugin.report("ready")
        return
    log.warning("plugin %s goes back to its version of before: %s", plugin.name, failure)
    await roll_back(context, plugin)
    await plugin.start_if_due()
    raise as_user_error(
        failure, f"cannot upgrade plugin {plugin.name}: {failure}; the version of before is current again"
    ) from failure


async def _check_nothing_is_mounted(plugin: Supervisor) -> None:
    """Raises: Conflict naming what is mounted below its root, which would be lost with the root. Source: case 014."""
    if points := await run_blocking(lambda: mount_points_below(plugin.directories.runtime)):
        raise errors.Conflict(f"cannot upgrade plugin {plugin.name}: {points[0]} is mounted; unmount it first")

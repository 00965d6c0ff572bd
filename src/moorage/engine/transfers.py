"""Packages of plugins that are here: named, pushed, saved, loaded from archives, made of images, measured, pruned."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.grants import Grants, save_log_target
from moorage.engine.installation import Installation, Operation
from moorage.engine.runtime import EngineContext
from moorage.engine.supervisor import Supervisor
from moorage.engine.values import PluginView
from moorage.engine.versions import Importer, VersionBuilder
from moorage.host.directory_tree import remove_tree_now, tree_bytes
from moorage.packages.archive_export import ExportedPackage, export_archive
from moorage.packages.archive_import import (
    Archive,
    ArchivedPlugin,
    ArchiveSource,
    import_archive,
    list_packages,
    resolve_plugins,
)
from moorage.packages.content import ImportContext, Package, is_stored, lease_package, refer_to_blobs
from moorage.packages.image import import_image, resolve_image
from moorage.packages.pull import ResolvedPackage, pull_package
from moorage.packages.push import push_package
from moorage.packages.source import ProgressStep, ReportProgress, Source
from moorage.packages.usage import DiskUsage, Pruned, StoredPlugin, measure_usage
from moorage.plugins import Reference, local_name, parse_reference
from moorage.registry.credentials import Credentials

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage
    from moorage.oci.manifest import Manifest

__all__ = ("LoadResult", "PackageTransfers")

log = logging.getLogger(__name__)


class LoadResult(Struct, frozen=True):
    """A plugin of an archive that was loaded; one that existed already, with the same package, is not new."""

    plugin: PluginView
    is_new: bool


class PackageTransfers:
    """Transfers of packages out of and into one engine, and their names and usage."""

    def __init__(self, context: EngineContext, versions: VersionBuilder, installation: Installation) -> None:
        self._context = context
        self._versions = versions
        self._installation = installation

    # names

    def find_named(self, text: str) -> tuple[Supervisor, str]:
        """The plugin that a text means, and which of its names that is: its own one if it is an id.

        Raises:
            errors.NotFound: there is no such plugin
            errors.Invalid: it is the beginning of several ids
        """
        plugin = self._context.plugins.get(text)
        try:
            name = local_name(text)
        except errors.Invalid:
            return plugin, plugin.name
        return plugin, name if name in plugin.record.tags else plugin.name

    async def tag(self, text: str, name: str) -> Supervisor:
        """Give a plugin a further name; nothing changes if it has it already.

        Raises:
            errors.NotFound: there is no such plugin
            errors.Invalid: it is not a name
            errors.Conflict: another plugin has the name
        """
        plugin, new = self._context.plugins.get(text), local_name(name)
        if plugin.is_called(new):
            return plugin
        with self._context.plugins.reserve(new):

            async def job() -> None:
                self._check_exists(plugin)
                await plugin.save(tags=(*plugin.record.tags, new))

            await plugin.inbox.run_job(job)
        plugin.report("tag", name=new)
        return plugin

    async def rename(self, text: str, name: str) -> Supervisor:
        """Replace a plugin's own name; its id, further names and settings stay.

        Raises:
            errors.NotFound: there is no such plugin
            errors.Invalid: it is not a name
            errors.Conflict: a plugin has the name
        """
        plugin, new = self._context.plugins.get(text), local_name(name)
        old = plugin.name
        with self._context.plugins.reserve(new):

            async def job() -> None:
                self._check_exists(plugin)
                await plugin.save(name=new)
                await save_log_target(plugin)

            await plugin.inbox.run_job(job)
        plugin.report("rename", oldName=old)
        return plugin

    async def untag(self, text: str) -> bool:
        """Remove a further name; False if the text is a plugin's own name or id. Raises: errors.NotFound."""
        plugin, name = self.find_named(text)
        if name == plugin.name:
            return False

        async def job() -> None:
            self._check_exists(plugin)
            await plugin.save(tags=tuple(each for each in plugin.record.tags if each != name))

        await plugin.inbox.run_job(job)
        plugin.report("untag", name=name)
        return True

    def _check_exists(self, plugin: Supervisor) -> None:
        if self._context.plugins.find_id(plugin.id) is None or plugin.record.removing:
            raise errors.NotFound(f'plugin "{plugin.name}" not found')

    # out of the engine

    @asynccontextmanager
    async def push(self, text: str, to: str, credentials: Credentials) -> AsyncIterator[Operation]:
        """The push of a plugin's package, unchanged, to ``to``, or else to the name that was used.

        Raises:
            errors.NotFound: there is no such plugin
            errors.Invalid: the reference has a digest, which no user can choose
            errors.Conflict: a part of the package is missing or damaged
            errors.Unavailable: containerd does not answer
        """
        plugin, name = self.find_named(text)
        target = parse_reference(local_name(to) if to else name)
        async with self._leased((plugin,)) as (storage, (manifest,)):

            async def run(report: ReportProgress) -> Mapping[str, object]:
                report(ProgressStep(f"The push refers to repository [{target.familiar_name}]"))
                async with self._installation.registry(target, credentials, "push") as registry:
                    await push_package(storage, registry, manifest, target, report)
                log.info("pushed plugin %s to %s", plugin.name, target.familiar)
                pushed = manifest.descriptor
                return {"Tag": target.tag, "Digest": pushed.digest, "Size": pushed.size_bytes}

            yield Operation(plugin.name, run)

    @asynccontextmanager
    async def _leased(self, plugins: Sequence[Supervisor]) -> "AsyncIterator[tuple[Storage, list[Manifest]]]":
        """Packages that stay until the end of the block, even if their plugins are removed or upgraded."""
        runtime = await self._context.availability.wait()
        async with runtime.lease() as lease:
            storage = runtime.storage.under(lease)
            yield (
                storage,
                [
                    await lease_package(storage, plugin.record.stored_package, is_enabled=plugin.record.enabled)
                    for plugin in plugins
                ],
            )

    @asynccontextmanager
    async def save(self, names: Sequence[str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """An OCI archive with these plugins, in this order, each once.

        Raises:
            errors.NotFound: there is no such plugin
            errors.Invalid: there are no names
            errors.Conflict: a part of a package is missing or damaged
            errors.Unavailable: containerd does not answer
        """
        plugins = list({plugin.id: plugin for plugin in map(self._context.plugins.get, names)}.values())
        if not plugins:
            raise errors.Invalid("cannot save nothing: give the names of plugins")
        async with self._leased(plugins) as (storage, manifests):
            packages = [
                ExportedPackage(str(parse_reference(plugin.name)), str(parse_reference(plugin.record.reference)), each)
                for plugin, each in zip(plugins, manifests, strict=True)
            ]
            async with aclosing(export_archive(storage, packages)) as chunks:
                yield chunks

    # into the engine

    async def load(self, archive: AsyncIterator[bytes], name: str = "") -> Sequence[LoadResult]:
        """Import every plugin of an OCI archive, all or none; ``name`` is for an archive with one.

        A plugin that exists with the same name and package is unchanged. A new one is granted nothing: no user has
        seen what an archive requests before it is read.

        Raises:
            errors.Denied: a plugin is not signed as the policy requires
            errors.Invalid: it is not such an archive, is damaged, or does not name a plugin
            errors.NotFound: a plugin has no package for this platform
            errors.Conflict: another plugin has the name
            errors.Unavailable: the disk is full, or containerd does not answer
        """
        runtime = await self._context.availability.wait()
        async with runtime.lease() as lease:
            storage = runtime.storage.under(lease)
            imported = await import_archive(storage, archive)
            found = await resolve_plugins(storage, imported, name, self._installation.signatures.verify)
            async with AsyncExitStack() as names:
                existing = [each for each in found if await self._exists(each)]
                new = [each for each in found if each not in existing]
                for each in new:
                    await names.enter_async_context(self._versions.reserve(each.local))
                for each in existing:
                    await _refer_again(storage, each.resolved)
                made = await self._make_all(new)
        made_names = {plugin.name for plugin in made}
        return [LoadResult(self._context.plugins.get(each.local).view(), each.local in made_names) for each in found]

    async def _exists(self, found: ArchivedPlugin) -> bool:
        """Whether there is a plugin of this name and package; one that is being removed is a conflict."""
        for plugin in self._context.plugins.all():
            if plugin.is_called(found.local) and not plugin.record.removing:
                is_same = plugin.record.digest == found.resolved.manifest.descriptor.digest
                storage = (await self._context.availability.wait()).storage
                return is_same and await is_stored(storage, plugin.record.stored_package)
        return False

    async def _make_all(self, found: Sequence[ArchivedPlugin]) -> Sequence[Supervisor]:
        """Make every plugin or none: those that were made are removed if one fails."""
        made: list[Supervisor] = []
        known = {plugin.id for plugin in self._context.plugins.all()}
        try:
            for each in found:
                importer = self._importer(each)
                plugin = await self._versions.make(each.local, each.reference, importer, granted=Grants())
                if plugin.id in known:  # it has its package again, whatever happens to the others
                    continue
                made.append(plugin)
                plugin.report("create")
        except BaseException:
            with anyio.CancelScope(shield=True):
                for plugin in made:
                    await self._undo(plugin)
            raise
        return made

    def _importer(self, found: ArchivedPlugin) -> Importer:
        async def import_package(context: ImportContext) -> Package:
            return await pull_package(context, found.source, found.resolved, self._installation.locks)

        return import_package

    async def _undo(self, plugin: Supervisor) -> None:
        try:
            await plugin.inbox.run_job(lambda: plugin.remove_now(plugin.name, force=True))
        except errors.MoorageError as error:
            log.warning("cannot undo the load of plugin %s: %s", plugin.name, error)

    @asynccontextmanager
    async def create_from(
        self, name: str, body: AsyncIterator[bytes], remote: str, credentials: Credentials
    ) -> AsyncIterator[Operation]:
        """The creation of a plugin of a container image. ``body`` is a tar of config.json and an OCI layout with the
        image, or of config.json alone if ``remote`` is the reference of the image.

        Raises:
            errors.Conflict: the name is taken
            errors.Denied: the plugin or the image is not signed as the policy requires
            errors.Invalid: it is not an image, or the config is invalid
            errors.MoorageError: what the registry's client raises
        """
        local = local_name(name)
        self._installation.signatures.refuse_unsigned(local)
        runtime = await self._context.availability.wait()
        async with self._versions.reserve(local), runtime.lease() as lease:
            storage = runtime.storage.under(lease)
            archive = await import_archive(storage, body)
            if not archive.config:
                raise errors.Invalid("cannot make a plugin: there is no config.json beside the image")
            reference = parse_reference(remote or local).with_default_tag()
            async with self._image_source(storage, archive, reference, credentials, is_remote=bool(remote)) as source:
                verify = self._installation.signatures.verify if remote else None
                found = await resolve_image(source, reference, archive.config, verify=verify)
                yield Operation(local, lambda report: self._make_of_image(local, source, found, report))

    async def _make_of_image(
        self, local: str, source: Source, found: ResolvedPackage, report: ReportProgress
    ) -> Mapping[str, object]:
        async def import_package(context: ImportContext) -> Package:
            return await import_image(context, source, found, self._installation.locks, report)

        plugin = await self._versions.make(local, local, import_package)
        plugin.report("create")
        warnings = list(plugin.record.warnings)
        return {"Id": plugin.id, "Name": plugin.name, "Digest": plugin.record.digest, "Warnings": warnings}

    @asynccontextmanager
    async def _image_source(
        self, storage: "Storage", archive: Archive, reference: Reference, credentials: Credentials, *, is_remote: bool
    ) -> AsyncIterator[Source]:
        """The source of the image: a registry, or the archive."""
        if not is_remote:
            yield ArchiveSource(storage, archive, list_packages(archive))
            return
        async with self._installation.registry(reference, credentials) as registry:
            yield registry

    # on the disk

    async def prune(self) -> Pruned:
        """Remove orphaned uploads, content and layers that nothing refers to, and logs of removed plugins.

        While a plugin is created or pulled its uploads cannot be distinguished from orphaned ones, so none is removed.

        Raises:
            errors.Unavailable: containerd does not answer
        """
        runtime = await self._context.availability.wait()
        before = await self.usage()
        async with runtime.gate:
            under_way = len(runtime.leases)
            if not under_way:
                await self._versions.sweep(runtime)
            await runtime.storage.collect()
        known = {plugin.id for plugin in self._context.plugins.all()}
        store = self._context.store
        logs = await run_blocking(lambda: _remove_orphaned_logs(store.root / "logs", known, store.is_free))
        after = await self.usage()
        freed = before.total_bytes - after.total_bytes
        return Pruned(max(0, freed) + logs, max(0, before.uploads - after.uploads), under_way)

    async def usage(self) -> DiskUsage:
        """What plugins take of the disk.

        Raises:
            errors.Unavailable: containerd does not answer
        """
        storage = (await self._context.availability.wait()).storage
        return await measure_usage(storage, [_stored_plugin(plugin) for plugin in self._context.plugins.all()])


async def _refer_again(storage: "Storage", found: ResolvedPackage) -> None:
    """Label the manifest of an existing package with its blobs: one that was damaged has been written again."""
    manifest = found.manifest
    layers = [layer.digest for layer in manifest.layers]
    await refer_to_blobs(storage, manifest.descriptor.digest, manifest.config.digest, layers)


def _stored_plugin(plugin: Supervisor) -> StoredPlugin:
    data, logs = plugin.directories.propagated_mount, plugin.log.directory
    return StoredPlugin(plugin.id, plugin.record.stored_package, data, logs)


def _remove_orphaned_logs(directory: Path, known: set[str], is_free: Callable[[str], bool]) -> int:
    """Remove the logs of plugins without a record; returns the bytes that were freed (blocking)."""
    freed = 0
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name not in known and is_free(path.name):
            try:
                size = tree_bytes(path)
                remove_tree_now(path)
            except OSError as error:
                log.warning("cannot remove the logs in %s: %s", path, error)
            else:
                freed += size
    return freed

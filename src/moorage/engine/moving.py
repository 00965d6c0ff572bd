"""What becomes of plugins' packages: pushed, named once more, saved, measured. Nothing here runs a plugin."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from moorage import errors
from moorage.containerd.damage import DamagedContent
from moorage.distribution.archive import Packed, write_archive
from moorage.distribution.auth import Credentials, credentials_for
from moorage.distribution.hosts import Options
from moorage.distribution.pushing import push_package
from moorage.distribution.registry import Registry
from moorage.distribution.source import Progress, Report
from moorage.distribution.stored import Contents, hold, read_contents
from moorage.engine.creation import Creation
from moorage.engine.disk import measure_disk, prune
from moorage.engine.package_repair import way_back, way_to_repair
from moorage.engine.packages import Operation
from moorage.engine.plugin import Plugin
from moorage.engine.usage import DiskUsage, Pruned
from moorage.engine.work import Work
from moorage.plugins import Reference, local_name, parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("Moving",)

log = logging.getLogger(__name__)


class Moving:
    """The packages of one engine's plugins."""

    def __init__(self, work: Work, creation: Creation, options: Options) -> None:
        self._work = work
        self._creation = creation
        self._options = options

    # names

    def called(self, text: str) -> tuple[Plugin, str]:
        """The plugin that is meant, and which of its names that is: its own one where an id was given.

        Raises: NotFound, Invalid.
        """
        plugin = self._work.registry.get(text)
        try:
            name = local_name(text)
        except errors.Invalid:
            return plugin, plugin.name
        return plugin, name if name in plugin.record.tags else plugin.name

    async def tag(self, text: str, name: str) -> Plugin:
        """Give a plugin a further name; one that it has already is fine.

        Raises: Invalid for what is no name; Conflict where another plugin has it.
        """
        plugin, new = self._work.registry.get(text), local_name(name)
        if plugin.is_called(new):
            return plugin
        with self._work.registry.reserve(new):

            async def job() -> None:
                self._check_there(plugin)
                await self._work.save(plugin, tags=(*plugin.record.tags, new))

            await self._work.inboxes.run(plugin.id, job)
        self._work.tell(plugin, "tag", name=new)
        return plugin

    async def untag(self, text: str) -> bool:
        """Take a further name away; False where the text means a plugin by its own name or id. Raises: NotFound."""
        plugin, name = self.called(text)
        if name == plugin.name:
            return False

        async def job() -> None:
            self._check_there(plugin)
            await self._work.save(plugin, tags=tuple(each for each in plugin.record.tags if each != name))

        await self._work.inboxes.run(plugin.id, job)
        self._work.tell(plugin, "untag", name=name)
        return True

    def _check_there(self, plugin: Plugin) -> None:
        if self._work.registry.find_id(plugin.id) is None or plugin.record.removing:
            raise errors.NotFound(f'plugin "{plugin.name}" not found')

    # to a registry

    @asynccontextmanager
    async def push(self, text: str, to: str, credentials: Credentials) -> AsyncIterator[Operation]:
        """The push of a plugin's package, as it is, to ``to``, or else to the name that was used.

        Raises: NotFound; Invalid for a reference with a digest, which nobody can choose; Conflict for a package that is
        not whole; Unavailable. When it is run: what the registry says, by kind.
        """
        plugin, name = self.called(text)
        target = parse_reference(local_name(to) if to else name)
        async with self._held((plugin,)) as (storage, (contents,)):

            async def run(report: Report) -> Mapping[str, object]:
                report(Progress(f"The push refers to repository [{target.familiar_name}]"))
                async with self._registry(target, credentials) as registry:
                    await push_package(storage, registry, contents, target, report)
                log.info("pushed plugin %s to %s", plugin.name, target.familiar)
                manifest = contents.manifest
                return {"Tag": target.tag, "Digest": manifest.digest, "Size": manifest.size_bytes}

            yield Operation(plugin.name, run)

    def _registry(self, target: Reference, credentials: Credentials) -> Registry:
        find = credentials_for(target.host, credentials)
        return Registry(target, "push", credentials=find, options=self._options, timeouts=self._work.timeouts)

    @asynccontextmanager
    async def _held(self, plugins: Sequence[Plugin]) -> "AsyncIterator[tuple[Storage, list[Contents]]]":
        """Packages that stay for the length of the block, even where their plugins are removed or upgraded."""
        machinery = await self._work.await_machinery()
        async with machinery.lease() as lease:
            storage = machinery.storage.under(lease)
            yield storage, [await self._hold(storage, plugin) for plugin in plugins]

    async def _hold(self, storage: "Storage", plugin: Plugin) -> Contents:
        """A plugin's package, all of it there and intact. Raises: Conflict naming what is missing or damaged."""
        try:
            target = (await storage.get_image(plugin.record.image)).target
        except errors.NotFound as error:
            raise errors.Conflict(
                f"cannot read the package of plugin {plugin.name}: it is not in containerd any more ({error}); "
                f"to get it back {way_back(plugin)}"
            ) from error
        try:
            await hold(storage, target.digest)
            contents = await read_contents(storage, target)
            for blob in contents.blobs:
                await hold(storage, blob.digest)
        except (errors.NotFound, DamagedContent) as error:
            missing = "" if isinstance(error, DamagedContent) else "; a part of it is not in containerd any more"
            raise errors.Conflict(
                f"cannot read the package of plugin {plugin.name}: {error}{missing}; "
                f"to repair it {way_to_repair(plugin)}"
            ) from error
        return contents

    # to a file

    @asynccontextmanager
    async def save(self, names: Sequence[str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """An OCI archive with these plugins, in this order, each once.

        Raises: NotFound, Invalid; Conflict for a package that is not whole; Unavailable.
        """
        plugins = list({plugin.id: plugin for plugin in map(self._work.registry.get, names)}.values())
        if not plugins:
            raise errors.Invalid("cannot save nothing: give the names of plugins")
        async with self._held(plugins) as (storage, contents):
            packed = [
                Packed(str(parse_reference(plugin.name)), str(parse_reference(plugin.record.reference)), each)
                for plugin, each in zip(plugins, contents, strict=True)
            ]
            async with aclosing(write_archive(storage, packed)) as chunks:
                yield chunks

    # on the disk

    async def prune(self) -> Pruned:
        """Remove what nothing refers to. Raises: Unavailable while containerd is away."""
        return await prune(self._work, self._creation.sweep)

    async def usage(self) -> DiskUsage:
        """What plugins take of the disk. Raises: Unavailable while containerd is away."""
        return await measure_disk(self._work)

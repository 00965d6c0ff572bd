"""Plugins that come without a registry's plugin behind them: out of archives, and made from container images."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from moorage import errors
from moorage.distribution.auth import Credentials, credentials_for
from moorage.distribution.image import find_image, take_image
from moorage.distribution.layout import Layout, LayoutSource, Listed, list_packages, take_layout
from moorage.distribution.package import Package, hold_by_manifest
from moorage.distribution.pull import Found, Shared, Verify, find, take
from moorage.distribution.registry import Registry
from moorage.distribution.source import Report, Source
from moorage.engine.consent import Granted
from moorage.engine.creation import Creation, Desk
from moorage.engine.package_repair import is_lost
from moorage.engine.packages import Operation, Packages
from moorage.engine.plugin import Plugin
from moorage.engine.values import PluginView
from moorage.engine.work import Work
from moorage.plugins import Reference, local_name, parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("Arrivals", "Loaded")

log = logging.getLogger(__name__)


class Loaded(Struct, frozen=True):
    """A plugin of an archive that is here now; one that was here before, of the same package, is not new."""

    plugin: PluginView
    is_new: bool


class _Coming(Struct, frozen=True):
    """A plugin of an archive on its way."""

    local: str
    reference: str
    source: LayoutSource
    found: Found


class Arrivals:
    """Takes plugins in."""

    def __init__(self, work: Work, creation: Creation, packages: Packages) -> None:
        self._work = work
        self._creation = creation
        self._packages = packages

    async def load(self, archive: AsyncIterator[bytes], name: str = "") -> Sequence[Loaded]:
        """Take in every plugin of an OCI archive, all or none; ``name`` is for an archive with one.

        A plugin that is here with the same name and package stays as it is. A new one is granted nothing: nobody has
        seen what an archive requests before it is read. Raises: Denied for one that is not signed
        as the policy requires of where it came from, and of its name; Invalid for what is no such
        archive, is damaged, or names nothing; NotFound where it has nothing for this platform; Conflict where a name is
        another plugin's; Unavailable.
        """
        machinery = await self._work.await_machinery()
        async with machinery.lease() as lease:
            storage = machinery.storage.under(lease)
            layout = await self._take(storage, archive)
            coming = [await self._find(storage, layout, *each) for each in _by_name(list_packages(layout), name)]
            async with AsyncExitStack() as names:
                here = [each for each in coming if await self._is_here(each)]
                new = [each for each in coming if each not in here]
                for each in new:
                    await names.enter_async_context(self._creation.reserve(each.local))
                for each in here:
                    await _hold_again(storage, each.found)
                made = await self._make_all(new)
        known = {plugin.name for plugin in made}
        return [Loaded(self._work.registry.get(each.local).view(), each.local in known) for each in coming]

    @asynccontextmanager
    async def create_from(
        self, name: str, body: AsyncIterator[bytes], remote: str, credentials: Credentials
    ) -> AsyncIterator[Operation]:
        """The making of a plugin of a container image. ``body`` is a tar of config.json and an OCI layout with the
        image, or of config.json alone where ``remote`` says in which registry the image is.

        Raises: Conflict where the name is taken; Denied where a plugin of this name, or the image, has to be signed and
        is not; Invalid for what is no image, or a wrong config; what the registry says.
        """
        local = local_name(name)
        self._packages.signatures.refuse_unsigned(local)
        machinery = await self._work.await_machinery()
        async with self._creation.reserve(local), machinery.lease() as lease:
            storage = machinery.storage.under(lease)
            layout = await self._take(storage, body)
            if not layout.config:
                raise errors.Invalid("cannot make a plugin: there is no config.json beside the image")
            reference = parse_reference(remote or local).with_default_tag()
            async with self._source(storage, layout, reference, credentials, is_remote=bool(remote)) as source:
                verify = self._packages.signatures.verify if remote else None
                found = await find_image(source, reference, layout.config, verify=verify)
                yield Operation(local, lambda report: self._make_of_image(local, source, found, report))

    async def _make_of_image(self, local: str, source: Source, found: Found, report: Report) -> Mapping[str, object]:
        async def bring(desk: Desk) -> Package:
            return await take_image(
                desk.storage,
                desk.lease,
                desk.snapshotter,
                source,
                found,
                scratch=desk.scratch,
                shared=self._packages.shared,
                report=report,
            )

        plugin = await self._creation.make(local, local, bring)
        self._work.tell(plugin, "create")
        warnings = list(plugin.record.warnings)
        return {"Id": plugin.id, "Name": plugin.name, "Digest": plugin.record.digest, "Warnings": warnings}

    @asynccontextmanager
    async def _source(
        self, storage: "Storage", layout: Layout, reference: Reference, credentials: Credentials, *, is_remote: bool
    ) -> AsyncIterator[Source]:
        """Where the image is: in a registry, or in the archive that came."""
        if not is_remote:
            yield LayoutSource(storage, layout, list_packages(layout))
            return
        find = credentials_for(reference.host, credentials)
        options, timeouts = self._packages.registries.options, self._work.timeouts
        async with Registry(reference, credentials=find, options=options, timeouts=timeouts) as registry:
            yield registry

    async def _take(self, storage: "Storage", body: AsyncIterator[bytes]) -> Layout:
        try:
            return await take_layout(storage, body)
        except errors.MoorageError as error:
            if errors.is_disk_full(error):
                raise errors.Unavailable(f"cannot take in the archive: the disk is full ({error})") from error
            raise

    async def _find(self, storage: "Storage", layout: Layout, name: str, listed: Sequence[Listed]) -> _Coming:
        reference = parse_reference(name)
        source = LayoutSource(storage, layout, listed)
        came_from = listed[0].reference or (str(reference.with_default_tag()) if listed[0].name else "")
        found = await find(source, reference, verify=self._verifier(name, listed[0]))
        return _Coming(reference.local_name, came_from or reference.local_name, source, found)

    def _verifier(self, name: str, listed: Listed) -> Verify:
        """Checks the signatures that the archive has, for each repository that the plugin is said to be from.

        A bare word is an alias and says nothing of where it came from, unless there is nothing else.
        """
        texts = [each for each in (listed.reference, listed.name, name) if each]
        known = [parse_reference(each).with_default_tag() for each in texts]
        origins = [each for each in known if "/" in each.familiar_name or each == known[0]]

        async def verify(source: Source, _: Reference, digests: Sequence[str]) -> None:
            for origin in dict.fromkeys(origins):
                await self._packages.signatures.verify(source, origin, digests)

        return verify

    async def _is_here(self, coming: _Coming) -> bool:
        """Whether this very package is here by this name. One that is being removed is in the way all the same."""
        for plugin in self._work.registry.all():
            if plugin.is_called(coming.local) and not plugin.record.removing:
                is_same = plugin.record.digest == coming.found.manifest.descriptor.digest
                return is_same and not await is_lost((await self._work.await_machinery()).storage, plugin)
        return False

    async def _make_all(self, coming: Sequence[_Coming]) -> Sequence[Plugin]:
        """Every one, or none: those that were made are removed where one fails."""
        made: list[Plugin] = []
        known = {plugin.id for plugin in self._work.registry.all()}
        try:
            for each in coming:
                plugin = await self._creation.make(each.local, each.reference, self._bring(each), granted=Granted())
                if plugin.id in known:  # it has its package again, and keeps it whatever becomes of the others
                    continue
                made.append(plugin)
                self._work.tell(plugin, "create")
        except BaseException:
            with anyio.CancelScope(shield=True):
                for plugin in made:
                    await self._undo(plugin)
            raise
        return made

    def _bring(self, each: _Coming) -> "_Bring":
        return _Bring(each.source, each.found, self._packages.shared)

    async def _undo(self, plugin: Plugin) -> None:
        try:
            await self._work.inboxes.run(plugin.id, lambda: self._work.remove(plugin, plugin.name, force=True))
        except errors.MoorageError as error:
            log.warning("cannot undo the load of plugin %s: %s", plugin.name, error)


async def _hold_again(storage: "Storage", found: Found) -> None:
    """Let the manifest of a package that is here refer to its blobs: one that was damaged has been written again."""
    manifest = found.manifest
    layers = [layer.digest for layer in manifest.layers]
    await hold_by_manifest(storage, manifest.descriptor.digest, manifest.config.digest, layers)


class _Bring(Struct, frozen=True):
    """Takes a package of an archive in."""

    source: LayoutSource
    found: Found
    shared: Shared

    async def __call__(self, desk: Desk) -> Package:
        return await take(
            desk.storage,
            desk.lease,
            desk.snapshotter,
            self.source,
            self.found,
            scratch=desk.scratch,
            shared=self.shared,
        )


def _by_name(listed: Sequence[Listed], name: str) -> list[tuple[str, list[Listed]]]:
    """The entries of each plugin by its name. Raises: Invalid where one has none, or ``name`` is for several."""
    found: dict[str, list[Listed]] = {}
    for each in listed:
        found.setdefault(each.name, []).append(each)
    if name:
        if len(found) > 1:
            raise errors.Invalid(f"cannot load {len(found)} plugins as {name}: leave the name out")
        return [(name, list(listed))]
    if "" in found:
        raise errors.Invalid("cannot load the archive: it does not say what its plugin is called; give a name (--name)")
    return list(found.items())

"""Give a plugin its desired state: one operation that fetches, installs or changes, and rolls back where that fails."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from moorage import errors
from moorage.engine.changes.values import ChangeTerms
from moorage.engine.consumers.requests import check_authorization
from moorage.engine.installation import Installation, Operation, report_begin
from moorage.engine.lifecycle import State
from moorage.engine.requests import as_user_error
from moorage.engine.runtime import EngineContext
from moorage.engine.supervisor import Supervisor
from moorage.engine.values import InstallOptions
from moorage.engine.versions import VersionBuilder
from moorage.packages.source import ReportProgress
from moorage.plugins import local_name, parse_reference
from moorage.registry.credentials import Credentials

__all__ = ("DesiredPlugins",)

log = logging.getLogger(__name__)


class DesiredPlugins:
    """Applies the desired state of plugins, one by one. It is a part of the API's backend."""

    def __init__(self, context: EngineContext, versions: VersionBuilder, installation: Installation) -> None:
        self._context = context
        self._versions = versions
        self._installation = installation

    @asynccontextmanager
    async def fetch(self, text: str, credentials: Credentials) -> AsyncIterator[Operation]:
        """The import of the package with this reference, for a plugin that is applied within an hour.

        Raises: Invalid; Denied where it is not signed as the policy requires; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        async with self._installation.registry(reference, credentials) as source:
            found = await self._installation.find_signed(source, reference)
            digest = found.manifest.descriptor.digest

            async def run(report: ReportProgress) -> None:
                report_begin(found, report)
                importer = self._installation.importer(source, found, report)
                await self._versions.fetch(f"fetch {reference.familiar}", digest, importer)

            yield Operation(reference.local_name, run)

    @asynccontextmanager
    async def apply(
        self, name: str, text: str, terms: InstallOptions, credentials: Credentials, change: ChangeTerms
    ) -> AsyncIterator[Operation]:
        """The plugin with this name gets its desired state; it is installed from the reference where it is missing.

        Without a reference its version does not change. ``terms`` have the settings of one that is installed, and
        ``change.desired`` those of one that exists. What fails is rolled back: one that was installed is removed again.

        Raises: as ``Installation.pull`` and ``Installation.upgrade``.
        """
        plugin = self._context.plugins.find_called(local_name(name))
        if plugin is None or await self._versions.find_lost(local_name(name)) is not None:
            async with self._installation.pull(text, name, terms, credentials) as pull:
                yield Operation(pull.name, lambda report: self._install(pull, plugin, terms, change, report))
            return
        desired = change.desired
        assert desired is not None, "an apply says what is desired"
        if not text:
            yield Operation(plugin.name, lambda _: self._change(plugin, terms, change))
            return
        async with self._installation.upgrade(name, text, terms, credentials, change) as upgrade:

            async def run(report: ReportProgress) -> None:
                if not desired.enabled:
                    await self._disable(plugin)
                await upgrade.run(report)
                await self._versions.release_fetched(plugin.record.digest)

            yield Operation(plugin.name, run)

    async def _install(
        self,
        pull: Operation,
        lost: Supervisor | None,
        terms: InstallOptions,
        change: ChangeTerms,
        report: ReportProgress,
    ) -> None:
        await pull.run(report)
        plugin = self._context.plugins.get(pull.name)
        try:
            await self._change(plugin, terms, change)
        except errors.MoorageError as error:
            if lost is not None:
                raise
            await self._remove(plugin)
            rolled_back = as_user_error(error, f"cannot install plugin {plugin.name}: {error}; it is removed again")
            rolled_back.is_rolled_back = True
            raise rolled_back from error
        await self._versions.release_fetched(plugin.record.digest)

    async def _change(self, plugin: Supervisor, terms: InstallOptions, change: ChangeTerms) -> None:
        desired = change.desired
        if desired is not None and not desired.enabled:
            await self._disable(plugin)
        await self._installation.change(plugin, self._installation.agreement(plugin, terms), change)

    async def _disable(self, plugin: Supervisor) -> None:
        """Disable one that is enabled. Raises: Conflict where it is in use."""
        if plugin.record.enabled or plugin.state is not State.DISABLED:
            await check_authorization(plugin, "disable", force=False)
            await plugin.disable(plugin.name, force=False)

    async def _remove(self, plugin: Supervisor) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await plugin.inbox.run_job(lambda: plugin.remove_now(plugin.name, force=True))
            except errors.MoorageError as error:  # the failure of the installation is the one that is answered
                log.warning("cannot undo the installation of plugin %s: %s", plugin.name, error)

"""Plugins of registries: the privileges that they request, their installation, and their upgrade to another version.

Each operation has two halves. Entering its block refuses what can be refused, before anything is imported; inside the
block ``run`` does the work, and is given a function that reports progress.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.changes.trial import Agreement, change_version, check_can_change
from moorage.engine.changes.values import ChangeTerms
from moorage.engine.grants import Grants, PrivilegeRequest, grants_of
from moorage.engine.runtime import EngineContext
from moorage.engine.supervisor import Supervisor
from moorage.engine.values import InstallOptions, PluginView
from moorage.engine.versions import Importer, VersionBuilder
from moorage.packages.content import ImportContext, Package, reinstall_hint
from moorage.packages.create import create_package
from moorage.packages.pull import PullLocks, ResolvedPackage, pull_package, resolve_package
from moorage.packages.signatures import SignatureVerifier
from moorage.packages.source import ProgressStep, ReportProgress, Source
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Overrides,
    Policy,
    Privilege,
    Reference,
    TrustedKeys,
    apply_settings,
    compute_privileges,
    effective_settings,
    local_name,
    parse_reference,
    rebase,
)
from moorage.registry.credentials import Credentials, credentials_for
from moorage.registry.hosts import Options
from moorage.registry.login import log_in
from moorage.registry.origin import is_same_reference
from moorage.registry.registry import Registry

__all__ = ("Installation", "Operation", "Registries", "report_begin")

log = logging.getLogger(__name__)

_NOTHING = Grants()


class Registries(Struct, frozen=True):
    """How this host speaks to registries, and what it grants to packages from there."""

    options: Options = field(default_factory=Options)
    policy: Policy | None = None
    """What may be granted unattended; None: everything."""


class Operation(Struct, frozen=True):
    """What is about to be done to one plugin, and may be."""

    name: str
    """Of the plugin, with its tag."""
    run: Callable[[ReportProgress], Awaitable[Mapping[str, object] | None]]
    """Do it, once; returns its result for the user. Raises: why it failed, and then it is undone."""


class Installation:
    """Installs and upgrades plugins. It is a part of the API's backend."""

    def __init__(
        self,
        context: EngineContext,
        versions: VersionBuilder,
        registries: Registries | None = None,
    ) -> None:
        """Raises: Invalid, NotFound for a trusted key."""
        self._context = context
        self._versions = versions
        self.registries = registries or Registries()
        policy = self.registries.policy
        self.signatures = SignatureVerifier(policy.trusted_keys if policy else TrustedKeys(), context.timeouts)
        self.locks = PullLocks()

    async def create(self, name: str, package: AsyncIterator[bytes]) -> Supervisor:
        """Make a plugin of a tar stream of config.json and rootfs/. Cancelled, it leaves nothing.

        Raises:
            errors.Conflict: the name is taken
            errors.Denied: the policy requires a signature for this name
            errors.Invalid: it is not a package
            errors.Unavailable: the disk is full, or containerd does not answer
        """

        async def import_package(context: ImportContext) -> Package:
            return await create_package(context, package)

        self.signatures.refuse_unsigned(name)
        local = local_name(name)
        async with self._versions.reserve(local):
            plugin = await self._versions.make(local, local, import_package)
        plugin.report("create")
        return plugin

    async def privileges(self, text: str, credentials: Credentials) -> tuple[Privilege, ...]:
        """What the plugin with this reference asks for.

        Raises: Invalid for no reference, or one to something that is no plugin; Denied where it is not signed as the
        policy requires; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        async with self.registry(reference, credentials) as source:
            return (await self.find_signed(source, reference)).privileges

    async def request(self, text: str, name: str, terms: InstallOptions, credentials: Credentials) -> PrivilegeRequest:
        """What a plugin would request after these settings: one that is here, one of a reference, or, with both, the
        first in the version of the second.

        Raises: as ``privileges``; NotFound for an unknown plugin; Invalid for settings that it does not have.
        """
        plugin = self._context.plugins.get(name) if name else None
        config, overrides = (plugin.config, plugin.record.overrides) if plugin is not None else (None, NO_OVERRIDES)
        if text or config is None:
            reference = parse_reference(text).with_default_tag()
            async with self.registry(reference, credentials) as source:
                config = (await self.find_signed(source, reference)).config
        made = apply_settings(config, rebase(config, overrides).overrides, terms.assignments, secrets=terms.secrets)
        before = grants_of(plugin.record, plugin.config) if plugin is not None else _NOTHING
        return await run_blocking(lambda: self._context.consent.request_now(config, made, before))

    async def grant(self, name: str, terms: InstallOptions) -> PluginView:
        """Grant what a plugin requests with its settings; terms as for ``pull``. Attended, a person saw all of it.

        Raises: NotFound; Denied where something else is granted, or the host's policy is against it; Unavailable.
        """
        plugin = self._context.plugins.get(name)

        async def job() -> None:
            record = plugin.record
            before = _NOTHING if terms.is_attended else grants_of(record, plugin.config)
            granted = await self.agree(plugin.config, record.overrides, terms, before=before)
            await plugin.save(**granted.as_fields())

        await plugin.inbox.do(job)
        return plugin.view()

    async def log_in(self, address: str, credentials: Credentials) -> str:
        """An identity token to use instead of the password, or "", if the registry accepts these credentials.

        Raises: Unauthorized where it does not; Invalid for what is no address; Unavailable.
        """
        options, timeouts = self.registries.options, self._context.timeouts
        return await log_in(address, credentials, options=options, timeouts=timeouts)

    @asynccontextmanager
    async def pull(
        self, text: str, name: str, terms: InstallOptions, credentials: Credentials
    ) -> AsyncIterator[Operation]:
        """The installation of the plugin with this reference, under a name ("": its own).

        Raises: Conflict where the name is taken; Denied where more is requested than was granted, or where it is not
        signed as the policy requires; Invalid for settings
        that it does not have, no reference, or one to something that is no plugin; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        local = local_name(name) if name else reference.local_name
        await self._context.availability.wait()
        lost = await self._versions.find_lost(local)
        if terms.once and lost is None and (plugin := self._context.plugins.find_called(local)) is not None:
            yield _as_it_is(plugin, reference, terms)
            return
        if lost is not None:
            _check_same_repository(lost, reference)
        async with self._versions.reserve(local), self.registry(reference, credentials) as source:
            found = await self.find_signed(source, reference)
            overrides = apply_settings(found.config, NO_OVERRIDES, terms.assignments, secrets=terms.secrets)
            granted = await self.agree(found.config, overrides, terms, named=overrides)

            async def run(report: ReportProgress) -> None:
                report_begin(found, report)
                importer = self.importer(source, found, report)
                marks = terms.applied_by, terms.labels
                await self._versions.make(local, str(reference), importer, overrides, granted, *marks, verb="install")
                self._context.events.publish("pull", reference.familiar, local)

            yield Operation(local, run)

    @asynccontextmanager
    async def upgrade(
        self,
        name: str,
        text: str,
        terms: InstallOptions,
        credentials: Credentials,
        change: ChangeTerms,
    ) -> AsyncIterator[Operation]:
        """The upgrade of a plugin to the version of a reference ("": the one that it was pulled from).

        If the new version of one that is enabled does not become ready, the one of before is started again.

        Raises: NotFound for an unknown plugin; Conflict where it is enabled, or in use unless ``force``; as
        ``pull``.
        """
        plugin = self._context.plugins.get(name)
        reference = parse_reference(text or plugin.record.reference).with_default_tag()
        await self._context.availability.wait()
        check_can_change(plugin, change)
        async with self.registry(reference, credentials) as source:
            found = await self.find_signed(source, reference)

            agree = self.agreement(plugin, terms)
            if change.desired is None:
                await agree(found.config, rebase(found.config, plugin.record.overrides).overrides)

            async def run(report: ReportProgress) -> None:
                report_begin(found, report)
                importer = self.importer(source, found, report)
                if await self._is_current(plugin, reference, found, importer):
                    report(ProgressStep(f"Plugin {plugin.name} has this version already"))
                    if change.desired is not None:
                        await self.change(plugin, agree, change)
                    return
                for key in await self._change(plugin, str(reference), importer, agree, change):
                    report(ProgressStep(f"The setting {key} does not apply any more and was dropped"))
                self._context.events.publish(
                    "pull", reference.familiar, plugin.name
                )  # the only event that Docker has for it
                plugin.report("upgrade", reference=reference.familiar)

            yield Operation(plugin.name, run)

    def agreement(self, plugin: Supervisor, terms: InstallOptions) -> Agreement:
        """What is granted to a plugin on these terms, beside what it has."""

        async def agree(config: Config, overrides: Overrides) -> Grants:
            return await self.agree(config, overrides, terms, before=grants_of(plugin.record, plugin.config))

        return agree

    async def change(self, plugin: Supervisor, agree: Agreement, terms: ChangeTerms) -> None:
        """As ``upgrade``, without a new version. Raises: Conflict; Denied; Invalid; why what is new did not work."""

        async def job() -> None:
            await change_version(self._context, plugin, None, agree, terms)

        with anyio.CancelScope(shield=True):  # the job has its own bounds
            await plugin.inbox.do(job)

    async def replace_package(self, name: str, package: AsyncIterator[bytes], terms: ChangeTerms) -> tuple[str, ...]:
        """Give a plugin the package of a tar stream of config.json and rootfs/; the settings that no longer apply.

        Its id, settings and propagated files stay; it has what the config requests, since the caller wrote it. Then it
        is one that was created here, and no longer from a registry.

        Raises:
            errors.NotFound: there is no such plugin
            errors.Conflict: it is enabled or in use, and the terms do not allow that
            errors.Denied: the policy requires a signature for this name
            errors.Invalid: it is not a package
            errors.Unavailable: the disk is full, or containerd does not answer
        """
        plugin = self._context.plugins.get(name)
        self.signatures.refuse_unsigned(plugin.name)
        check_can_change(plugin, terms)

        async def import_package(context: ImportContext) -> Package:
            return await create_package(context, package)

        async def agree(config: Config, overrides: Overrides) -> Grants:
            return Grants(compute_privileges(config, effective_settings(config, overrides)))

        dropped = await self._change(plugin, plugin.name, import_package, agree, terms)
        plugin.report("upgrade", reference=plugin.name)
        return dropped

    async def _is_current(
        self, plugin: Supervisor, reference: Reference, found: ResolvedPackage, importer: Importer
    ) -> bool:
        """Whether it has this package and a root of it, so that nothing need be stopped; its blobs are repaired."""
        if plugin.record.digest != found.manifest.descriptor.digest:
            return False
        if not await self._versions.refresh(plugin, importer):
            return False
        if plugin.record.reference != str(reference):

            async def job() -> None:
                await plugin.save(reference=str(reference))

            await plugin.inbox.do(job)
        return True

    async def _change(
        self, plugin: Supervisor, reference: str, importer: Importer, agree: Agreement, terms: ChangeTerms
    ) -> tuple[str, ...]:
        """Import a version, outside the inbox because that may take long, and change to it in the inbox."""
        dropped: tuple[str, ...] = ()
        old = plugin.record.image
        async with self._versions.new_version(plugin, reference, importer) as version:

            async def job() -> None:
                nonlocal dropped, old
                old = plugin.record.image
                dropped = await change_version(self._context, plugin, version, agree, terms)

            with anyio.CancelScope(shield=True):  # half-way it is neither; the job has its own bounds
                await plugin.inbox.do(job)
        await self._versions.delete_image(old, plugin.id)
        return dropped

    def importer(self, source: Source, found: ResolvedPackage, report: ReportProgress) -> Importer:
        """Imports this package from its source."""

        async def import_package(context: ImportContext) -> Package:
            return await pull_package(context, source, found, self.locks, report)

        return import_package

    async def find_signed(self, source: Source, reference: Reference) -> ResolvedPackage:
        """As ``resolve_package``. Raises: also Denied where it is not signed as the policy requires."""
        return await resolve_package(source, reference, verify=self.signatures.verify)

    def registry(
        self, reference: Reference, credentials: Credentials, action: Literal["pull", "push"] = "pull"
    ) -> Registry:
        """The repository of a reference, not opened yet; ``action`` is what credentials are requested for."""
        return Registry(
            reference,
            action,
            credentials=credentials_for(reference.host, credentials),
            options=self.registries.options,
            timeouts=self._context.timeouts,
        )

    async def agree(
        self,
        config: Config,
        overrides: Overrides,
        terms: InstallOptions,
        *,
        named: Overrides = NO_OVERRIDES,
        before: Grants = _NOTHING,
    ) -> Grants:
        """What a plugin has on these terms. Raises: Denied for what was not granted, or is against the policy."""
        consent = self._context.consent
        granted = consent.agree(
            config, overrides, terms.granted, is_attended=terms.is_attended, named=named, before=before
        )
        await run_blocking(lambda: consent.check_policy_now(config, overrides, granted.attended))
        return granted


def report_begin(found: ResolvedPackage, report: ReportProgress) -> None:
    """Report what is pulled, in Docker's words."""
    reference = found.reference
    report(ProgressStep(f"Pulling from {reference.familiar_name}", reference.tag or reference.digest or ""))
    report(ProgressStep(f"Digest: {found.digest}"))


def _check_same_repository(lost: Supervisor, reference: Reference) -> None:
    """Raises: Conflict where a plugin that has lost its package had one of another repository."""
    if parse_reference(lost.record.reference).name != reference.name:
        raise errors.Conflict(
            f"plugin {lost.name} already exists, from {lost.record.reference}; its package is not in containerd any "
            f"more; {reinstall_hint(lost.record.stored_package)}, or remove it first"
        )


def _as_it_is(plugin: Supervisor, reference: Reference, terms: InstallOptions) -> Operation:
    """Nothing to do. Raises: Conflict where it is another one, or set otherwise."""
    record = plugin.record
    if not is_same_reference(parse_reference(record.reference), reference):
        raise errors.Conflict(
            f"plugin {plugin.name} already exists, from {record.reference} and not from {reference}; "
            "run upgrade, or give another name"
        )
    made = apply_settings(plugin.config, record.overrides, terms.assignments, secrets=terms.secrets)
    if made != record.overrides:
        raise errors.Conflict(f"plugin {plugin.name} already exists with other settings; change them with set")
    if not terms.labels.items() <= record.labels.items():
        raise errors.Conflict(f"plugin {plugin.name} already exists with other labels; change them with set --label")

    async def run(report: ReportProgress) -> None:
        report(ProgressStep(f"Plugin {plugin.name} is installed already"))

    return Operation(plugin.name, run)

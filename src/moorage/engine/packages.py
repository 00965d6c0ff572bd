"""Plugins from registries: what they ask for, installed, and brought to another version.

Each operation has two halves. What can be refused is refused on the way into its block, before anything is brought in;
inside the block ``run`` does the work, and is told to whoever reports progress.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
from msgspec import Struct, field

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.distribution.auth import Credentials, credentials_for
from moorage.distribution.hosts import Options
from moorage.distribution.login import log_in
from moorage.distribution.origin import is_same_reference
from moorage.distribution.package import Package
from moorage.distribution.pull import Found, Shared, find, take
from moorage.distribution.registry import Registry
from moorage.distribution.signatures import SignatureVerifier
from moorage.distribution.source import Progress, Report, Source
from moorage.engine.consent import Granted, Request, granted_of
from moorage.engine.creation import Creation, Desk, Taking
from moorage.engine.package_repair import way_back
from moorage.engine.plugin import Plugin
from moorage.engine.values import PluginView, Terms
from moorage.engine.versions import Agreement, change_version, check_can_change
from moorage.engine.work import Job, Work
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Overrides,
    Policy,
    Privilege,
    Reference,
    TrustedKeys,
    apply_settings,
    local_name,
    parse_reference,
    rebase,
)

__all__ = ("Operation", "Packages", "Registries")

log = logging.getLogger(__name__)

_NOTHING = Granted()


class Registries(Struct, frozen=True):
    """How this host speaks to registries, and what it grants to packages from there."""

    options: Options = field(default_factory=Options)
    policy: Policy | None = None
    """What may be granted with nobody there to ask; None: everything."""


class Operation(Struct, frozen=True):
    """What is about to be done to one plugin, and may be."""

    name: str
    """Of the plugin, with its tag."""
    run: Callable[[Report], Awaitable[Mapping[str, object] | None]]
    """Do it, once; what it has to tell at its end. Raises: what went wrong, and then it is undone."""


class Packages:
    """What is done with packages. It is a part of the API's backend."""

    def __init__(
        self,
        work: Work,
        creation: Creation,
        do: Callable[[Plugin, Job], Awaitable[None]],
        registries: Registries | None = None,
    ) -> None:
        """``do`` lets a plugin's inbox do a job, and waits. Raises: Invalid, NotFound for a trusted key."""
        self._work = work
        self._creation = creation
        self._do = do
        self.registries = registries or Registries()
        policy = self.registries.policy
        self.signatures = SignatureVerifier(policy.trusted_keys if policy else TrustedKeys(), work.timeouts)
        self.shared = Shared()

    async def privileges(self, text: str, credentials: Credentials) -> tuple[Privilege, ...]:
        """What the plugin with this reference asks for.

        Raises: Invalid for no reference, or one to something that is no plugin; Denied where it is not signed as the
        policy requires; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        async with self._registry(reference, credentials) as source:
            return (await self._find_signed(source, reference)).privileges

    async def request(self, text: str, name: str, terms: Terms, credentials: Credentials) -> Request:
        """What a plugin would request after these settings: one that is here, one of a reference, or, with both, the
        first in the version of the second.

        Raises: as ``privileges``; NotFound for an unknown plugin; Invalid for settings that it does not have.
        """
        plugin = self._work.registry.get(name) if name else None
        config, overrides = (plugin.config, plugin.record.overrides) if plugin is not None else (None, NO_OVERRIDES)
        if text or config is None:
            reference = parse_reference(text).with_default_tag()
            async with self._registry(reference, credentials) as source:
                config = (await self._find_signed(source, reference)).config
        made = apply_settings(config, rebase(config, overrides).overrides, terms.assignments, secrets=terms.secrets)
        before = granted_of(plugin.record, plugin.config) if plugin is not None else _NOTHING
        return await run_blocking(lambda: self._work.consent.request_now(config, made, before))

    async def grant(self, name: str, terms: Terms) -> PluginView:
        """Grant what a plugin requests with its settings; terms as for ``pull``. Attended, a person saw all of it.

        Raises: NotFound; Denied where something else is granted, or the host's policy is against it; Unavailable.
        """
        plugin = self._work.registry.get(name)

        async def job() -> None:
            record = plugin.record
            before = _NOTHING if terms.is_attended else granted_of(record, plugin.config)
            granted = await self._agree(plugin.config, record.overrides, terms, before=before)
            await self._work.save(plugin, **granted.as_fields())

        await self._do(plugin, job)
        return plugin.view()

    async def log_in(self, address: str, credentials: Credentials) -> str:
        """An identity token in place of the password, or "", where the registry accepts these credentials.

        Raises: Unauthorized where it does not; Invalid for what is no address; Unavailable.
        """
        options, timeouts = self.registries.options, self._work.timeouts
        return await log_in(address, credentials, options=options, timeouts=timeouts)

    @asynccontextmanager
    async def pull(self, text: str, name: str, terms: Terms, credentials: Credentials) -> AsyncIterator[Operation]:
        """The installation of the plugin with this reference, under a name ("": its own).

        Raises: Conflict where the name is taken; Denied where more is asked for than was granted, or where it is not
        signed as the policy requires; Invalid for settings
        that it does not have, no reference, or one to something that is no plugin; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        local = local_name(name) if name else reference.local_name
        await self._work.await_machinery()
        lost = await self._creation.find_lost(local)
        if terms.once and lost is None and (plugin := self._find(local)) is not None:
            yield _as_it_is(plugin, reference, terms)
            return
        if lost is not None:
            _check_same_repository(lost, reference)
        async with self._creation.reserve(local), self._registry(reference, credentials) as source:
            found = await self._find_signed(source, reference)
            overrides = apply_settings(found.config, NO_OVERRIDES, terms.assignments, secrets=terms.secrets)
            granted = await self._agree(found.config, overrides, terms, named=overrides)

            async def run(report: Report) -> None:
                _begin(found, report)
                taking = self._taking(source, found, report)
                await self._creation.make(local, str(reference), taking, overrides, granted, verb="install")
                self._work.events.tell("pull", reference.familiar, local)

            yield Operation(local, run)

    @asynccontextmanager
    async def upgrade(
        self,
        name: str,
        text: str,
        terms: Terms,
        credentials: Credentials,
        *,
        restart: bool = False,
        force: bool = False,
    ) -> AsyncIterator[Operation]:
        """Another version in the place of a plugin's, from a reference ("": the one that it came from).

        ``restart`` also takes one that is enabled: it is stopped, changed and started, and if the new version does not
        become ready, the one of before is started again.

        Raises: NotFound for an unknown plugin; Conflict where it is enabled, or used by somebody unless ``force``; as
        ``pull``.
        """
        plugin = self._work.registry.get(name)
        reference = parse_reference(text or plugin.record.reference).with_default_tag()
        await self._work.await_machinery()
        check_can_change(plugin, restart=restart, force=force)
        async with self._registry(reference, credentials) as source:
            found = await self._find_signed(source, reference)

            async def agree(config: Config, overrides: Overrides) -> Granted:
                return await self._agree(config, overrides, terms, before=granted_of(plugin.record, plugin.config))

            await agree(found.config, rebase(found.config, plugin.record.overrides).overrides)

            async def run(report: Report) -> None:
                _begin(found, report)
                taking = self._taking(source, found, report)
                if await self._is_current(plugin, reference, found, taking):
                    report(Progress(f"Plugin {plugin.name} has this version already"))
                    return
                for key in await self._change(plugin, str(reference), taking, agree, restart=restart, force=force):
                    report(Progress(f"The setting {key} does not apply any more and was dropped"))
                self._work.events.tell("pull", reference.familiar, plugin.name)  # all that Docker tells of it
                self._work.tell(plugin, "upgrade", reference=reference.familiar)

            yield Operation(plugin.name, run)

    async def _is_current(self, plugin: Plugin, reference: Reference, found: Found, taking: Taking) -> bool:
        """Whether it has this package and a root of it, so that nothing need be stopped; its blobs are repaired."""
        if plugin.record.digest != found.manifest.descriptor.digest:
            return False
        if not await self._creation.refresh(plugin, taking):
            return False
        if plugin.record.reference != str(reference):

            async def job() -> None:
                await self._work.save(plugin, reference=str(reference))

            await self._do(plugin, job)
        return True

    async def _change(
        self, plugin: Plugin, reference: str, taking: Taking, agree: Agreement, *, restart: bool, force: bool
    ) -> tuple[str, ...]:
        """Bring a version in, outside the inbox because that may take long, and let the inbox change to it."""
        dropped: tuple[str, ...] = ()
        old = plugin.record.image
        async with self._creation.new_version(plugin, reference, taking) as version:

            async def job() -> None:
                nonlocal dropped, old
                old = plugin.record.image
                dropped = await change_version(self._work, plugin, version, agree, restart=restart, force=force)

            with anyio.CancelScope(shield=True):  # half-way it is neither; the job has its own bounds
                await self._do(plugin, job)
        await self._creation.forget(old, plugin.id)
        return dropped

    def _taking(self, source: Source, found: Found, report: Report) -> Taking:
        async def bring(desk: Desk) -> Package:
            return await take(
                desk.storage,
                desk.lease,
                desk.snapshotter,
                source,
                found,
                scratch=desk.scratch,
                shared=self.shared,
                report=report,
            )

        return bring

    async def _find_signed(self, source: Source, reference: Reference) -> Found:
        """As ``find``. Raises: also Denied where it is not signed as the policy requires."""
        return await find(source, reference, verify=self.signatures.verify)

    def _registry(self, reference: Reference, credentials: Credentials) -> Registry:
        return Registry(
            reference,
            credentials=credentials_for(reference.host, credentials),
            options=self.registries.options,
            timeouts=self._work.timeouts,
        )

    def _find(self, local: str) -> Plugin | None:
        return next((plugin for plugin in self._work.registry.all() if plugin.is_called(local)), None)

    async def _agree(
        self,
        config: Config,
        overrides: Overrides,
        terms: Terms,
        *,
        named: Overrides = NO_OVERRIDES,
        before: Granted = _NOTHING,
    ) -> Granted:
        """What a plugin has on these terms. Raises: Denied for what was not granted, or is against the policy."""
        consent = self._work.consent
        granted = consent.agree(
            config, overrides, terms.granted, is_attended=terms.is_attended, named=named, before=before
        )
        await run_blocking(lambda: consent.check_policy_now(config, overrides, granted.attended))
        return granted


def _begin(found: Found, report: Report) -> None:
    reference = found.reference
    report(Progress(f"Pulling from {reference.familiar_name}", reference.tag or reference.digest or ""))
    report(Progress(f"Digest: {found.digest}"))


def _check_same_repository(lost: Plugin, reference: Reference) -> None:
    """Raises: Conflict where a plugin that has lost its package had one of another repository."""
    if parse_reference(lost.record.reference).name != reference.name:
        raise errors.Conflict(
            f"plugin {lost.name} already exists, from {lost.record.reference}; its package is not in containerd any "
            f"more; {way_back(lost)}, or remove it first"
        )


def _as_it_is(plugin: Plugin, reference: Reference, terms: Terms) -> Operation:
    """Nothing to do. Raises: Conflict where it is another one, or set otherwise."""
    record = plugin.record
    if not is_same_reference(parse_reference(record.reference), reference):
        raise errors.Conflict(
            f"plugin {plugin.name} already exists, from {record.reference} and not from {reference}; "
            "bring it there with upgrade, or give another name"
        )
    made = apply_settings(plugin.config, record.overrides, terms.assignments, secrets=terms.secrets)
    if made != record.overrides:
        raise errors.Conflict(f"plugin {plugin.name} already exists with other settings; change them with set")

    async def run(report: Report) -> None:
        report(Progress(f"Plugin {plugin.name} is installed already"))

    return Operation(plugin.name, run)

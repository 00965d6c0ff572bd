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
from moorage.distribution.auth import Credentials, credentials_for
from moorage.distribution.hosts import Options
from moorage.distribution.package import Package
from moorage.distribution.pull import Found, Shared, find, take
from moorage.distribution.registry import Registry
from moorage.distribution.source import Progress, Report, Source
from moorage.engine.creation import Creation, Desk, Taking
from moorage.engine.package_repair import way_back
from moorage.engine.plugin import Plugin
from moorage.engine.values import Terms
from moorage.engine.versions import change_version, check_can_change
from moorage.engine.work import Job, Work
from moorage.plugins import (
    NO_OVERRIDES,
    Overrides,
    Policy,
    Privilege,
    Reference,
    apply_settings,
    check_granted,
    check_policy,
    local_name,
    parse_reference,
)

__all__ = ("Operation", "Packages", "Registries")

log = logging.getLogger(__name__)


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
        """``do`` lets a plugin's inbox do a job, and waits."""
        self._work = work
        self._creation = creation
        self._do = do
        self.registries = registries or Registries()
        self.shared = Shared()

    async def privileges(self, text: str, credentials: Credentials) -> tuple[Privilege, ...]:
        """What the plugin with this reference asks for.

        Raises: Invalid for no reference, or one to something that is no plugin; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        async with self._registry(reference, credentials) as source:
            return (await find(source, reference)).privileges

    @asynccontextmanager
    async def pull(self, text: str, name: str, terms: Terms, credentials: Credentials) -> AsyncIterator[Operation]:
        """The installation of the plugin with this reference, under a name ("": its own).

        Raises: Conflict where the name is taken; Denied where more is asked for than was granted; Invalid for settings
        that it does not have, no reference, or one to something that is no plugin; what the registry says; Unavailable.
        """
        reference = parse_reference(text).with_default_tag()
        local = local_name(name) if name else reference.local_name
        self._work.need_machinery()
        lost = await self._creation.find_lost(local)
        if terms.once and lost is None and (plugin := self._find(local)) is not None:
            yield _as_it_is(plugin, reference, terms)
            return
        if lost is not None:
            _check_same_repository(lost, reference)
        async with self._creation.reserve(local), self._registry(reference, credentials) as source:
            found = await find(source, reference)
            overrides = self._agree(found, terms)

            async def run(report: Report) -> None:
                _begin(found, report)
                taking = self._taking(source, found, report)
                await self._creation.make(local, str(reference), taking, overrides, verb="install")
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
        self._work.need_machinery()
        check_can_change(plugin, restart=restart, force=force)
        async with self._registry(reference, credentials) as source:
            found = await find(source, reference)
            self._agree(found, terms)

            async def run(report: Report) -> None:
                _begin(found, report)
                taking = self._taking(source, found, report)
                if await self._is_current(plugin, reference, found, taking):
                    report(Progress(f"Plugin {plugin.name} has this version already"))
                    return
                for key in await self._change(plugin, str(reference), taking, restart=restart, force=force):
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
        self, plugin: Plugin, reference: str, taking: Taking, *, restart: bool, force: bool
    ) -> tuple[str, ...]:
        """Bring a version in, outside the inbox because that may take long, and let the inbox change to it."""
        dropped: tuple[str, ...] = ()
        old = plugin.record.image
        async with self._creation.new_version(plugin, reference, taking) as version:

            async def job() -> None:
                nonlocal dropped, old
                old = plugin.record.image
                dropped = await change_version(self._work, plugin, version, restart=restart, force=force)

            with anyio.CancelScope(shield=True):  # half-way it is neither; the job has its own bounds
                await self._do(plugin, job)
        await self._creation.forget(old)
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

    def _registry(self, reference: Reference, credentials: Credentials) -> Registry:
        return Registry(
            reference,
            credentials=credentials_for(reference.host, credentials),
            options=self.registries.options,
            timeouts=self._work.timeouts,
        )

    def _find(self, local: str) -> Plugin | None:
        return next((plugin for plugin in self._work.registry.all() if plugin.is_called(local)), None)

    def _agree(self, found: Found, terms: Terms) -> Overrides:
        """The settings of a new plugin. Raises: Denied for what was not granted, Invalid for settings."""
        if terms.granted is not None:
            check_granted(found.privileges, terms.granted)
        if self.registries.policy is not None and not terms.is_attended:
            check_policy(self.registries.policy, found.config)
        return apply_settings(found.config, NO_OVERRIDES, terms.assignments, secrets=terms.secrets)


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
    if record.reference != str(reference):
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

"""Packages of a registry in memory, for tests of the API: what there is, is what a test puts there."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from moorage import errors
from moorage.engine.changes.values import ChangeTerms
from moorage.engine.grants import PrivilegeRequest
from moorage.engine.installation import Operation
from moorage.engine.values import InstallOptions, PluginView
from moorage.packages.source import ProgressStep, ReportProgress
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Privilege,
    apply_settings,
    check_granted,
    compute_privileges,
    effective_settings,
    find_missing,
    local_name,
    parse_reference,
)
from moorage.registry.credentials import Credentials


class FakePackages:
    """The Packages protocol; the owner adds and finds plugins."""

    def __init__(self, owner: Any) -> None:
        self.there: dict[str, Config] = {}
        """By full reference."""
        self.requests: list[tuple[str, InstallOptions | None, Credentials]] = []
        self.failure: Exception | None = None
        """What happens to an operation after its first line."""
        self.stuck = False
        self.under_way = 0
        self.owner = owner

    async def log_in(self, address: str, credentials: Credentials) -> str:
        if credentials.password == "wrong":
            raise errors.Unauthorized(f"cannot log in to {address}: it answers 401 (unauthorized)")
        return f"token-of-{credentials.username}" if address else ""

    async def privileges(self, text: str, credentials: Credentials) -> Sequence[Privilege]:
        return compute_privileges(self._find(text, None, credentials))

    async def request(self, text: str, name: str, terms: InstallOptions, credentials: Credentials) -> PrivilegeRequest:
        config = self._find(text, terms, credentials) if text else self.owner.get(name).config
        settings = effective_settings(config, apply_settings(config, NO_OVERRIDES, terms.assignments))
        requested = compute_privileges(config, settings)
        before = self.owner.get(name).privileges if name else ()
        return PrivilegeRequest(requested, tuple(find_missing(requested, before)), "")

    async def grant(self, name: str, terms: InstallOptions) -> PluginView:
        plugin: PluginView = self.owner.get(name)
        if terms.granted is not None:
            check_granted(plugin.privileges, terms.granted)
        return plugin

    @asynccontextmanager
    async def pull(
        self, text: str, name: str, terms: InstallOptions, credentials: Credentials
    ) -> AsyncIterator[Operation]:
        config = self._find(text, terms, credentials)
        local = local_name(name) if name else parse_reference(text).local_name
        if any(plugin.name == local for plugin in self.owner.list()):
            raise errors.Conflict(f"plugin {local} already exists")
        check_granted(compute_privileges(config), terms.granted or ())

        async def run(report: ReportProgress) -> None:
            await self.work(report)
            self.owner.add(local, config, labels=terms.labels)

        yield Operation(local, run)

    @asynccontextmanager
    async def upgrade(
        self, name: str, text: str, terms: InstallOptions, credentials: Credentials, change: ChangeTerms
    ) -> AsyncIterator[Operation]:
        plugin: PluginView = self.owner.get(name)
        self._find(text or plugin.reference, terms, credentials)
        if plugin.enabled and not change.restart:
            raise errors.Conflict(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
        yield Operation(plugin.name, self.work)

    def _find(self, text: str, terms: InstallOptions | None, credentials: Credentials) -> Config:
        reference = str(parse_reference(text).with_default_tag())
        self.requests.append((reference, terms, credentials))
        if reference not in self.there:
            raise errors.NotFound(f"cannot read {text}: there is none")
        return self.there[reference]

    async def work(self, report: ReportProgress) -> None:
        report(ProgressStep("Pulling from a/b", "latest"))
        for at in range(1, 1001):
            report(ProgressStep("Downloading", "0123456789ab", at, 1000, is_of_blob=True))
        self.under_way += 1
        try:
            await anyio.lowlevel.checkpoint()
            if self.stuck:
                await anyio.sleep_forever()
        finally:
            self.under_way -= 1
        if self.failure is not None:
            raise self.failure
        report(ProgressStep("Complete", "0123456789ab", is_of_blob=True))


class FakeDesired:
    """The Desired protocol on fake packages; settings, policies and publications are not changed."""

    def __init__(self, packages: FakePackages) -> None:
        self.packages = packages
        self.changes: list[ChangeTerms] = []

    @asynccontextmanager
    async def fetch(self, text: str, credentials: Credentials) -> AsyncIterator[Operation]:
        await self.packages.privileges(text, credentials)
        yield Operation(parse_reference(text).local_name, self.packages.work)

    @asynccontextmanager
    async def apply(
        self, name: str, text: str, terms: InstallOptions, credentials: Credentials, change: ChangeTerms
    ) -> AsyncIterator[Operation]:
        self.changes.append(change)
        packages = self.packages
        is_new = not any(each.name == local_name(name) for each in packages.owner.list())
        made = (
            packages.pull(text, name, terms, credentials)
            if is_new
            else packages.upgrade(name, text, terms, credentials, change)
        )
        async with made as operation:
            yield operation

"""An engine in memory, for tests of the API: real lookups' rules, real configs, settings and events; nothing runs."""

import io
import secrets as random
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.processes import AddedProcess, ExecCommand
from moorage.engine.changes.values import ChangeTerms, PolicyChange
from moorage.engine.lifecycle import RestartPolicy, Restarts, State
from moorage.engine.telemetry import EngineCounters, EventLog, Metrics, measure
from moorage.engine.values import EngineInfo, Holder, PluginEvent, PluginView, Publication
from moorage.host.cgroup_usage import CgroupUsage, ProcessView
from moorage.logs.lines import Line
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Overrides,
    apply_settings,
    check_confinement,
    check_labels,
    compute_privileges,
    effective_settings,
    local_name,
    parse_config,
    widenings,
)
from moorage.proxy.protocol import PublishOptions, VolumeMount
from moorage.runs.http_call import PluginResponse
from support.fake_packages import FakeDesired, FakePackages
from support.fake_transfers import FakeTransfers
from support.fake_volumes import FakeVolumeDriver


class FakeBackend:
    """The Backend protocol over dictionaries. ``stuck`` makes creates wait before they return, as slow storage does."""

    def __init__(self) -> None:
        self.plugins: dict[str, PluginView] = {}
        self.overrides: dict[str, Overrides] = {}
        self.lines: dict[str, list[Line]] = {}
        self.event_log = EventLog()
        self.stuck = False
        self.undone: list[str] = []
        """Names of the plugins whose creation was cut off."""
        self.followers = 0
        self.signals: list[tuple[str, int]] = []
        self.failure: Exception | None = None
        """What the next lookup of a plugin raises."""
        self.packages = FakePackages(self)
        self.transfers = FakeTransfers(self)
        self.desired = FakeDesired(self.packages)
        self.drivers: dict[str, FakeVolumeDriver] = {}
        self.volume_calls: list[tuple[str, str, dict[str, Any], str]] = []
        """Plugin, method, body and consumer of each call to a volume driver."""
        self._more = anyio.Event()

    async def settle(self) -> None:
        """It has no containerd to wait for."""

    def info(self) -> EngineInfo:
        return EngineInfo(
            root="/var/lib/moorage",
            namespace="plugins.moby",
            containerd="private",
            containerd_address="/run/moorage/containerd/c.sock",
            containerd_version="1.6.20",
            problem="",
            snapshotter="overlayfs",
            started_at=datetime.now(UTC),
            engine_id="f" * 32,
        )

    def list(self) -> Sequence[PluginView]:
        return sorted(self.plugins.values(), key=lambda plugin: plugin.name)

    def get(self, name: str) -> PluginView:
        if self.failure is not None:
            raise self.failure
        if name in self.plugins:
            return self.plugins[name]
        for plugin in self.plugins.values():
            if plugin.name == _name(name):
                return plugin
        found = [plugin for id, plugin in self.plugins.items() if name and id.startswith(name)]
        if len(found) > 1:
            raise errors.Invalid(f'multiple plugins found for "{name}"')
        if not found:
            raise errors.NotFound(f'plugin "{name}" not found')
        return found[0]

    async def create(self, name: str, package: AsyncIterator[bytes]) -> PluginView:
        local = local_name(name)
        if any(plugin.name == local for plugin in self.plugins.values()):
            raise errors.Conflict(f"plugin {local} already exists")
        try:
            raw = b"".join([chunk async for chunk in package])
            if self.stuck:
                await anyio.sleep_forever()
        except BaseException:
            self.undone.append(local)
            raise
        parsed = parse_config(await run_blocking(lambda: _config_of(raw)))
        return self.add(local, parsed.config, parsed.warnings)

    def add(
        self, local: str, config: Config, warnings: tuple[str, ...] = (), labels: Mapping[str, str] | None = None
    ) -> PluginView:
        """Take a plugin in, under its full name."""
        view = PluginView(
            id=random.token_hex(32),
            name=local,
            reference=local,
            enabled=False,
            state=State.DISABLED,
            config=config,
            settings=effective_settings(config, NO_OVERRIDES),
            privileges=compute_privileges(config),
            warnings=warnings,
            labels=labels or {},
        )
        self.plugins[view.id], self.overrides[view.id], self.lines[view.id] = view, NO_OVERRIDES, []
        self.event_log.publish("create", view.id, local)
        return view

    async def enable(self, name: str, within: float) -> None:
        plugin = self.get(name)
        if plugin.enabled:
            raise errors.Conflict(f"plugin already enabled: plugin {plugin.name} is enabled")
        self._put(replace(plugin, enabled=True, state=State.READY, ready_at=datetime.now(UTC), pid=4711))
        self.event_log.publish("enable", plugin.id, name)

    async def disable(self, name: str, *, force: bool) -> None:
        plugin = self.get(name)
        _check_unused(plugin, force=force)
        if not plugin.enabled:
            raise errors.Conflict(f"plugin is already disabled: plugin {plugin.name} found but disabled")
        self._put(replace(plugin, enabled=False, state=State.DISABLED, ready_at=None, pid=None, holders=()))
        self.event_log.publish("disable", plugin.id, name)

    async def wait_healthy(self, name: str, within: float) -> None:
        if not self.get(name).enabled:
            raise errors.Conflict(f"plugin {name} is disabled")

    async def restart(self, name: str) -> None:
        plugin = self.get(name)
        if not plugin.enabled:
            raise errors.Conflict(f"cannot restart plugin {plugin.name}: it is disabled")
        self.event_log.publish("restart", plugin.id, plugin.name)

    async def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str]) -> None:
        plugin = self.get(name)
        if plugin.enabled:
            raise errors.Conflict("cannot set on an active plugin, disable plugin before setting")
        made = apply_settings(plugin.config, self.overrides[plugin.id], assignments, secrets=secrets)
        self.overrides[plugin.id] = made
        settings = effective_settings(plugin.config, made)
        self._put(replace(plugin, settings=settings, privileges=compute_privileges(plugin.config, settings)))

    async def remove(self, name: str, *, force: bool) -> None:
        plugin = self.get(name)
        _check_unused(plugin, force=force)
        if plugin.enabled and not force:
            raise errors.Conflict(f"plugin {plugin.name} is enabled")
        del self.plugins[plugin.id]
        self.event_log.publish("remove", plugin.id, name)

    async def set_policy(self, name: str, change: PolicyChange) -> PluginView:
        plugin = self.get(name)
        try:
            restarts = Restarts(change.restarts) if change.restarts is not None else plugin.policy.restarts
        except ValueError as error:
            raise errors.Invalid(f"cannot restart {change.restarts!r}: it must be always, on-failure, never") from error
        if change.most is not None and change.most < 0:
            raise errors.Invalid(f"cannot restart {change.most} times: it must be 0 (no limit) or more")
        if change.stop_timeout is not None and not 0 <= change.stop_timeout <= 3600:
            raise errors.Invalid(f"cannot wait {change.stop_timeout:g} s for a plugin to end: 0 to 3600 are possible")
        most = plugin.policy.most if change.most is None else change.most or None
        wait = plugin.policy.stop_timeout if change.stop_timeout is None else change.stop_timeout
        check_confinement(change.confinement)
        confinement = plugin.confinement.updated(change.confinement)
        standby = plugin.policy.standby if change.standby is None else change.standby
        policy = RestartPolicy(restarts, most, wait, change.log or plugin.policy.log, standby)
        made = replace(plugin, policy=policy, confinement=confinement, widenings=widenings(confinement))
        self._put(made)
        return made

    async def set_labels(self, name: str, added: Mapping[str, str], removed: Sequence[str]) -> PluginView:
        plugin = self.get(name)
        others = {key: value for key, value in plugin.labels.items() if key not in removed}
        made = replace(plugin, labels={**others, **added})
        check_labels(made.labels)
        self._put(made)
        return made

    async def call(self, name: str, method: str, body: bytes, within: float) -> PluginResponse:
        plugin = self.get(name)
        if not plugin.enabled:
            raise errors.Conflict(f"cannot call plugin {plugin.name}: it is disabled")
        return PluginResponse(200 if method == "Echo" else 404, body, "application/json")

    async def publish(
        self,
        name: str,
        names: Sequence[str],
        options: PublishOptions,
        group: str,
        *,
        force: bool,
        podman: bool | None = None,
    ) -> PluginView:
        plugin = self.get(name)
        chosen = tuple(names) or (plugin.name,)
        for other in self.plugins.values():
            if (
                other.id != plugin.id
                and other.published is not None
                and (taken := set(chosen) & {*other.published.names})
            ):
                raise errors.Conflict(f"cannot publish plugin {plugin.name} as {min(taken)}: plugin {other.name} is")
        made = replace(plugin, published=Publication(chosen, group, 0o660 if group else 0o600, options, podman))
        self._put(made)
        return made

    async def unpublish(self, name: str, *, force: bool) -> None:
        plugin = self.get(name)
        if plugin.published is None:
            raise errors.Conflict(f"cannot unpublish plugin {plugin.name}: it is not published")
        self._put(replace(plugin, published=None))

    async def volume_call(
        self, name: str, method: str, body: dict[str, Any], consumer: str, within: float
    ) -> dict[str, Any]:
        plugin = self.get(name)
        self.volume_calls.append((plugin.name, method, dict(body), consumer))
        driver = self.drivers.setdefault(plugin.id, FakeVolumeDriver())
        answer = await driver.answer(method, body)
        if method in ("Mount", "Unmount"):
            mounts = tuple(each for each in plugin.mounts if (each.volume, each.id) != (body["Name"], body["ID"]))
            if method == "Mount":
                path = answer["Mountpoint"]
                mounts += (VolumeMount(body["Name"], body["ID"], path, consumer, datetime.now(UTC)),)
            self._put(replace(plugin, mounts=mounts))
        return answer

    async def acquire(self, name: str, owner: str, *, is_attached: bool) -> Holder:
        plugin = self.get(name)
        if not plugin.enabled:
            raise errors.Conflict(f"cannot add a holder to plugin {plugin.name}: it is disabled")
        holder = Holder(random.token_hex(16), owner, datetime.now(UTC))
        self._put(replace(plugin, holders=(*plugin.holders, holder)))
        return holder

    def host_path(self, name: str, inside: str) -> str:
        plugin = self.get(name)
        if not plugin.enabled:
            raise errors.Conflict(f"cannot find {inside} of plugin {plugin.name}: it is {plugin.state.value}")
        return f"/run/moorage/p/{plugin.id[:12]}/root{inside}"

    async def usage(self, name: str) -> CgroupUsage:
        plugin = self.get(name)
        if not plugin.enabled:
            raise errors.Conflict(f"plugin {plugin.name} does not run: it is {plugin.state.value}")
        return CgroupUsage(datetime.now(UTC), 1.5, 2**20, None, 3)

    async def metrics(self) -> Metrics:
        return await measure(EngineCounters(), [], None)

    async def processes(self, name: str) -> Sequence[ProcessView]:
        self.get(name)
        return []

    def execute(self, name: str, command: ExecCommand) -> AbstractAsyncContextManager[AddedProcess]:
        raise errors.Conflict(f"plugin {self.get(name).name} does not run: it is disabled")

    @asynccontextmanager
    async def read_files(self, name: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        if self.get(name).state is not State.REMOVING:
            raise errors.NotFound(f"cannot copy {path}: the plugin has no such file")
        yield self._nothing()

    async def _nothing(self) -> AsyncIterator[bytes]:
        yield b""

    async def write_files(self, name: str, path: str, archive: AsyncIterator[bytes]) -> None:
        raise errors.NotFound(f"cannot copy to {path}: plugin {self.get(name).name} has no such directory")

    async def replace_package(self, name: str, package: AsyncIterator[bytes], change: ChangeTerms) -> Sequence[str]:
        plugin = self.get(name)
        _check_unused(plugin, force=change.force)
        if plugin.enabled and not change.restart:
            raise errors.Conflict(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
        raw = b"".join([chunk async for chunk in package])
        self._put(replace(plugin, config=parse_config(await run_blocking(lambda: _config_of(raw))).config))
        return ()

    async def signal(self, name: str, number: int) -> None:
        plugin = self.get(name)
        if not plugin.enabled:
            raise errors.Conflict(f"cannot signal plugin {plugin.name}: it is {plugin.state.value}")
        self.signals.append((plugin.name, number))

    async def resize(self, name: str, exec_id: str, rows: int, columns: int) -> None:
        raise errors.NotFound(f"plugin {self.get(name).name} has no added process {exec_id}")

    async def wait_release_requested(self, name: str, token: str) -> None:
        await anyio.sleep_forever()

    async def release(self, name: str, token: str) -> None:
        plugin = self.get(name)
        left = tuple(each for each in plugin.holders if each.token != token)
        if left == plugin.holders:
            raise errors.NotFound(f"plugin {plugin.name} has no holder with this token")
        self._put(replace(plugin, holders=left))

    @asynccontextmanager
    async def logs(
        self, name: str, *, tail: int | None, since: datetime | None, follow: bool
    ) -> AsyncIterator[AsyncIterator[Line]]:
        id = self.get(name).id
        self.followers += 1
        try:
            yield self._read(id, tail, since, follow=follow)
        finally:
            self.followers -= 1

    async def _read(self, id: str, tail: int | None, since: datetime | None, *, follow: bool) -> AsyncIterator[Line]:
        lines = self.lines[id]
        seen = len(lines)
        old = [line for line in lines if since is None or line.at > since]
        for line in old if tail is None else old[max(0, len(old) - tail) :]:
            yield line
        while follow:
            while seen < len(lines):
                seen += 1
                yield lines[seen - 1]
            self._more = anyio.Event()
            await self._more.wait()

    def write(self, name: str, text: str) -> None:
        """The plugin prints a line."""
        self.lines[self.get(name).id].append(Line(datetime.now(UTC), "stdout", text))
        self._more.set()

    @asynccontextmanager
    async def events(self, *, since: int | None, until: int | None) -> AsyncIterator[AsyncIterator[PluginEvent]]:
        async with self.event_log.listen(since, until) as events:
            yield events

    def put(self, plugin: PluginView, **changes: Any) -> None:
        """Let a plugin have these fields."""
        self._put(replace(plugin, **changes))

    def _put(self, plugin: PluginView) -> None:
        self.plugins[plugin.id] = plugin


def _name(text: str) -> str | None:
    try:
        return local_name(text)
    except errors.Invalid:
        return None


def _check_unused(plugin: PluginView, *, force: bool) -> None:
    if plugin.holders and not force:
        raise errors.Conflict(f"plugin {plugin.name} is in use by {', '.join(each.owner for each in plugin.holders)}")


def _config_of(raw: bytes) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            member = archive.extractfile("config.json")
            assert member is not None
            return member.read()
    except (tarfile.TarError, KeyError) as error:
        raise errors.Invalid(f"cannot read the package: {error}") from error

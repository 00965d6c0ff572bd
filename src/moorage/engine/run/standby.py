"""The standby of a plugin: the container of its next run, created while the present one runs, and not started.

A start uses it where it is what the start would create now, and discards it otherwise. It is made in the background,
beside the plugin's inbox; what changes that it depends on waits for it first. Source:
docs/adr/0065-a-standby-of-the-next-run.md.
"""

import logging
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.threads import run_blocking
from moorage.containerd.shims.processes import control_group
from moorage.containerd.types import Spec
from moorage.engine.lifecycle import State, standby_delay
from moorage.engine.run.mount_sources import MountSource, find_mount_sources
from moorage.engine.run.plan import plan_run
from moorage.engine.run.plugin_run import container_labels
from moorage.host.cgroups import parent_group_in_use
from moorage.runs.pins import release_pins
from moorage.runs.plan import RunPlan
from moorage.runs.preparation import close_views, prepare_standby

if TYPE_CHECKING:
    from moorage.engine.plugin import PluginState
    from moorage.engine.runtime import ContainerRuntime, EngineContext

__all__ = ("Standby",)

log = logging.getLogger(__name__)

_AGAIN_FIRST, _AGAIN_LIMIT = 1.0, 60.0  # seconds between two attempts to make one


class _Prepared(Struct, frozen=True):
    """A container that was prepared, and what it has got."""

    runtime: "ContainerRuntime"
    container: str
    spec: Spec
    sources: tuple[MountSource, ...]


class Standby:
    """The standby of one plugin, if its policy says so. Its supervisor says what happens to the plugin."""

    def __init__(self, plugin: "PluginState", context: "EngineContext") -> None:
        """``plugin`` is only read."""
        self._plugin = plugin
        self._context = context
        self._prepared: _Prepared | None = None
        self._found: RunPlan | None = None
        self._scope: anyio.CancelScope | None = None
        self._idle = anyio.Event()
        """Set when nothing makes one."""
        self._idle.set()
        self._discarding = anyio.Lock()
        self._used = anyio.Event()
        """Set when the present one is started or discarded."""

    @property
    def pid(self) -> int | None:
        """The pid of its process; None where there is no standby."""
        prepared = self._prepared
        if prepared is None or not prepared.runtime.executor.is_prepared(prepared.container):
            return None
        return prepared.runtime.executor.pid(prepared.container)

    @property
    def control_group(self) -> str:
        """The path of its control group in every hierarchy; empty where there is no standby."""
        return control_group(self._prepared.spec) if self._prepared is not None and self.pid is not None else ""

    def follow(self) -> None:
        """The state of the plugin, or its policy, has changed; returns at once."""
        state = self._plugin.state
        if state is State.READY and self._plugin.record.policy.standby:
            if self._scope is None:
                scope, before = anyio.CancelScope(), self._idle
                self._scope, self._idle = scope, anyio.Event()
                self._context.tasks.start_soon(self._maintain, scope, before, self._idle)
        elif state in (State.READY, State.STARTING, State.RESTARTING):
            self._pause()
        else:
            self.begin_discard()

    def begin_discard(self) -> None:
        """Discard it in the background, so that something else can be done meanwhile. ``discard`` waits for it."""
        self._pause()
        if self._prepared is not None:
            self._context.tasks.start_soon(self._discard_and_log)

    async def discard(self) -> None:
        """Return when there is none. Raises: Unavailable where it cannot be removed yet; call it again then."""
        self._pause()
        async with self._discarding:
            await self._idle.wait()
            if self._prepared is not None:
                await self._prepared.runtime.executor.discard(self._prepared.container)
                self._prepared = None
                self._used.set()

    async def _discard_and_log(self) -> None:
        try:
            await self.discard()
        except errors.MoorageError as error:
            log.warning("cannot discard the standby of plugin %s: %s", self._plugin.name, error)

    async def renew(self) -> None:
        """What it depends on has changed: discard it, and make another one where the policy says so."""
        await self._discard_and_log()
        self.follow()

    async def check(self) -> None:
        """Find out for ``take`` whether this is what a start creates now, while the start does something else."""
        self._pause()
        await self._idle.wait()
        plugin, prepared, self._found = self._plugin, self._prepared, None
        if prepared is None or not plugin.record.policy.standby:
            return
        options = replace(plugin.plan_options, container=prepared.container, is_standby=True)
        try:
            plan = await plan_run(plugin, self._context.consent, options)
            is_same = plan.spec == prepared.spec
            if is_same and await run_blocking(lambda: find_mount_sources(plan)) == prepared.sources:
                self._found = plan
        except errors.MoorageError as error:  # of which the start fails, too, in its turn
            log.debug("cannot check the standby of plugin %s: %s", plugin.name, error)

    async def take(self, runtime: "ContainerRuntime") -> RunPlan | None:
        """The plan of the run that the record names, where ``check`` has found that this is its container.

        Otherwise it is discarded. Raises: Unavailable where that is not possible.
        """
        found, self._found = self._found, None
        prepared, plugin = self._prepared, self._plugin
        if prepared is None:
            return None
        is_next = prepared.runtime is runtime and prepared.container == plugin.record.container
        if found is not None and is_next and runtime.executor.is_prepared(prepared.container):
            return found
        log.info("the standby of plugin %s is not what its next run has to be: it is discarded", plugin.name)
        await self.discard()
        return None

    async def start(self, runtime: "ContainerRuntime") -> bool:
        """Start it, after ``take`` has returned its plan; False where that fails, and then it is removed."""
        prepared, self._prepared = self._prepared, None
        assert prepared is not None
        try:
            await runtime.executor.start(prepared.container)
        except errors.MoorageError as error:  # also Unavailable: it is that where only its shim has been killed
            log.warning("cannot start the standby of plugin %s: %s", self._plugin.name, error)
            return False
        finally:
            self._used.set()
        return True

    async def wait_started(self) -> None:
        """Return when a plugin that has just exited by itself is started, if there is a standby for that. Bounded."""
        if self._plugin.state is State.READY and self.pid is not None:
            with anyio.move_on_after(self._context.timeouts.standby_start):
                await self._used.wait()

    def _pause(self) -> None:
        """None is made from now on; what is being made is undone in the background."""
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None

    async def _maintain(self, scope: anyio.CancelScope, before: anyio.Event, done: anyio.Event) -> None:
        """Make one, and another one where it is lost, until this is cancelled."""
        try:
            await before.wait()
            with scope:
                await anyio.sleep(standby_delay(self._plugin.record.failures))
                for pause in pauses(_AGAIN_FIRST, _AGAIN_LIMIT):
                    try:
                        await self._prepare()
                    except (errors.MoorageError, OSError) as error:
                        log.warning("cannot make a standby of plugin %s: %s", self._plugin.name, error)
                    await anyio.sleep(pause)
        finally:
            done.set()

    async def _prepare(self) -> None:
        """Make one, and return when it is lost."""
        plugin, runtime = self._plugin, self._context.availability.require()
        if self._prepared is not None:
            await self._prepared.runtime.executor.discard(self._prepared.container)
            self._prepared = None
        container = plugin.record.next_container
        options = replace(plugin.plan_options, container=container, is_standby=True)
        try:
            plan = await plan_run(plugin, self._context.consent, options)
            sources = await run_blocking(lambda: find_mount_sources(plan))
            await run_blocking(lambda: prepare_standby(plan))
            taker, labels = runtime.keeper.attacher(container, plugin.log), container_labels(runtime, plugin.id)
            async with runtime.creating:
                with parent_group_in_use():
                    await runtime.executor.prepare(container, plan.spec, attach=taker, labels=labels)
            self._used = anyio.Event()
            self._prepared = _Prepared(runtime, container, plan.spec, sources)
        finally:
            with anyio.CancelScope(shield=True):
                await run_blocking(lambda: close_views(plugin.directories))
                await run_blocking(lambda: release_pins(plugin.directories.pins))
        await runtime.executor.wait_removed(container)
        log.warning("the standby of plugin %s has exited; another one is made", plugin.name)

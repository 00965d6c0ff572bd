"""Runs one plugin on containerd: starts a run, takes it over, and stops it."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.task_groups import side_by_side
from moorage._lib.threads import run_abandonable, run_blocking
from moorage.containerd.shims.processes import control_group
from moorage.containerd.types import Spec
from moorage.engine.run.mount_sources import started_spec
from moorage.engine.run.plan import plan_run
from moorage.engine.run.plugin_run import PluginRun, container_labels, recorded_run
from moorage.engine.run.ready_time import record_ready
from moorage.engine.run.run_times import find_time, record_time
from moorage.executor import Exit
from moorage.host.cgroups import parent_group_in_use
from moorage.host.directory_tree import remove_tree
from moorage.host.proc import process_stat
from moorage.host.sockets import PluginSocket
from moorage.packages.content import reinstall_hint
from moorage.runs.entrypoint import explain_start_failure
from moorage.runs.exit_text import describe_exit
from moorage.runs.pins import release_pins
from moorage.runs.plan import RunPlan
from moorage.runs.preparation import (
    Preparation,
    close_views,
    mount_snapshot,
    prepare_run,
    protect_directories,
    use_standby,
)
from moorage.runs.readiness import describe_other_sockets, wait_until_listening
from moorage.runs.removal import (
    MountPoint,
    cover_mount_points,
    delete_all,
    release_mount_points,
    remove_runtime,
    remove_unused_groups,
)
from moorage.runs.termination import terminate
from moorage.timeouts import Timeouts

if TYPE_CHECKING:
    from moorage.engine.grants import GrantPolicy
    from moorage.engine.plugin import PluginState
    from moorage.engine.runtime import ContainerRuntime, Owners

__all__ = ("Runner",)

log = logging.getLogger(__name__)

_LAST_LINES = 10


class Runner:
    """Owns the present run of a plugin; at most one at a time."""

    def __init__(self, plugin: "PluginState") -> None:
        """``plugin`` is only read."""
        self._plugin = plugin
        self._run: PluginRun | None = None
        self._exited: list[str] = []
        """Containers whose exit was reported, and which the executor may still have to remove; the latest one last."""
        self._cleared: ContainerRuntime | None = None
        """Where every container of the plugin is known that an earlier engine may have left."""
        self._covered: set[MountPoint] = set()
        """Mount points that may have placeholders, and that were not returned when that was last checked."""

    @property
    def run(self) -> PluginRun | None:
        """The present run, which may have ended; None where there is none."""
        return self._run

    async def forget(self) -> None:
        """There is no run any more. What it has unmounted itself is protected until it is mounted again."""
        self._release()
        await self.remove_files(keep_mounted=True)

    def _release(self) -> None:
        """There is no present run any more; of one that exited the container may still be removed."""
        if self._run is not None and self._run.finished.is_set():
            self._exited.append(self._run.container)
        self._run = None

    async def _wait_removed(self, runtime: "ContainerRuntime", within: float, *, but_last: bool = False) -> None:
        """Return when the containers of runs that exited are removed, ``but_last`` except the latest one's.

        Raises: Unavailable where that takes longer than ``within`` seconds.
        """
        pending = self._exited = [each for each in self._exited if runtime.executor.owns(each)]
        with anyio.move_on_after(within) as scope:
            for container in pending[:-1] if but_last else pending:
                await runtime.executor.wait_removed(container)
        if scope.cancelled_caught:
            raise errors.Unavailable(
                f"cannot remove container {container} of plugin {self._plugin.name} within {within:g} s"
            )

    async def start(
        self, runtime: "ContainerRuntime", consent: "GrantPolicy", within: float, report: Callable[..., None]
    ) -> None:
        """Start the run that the record names, and return when its socket accepts.

        The run before may still be removed meanwhile. On failure the process may be running: ``stop`` ends it.
        ``report`` takes an event.

        Raises: why it did not become ready: Invalid for what this host lacks, Denied for what was not granted,
        MoorageError for the rest.
        """
        try:
            run, plan = await self._start_standby(runtime, report) or await self._start_new(runtime, consent, report)
            await run_blocking(lambda: release_pins(self._plugin.directories.pins))
            await self._await_ready(run, runtime, plan.socket, within, plan.spec)
        except BaseException:
            self._plugin.standby.begin_discard()
            raise

    async def _start_standby(
        self, runtime: "ContainerRuntime", report: Callable[..., None]
    ) -> tuple[PluginRun, RunPlan] | None:
        """Start the standby; None where there is none that can be used."""
        plugin = self._plugin
        plan = await plugin.standby.take(runtime)
        if plan is None:
            return None
        points = await plugin.wait_mount_points()
        async with self._covering(points):
            self._report(await run_blocking(lambda: use_standby(plan, points)), report)
        began = datetime.now(UTC)
        run = PluginRun(plugin.record.container, runtime.oci_runtime.command, control_group(plan.spec), began)
        self._run = run
        is_started = False
        try:
            is_started = await plugin.standby.start(runtime)
        finally:
            if not is_started:
                self._run = None
        if not is_started:
            return None
        await run_blocking(lambda: record_time(plugin.directories.start_record, run.container, began))
        return run, plan

    async def _start_new(
        self, runtime: "ContainerRuntime", consent: "GrantPolicy", report: Callable[..., None]
    ) -> tuple[PluginRun, RunPlan]:
        plugin = self._plugin
        await self.remove_orphans(runtime)  # a standby was made after this was done, and nothing was created since
        plan = await plan_run(plugin, consent, plugin.plan_options)
        try:
            mounts = await runtime.storage.snapshot_mounts(plugin.record.snapshotter, plugin.record.snapshot)
        except errors.NotFound as error:
            raise errors.MoorageError(
                f"its package is not in containerd any more ({error}); its settings and data are; "
                f"to get it back {reinstall_hint(plugin.record.stored_package)}"
            ) from error
        points = await plugin.wait_mount_points()
        async with self._covering(points):
            preparation = await run_blocking(lambda: prepare_run(plan, mount_snapshot(mounts), points))
        self._report(preparation, report)
        run = await self._create(runtime, plan.spec)
        await run_blocking(lambda: close_views(plugin.directories))
        return run, plan

    async def _create(self, runtime: "ContainerRuntime", spec: Spec) -> PluginRun:
        plugin = self._plugin
        run = PluginRun(plugin.record.container, runtime.oci_runtime.command, control_group(spec))
        labels = container_labels(runtime, plugin.id)
        taker = runtime.keeper.attacher(run.container, plugin.log)
        self._run = run
        try:
            async with runtime.creating:
                with parent_group_in_use():
                    await runtime.executor.create(run.container, spec, attach=taker, labels=labels)
        except BaseException as error:
            self._run = None
            if isinstance(error, errors.MoorageError) and not isinstance(error, errors.Unavailable):
                raise await self._creation_error(spec, error) from error
            raise
        return run

    def _report(self, preparation: Preparation, report: Callable[..., None]) -> None:
        name = self._plugin.name
        for problem in preparation.network_problems:
            log.warning("%s", problem)
        for point in preparation.unmounted:
            log.warning("unmounted %s of plugin %s: its server is gone", point, name)
            report("unmount", path=str(point))
        for point in preparation.hung:
            log.warning("%s of plugin %s does not answer; it stays mounted", point, name)

    async def await_ready(self, runtime: "ContainerRuntime", within: float) -> None:
        """Return when the socket of a run that was taken over accepts. Raises: MoorageError saying why it does not."""
        assert self._run is not None
        await self._await_ready(self._run, runtime, self._plugin.directories.socket(self._plugin.config), within)

    async def _await_ready(
        self, run: PluginRun, runtime: "ContainerRuntime", socket: PluginSocket, within: float, spec: Spec | None = None
    ) -> None:
        """Return when the socket of a run accepts. Raises: MoorageError where it ends, or takes too long."""
        deadline = anyio.current_time() + within
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_find_process, run, runtime)
            is_ready = await wait_until_listening(
                socket, lambda: run.finished.is_set() or anyio.current_time() > deadline
            )
            if is_ready:
                await run_blocking(lambda: record_ready(self._plugin.directories.ready_record, run.container))
            if is_ready and run.pid is not None:
                tasks.cancel_scope.cancel()
        if run.finished.is_set():
            reason = await self._explain(spec) if spec is not None else ""
            raise errors.MoorageError(
                f"it {describe_exit(run.exit)} before it accepted a connection on {socket.path}"
                f"{f': {reason}' if reason else await _hint(socket)}{self._last_output(run)}"
            )
        if not is_ready:
            await runtime.keeper.flush(run.container)
            raise errors.MoorageError(
                f"it did not accept a connection on {socket.path} within {within:g} s{await _hint(socket)}"
                f"{self._last_output(run)}"
            )

    async def adopt(self, runtime: "ContainerRuntime") -> tuple[bool, Exit | None, datetime | None]:
        """Take over the run that the record names: whether it is running, how it exited, and when it became ready.

        Where it neither runs nor has exited, an earlier engine was killed before it had started it. An exit that cannot
        be known any more is one of a run that is recorded as ready.
        """
        plugin = self._plugin
        container, ready_record = plugin.record.container, plugin.directories.ready_record
        ready_at = await run_blocking(lambda: find_time(ready_record, container))
        began = await run_blocking(lambda: find_time(plugin.directories.start_record, container))
        run = self._run = await recorded_run(runtime, container, began)
        try:
            taker = runtime.keeper.attacher(run.container, plugin.log)
            if await runtime.executor.restore(run.container, attach=taker):
                await run_blocking(lambda: protect_directories(plugin.directories))
                return True, None, ready_at
        except BaseException:
            self._run = None
            raise
        self._run = None
        exit = runtime.executor.last_exit(container)
        if exit is None and ready_at is not None:
            exit = Exit(container, "", None)
        if exit is not None:
            plugin.counts.exited(exit)
        return False, exit, ready_at

    async def stop(
        self,
        runtime: "ContainerRuntime | None",
        timeouts: Timeouts,
        *,
        at_once: bool = False,
        keep_mounted: bool = False,
        kill_now: anyio.Event | None = None,
    ) -> None:
        """End the present run, if there is one, and unmount and remove what was made for it.

        ``at_once`` kills it without SIGTERM, ``kill_now`` when it is set; ``keep_mounted`` leaves the root mounted for
        the next run.

        Raises: Unavailable for a process that does not exit, or for what cannot be removed; it may be called again.
        """
        plugin, run = self._plugin, self._run
        if not keep_mounted:
            plugin.standby.begin_discard()  # while the present run ends
        if run is not None and not run.finished.is_set():
            if runtime is None:
                raise errors.Unavailable(f"cannot stop plugin {plugin.name}: containerd is unavailable")
            own = plugin.record.policy.stop_timeout
            stop_timeout = 0.0 if at_once else timeouts.stop if own is None else own
            await self._terminate(run, runtime, timeouts, stop_timeout, kill_now)
        self._release()
        if not keep_mounted:
            await plugin.standby.discard()
        if runtime is not None and not keep_mounted and run is not None and self._cleared is runtime:
            # every process has exited that used the files
            await side_by_side(lambda: self._wait_removed(runtime, timeouts.cleanup), self._remove_runtime)
            await run_blocking(lambda: remove_unused_groups(plugin.id))
            return
        if runtime is not None:  # one removal may continue while the next run starts
            await self._wait_removed(runtime, timeouts.cleanup, but_last=keep_mounted)
            if not keep_mounted:
                await self.remove_orphans(runtime)  # nothing runs when this returns, also where that was not known
        await self.remove_files(keep_mounted=keep_mounted)

    async def _terminate(
        self,
        run: PluginRun,
        runtime: "ContainerRuntime",
        timeouts: Timeouts,
        stop_timeout: float,
        kill_now: anyio.Event | None,
    ) -> None:
        signal = lambda number: runtime.executor.signal(run.container, number)  # noqa: E731
        if not await terminate(signal, run.finished, timeouts, stop_timeout=stop_timeout, kill_now=kill_now):
            raise errors.Unavailable(
                f"cannot stop plugin {self._plugin.name}: its process{_pid(run)} is still there "
                f"{timeouts.killed:g} s after SIGKILL; its files are left alone"
            )

    async def remove_files(self, *, keep_mounted: bool = False) -> None:
        """Unmount and remove what was made for the last run; consumers' mount points get placeholders."""
        points = self._plugin.mount_points()
        if keep_mounted:
            async with self._covering(points):
                await run_blocking(lambda: cover_mount_points(points))
        else:
            await self._remove_runtime()
            await run_blocking(lambda: remove_unused_groups(self._plugin.id))

    async def _remove_runtime(self) -> None:
        async with self._covering(points := self._plugin.mount_points()):
            await run_blocking(lambda: remove_runtime(self._plugin.directories, points))

    @asynccontextmanager
    async def _covering(self, points: Sequence[MountPoint] | None) -> AsyncIterator[None]:
        """In the block these may get placeholders; what consumers return meanwhile has none after it."""
        self._covered.update(points or ())
        yield
        await self.release_returned()

    @property
    def has_returned(self) -> bool:
        """Whether there may be placeholders at mount points that consumers have returned since they were made."""
        return not self._covered <= set(self._plugin.mount_points())

    async def release_returned(self) -> None:
        """Remove those, in a job of the plugin's inbox: the plugin proxy may have looked before they were made."""
        if returned := self._covered - set(self._plugin.mount_points()):
            await run_blocking(lambda: release_mount_points(returned))
            self._covered -= returned

    async def remove_orphans(self, runtime: "ContainerRuntime", owners: "Owners | None" = None) -> None:
        """Remove each container of this plugin, of ``owners`` if given, that the executor has no run of (row M16)."""
        plugin, owns = self._plugin, runtime.executor.owns
        present = self._run.container if self._run is not None else ""
        removing = {each for each in self._exited if owns(each)}  # now: one may be gone when its turn comes
        for container, owner in (await runtime.owners(plugin.id) if owners is None else owners).items():
            is_owned = container == present or container in removing or owns(container)
            if not is_owned and plugin.id in (owner, container.partition(".")[0]):
                await runtime.destroy(container)
        self._cleared = runtime

    async def erase(self, runtime: "ContainerRuntime") -> None:
        """Remove all of the plugin but its record: containers, directories, images, logs. Raises: Unavailable."""
        plugin = self._plugin
        await plugin.standby.discard()
        await self.remove_orphans(runtime)
        await run_blocking(lambda: delete_all(plugin.directories, plugin.mount_points()))
        await run_blocking(lambda: remove_unused_groups(plugin.id))
        previous = plugin.record.previous  # there, where a new version was tried out and could not be taken back
        for image in (plugin.record.image, *([previous.image] if previous is not None else [])):
            try:
                await runtime.delete_image(image, plugin.id)
            except errors.NotFound:
                pass
        await remove_tree(plugin.log.directory)

    # why it is not ready

    async def _creation_error(self, spec: Spec, error: errors.MoorageError) -> errors.MoorageError:
        reason = await self._explain(spec)
        return type(error)(f"{reason} ({error})" if reason else str(error))

    async def _explain(self, spec: Spec) -> str:
        spec = started_spec(spec, self._plugin.directories)
        root, owner = str(self._plugin.directories.root), self._plugin.id
        return await run_abandonable(lambda: explain_start_failure(spec, root, owner=owner))

    def _last_output(self, run: PluginRun) -> str:
        lines = [line for line in self._plugin.log.last_lines(_LAST_LINES) if line.at >= run.created_at]
        return "; its last output:\n" + "\n".join(line.text for line in lines) if lines else "; it wrote nothing"


async def _find_process(run: PluginRun, runtime: "ContainerRuntime") -> None:
    pid = runtime.executor.pid(run.container)
    if pid is not None:
        stat = await run_blocking(lambda: process_stat(pid))
        run.started_at = run.began_at or (stat.started_at if stat is not None else None)
    run.pid = pid  # last: the task that waits for it cancels this one


async def _hint(socket: PluginSocket) -> str:
    text = await run_abandonable(lambda: describe_other_sockets(socket))
    return f"; {text}" if text else ""


def _pid(run: PluginRun) -> str:
    return f" (pid {run.pid})" if run.pid else ""

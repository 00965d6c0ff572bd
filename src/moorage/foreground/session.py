"""Runs a plugin on a containerd of its own: from top to bottom in the order of starting; undone in reverse."""

import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.containerd.supervisor import PrivateContainerd, check_machine, supervise
from moorage.containerd.types import RuntimeOptions
from moorage.embedding import open_executor
from moorage.executor import PLUGIN_NAMESPACE
from moorage.foreground.events import ChangesRetained, Report, RunRemoved
from moorage.foreground.foreground_run import ForegroundRun, RunResult
from moorage.foreground.interruption import Interruption, interruptible
from moorage.foreground.reporter import Reporter
from moorage.foreground.root import prepare
from moorage.foreground.temporary_directories import (
    TemporaryDirectories,
    any_exist,
    choose_paths,
    create,
    lock_orphans,
    new_name,
)
from moorage.host.leftovers import end_processes, has_shim_directory, remove_leftovers, remove_shim_directory
from moorage.host.process_environment import set_process_defaults
from moorage.oci_runtime.choice import AUTO, OciRuntime, check_runtime_name, choose_runtime
from moorage.packages.directory import PluginDirectory
from moorage.plugins import Settings, control_group
from moorage.runs.directories import PluginDirectories
from moorage.runs.network_files import refresh_periodically
from moorage.runs.plan import RunPlan, build_plan
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("ForegroundExit", "RunOptions", "plan_run", "run_in_foreground")

log = logging.getLogger(__name__)

_SHIM_EXIT = DEFAULT.shim_exit  # seconds; a shim exits a moment after its task is deleted


class RunOptions(Struct, frozen=True):
    """Options of one run in the foreground."""

    keep: bool = False
    """Keep what the plugin has written to its root file system, and report where."""

    timeouts: Timeouts = DEFAULT

    runtime: str = AUTO
    """``auto``, ``runc``, ``crun`` or an absolute path."""

    changed: Callable[[], Awaitable[None]] | None = None
    """When it returns, the run is stopped as by a signal."""


class ForegroundExit(Struct, frozen=True):
    """How a run in the foreground ended."""

    status: int
    """For the shell: the plugin's, or 128 + n after signal n."""
    cause: Literal["exit", "signal", "change"]


def plan_run(plugin: PluginDirectory, settings: Settings) -> RunPlan:
    """The plan of a run, in directories with names that are not used yet; makes nothing (blocking).

    Raises: Invalid naming the entry of the config that this host cannot meet, or a TMPDIR that is not absolute.
    Raises: Unavailable naming a mount source or a device whose file system does not answer.
    """
    state, data = choose_paths(new_name())
    directories = PluginDirectories(secrets.token_hex(32), state, data / "propagated-mount")
    return build_plan(directories, plugin.parsed.config, settings)


async def run_in_foreground(
    plugin: PluginDirectory, settings: Settings, report: Report, options: RunOptions
) -> ForegroundExit:
    """Run a plugin on a containerd of its own until it exits, or a signal or a change of its directory stops it.

    Everything is removed afterwards, except with ``options.keep``. What a killed earlier run has left is removed first.

    Raises: Denied for a user who is not root.
    Raises: Unsupported where containerd or the runtime is not on this machine.
    Raises: MoorageError of the cause's kind where the plugin cannot be run, or where something cannot be removed.
    Raises: OSError that ``report`` raised.
    """
    if os.geteuid() != 0:
        raise errors.Denied("cannot run a plugin: mounts and control groups need root; run this with sudo")
    check_machine()
    check_runtime_name(options.runtime)
    set_process_defaults()
    plan = await run_blocking(lambda: plan_run(plugin, settings))
    reporter = Reporter(report)
    run = ForegroundRun(plan, reporter, options.timeouts)
    results: list[RunResult] = []
    async with interruptible(reporter.limit_reports, run.kill) as interruption:
        reporter.on_failure = interruption.cancel
        async with (
            _cancelled_by(options.changed, interruption),
            _temporary_directories(plan, reporter, options) as temporary,
            _runtime_options(options.runtime, temporary.state, plan.directories.id) as runtime,
            supervise(*_containerd_directories(temporary), options.timeouts) as containerd,
            open_executor(
                containerd.address, temporary.state, run, runtime=await runtime(), timeouts=options.timeouts
            ) as executor,
        ):
            await prepare(plan, plugin.rootfs, temporary)
            async with background_tasks() as tasks:
                if plan.network_files is not None:
                    tasks.start_soon(refresh_periodically, plan.network_files, options.timeouts.network_files)
                async with interruption.inner_block():
                    results.append(await run.run(executor))
    await reporter(RunRemoved())
    if reporter.failure is not None:
        raise reporter.failure
    return _exit_of(results, interruption)


def _exit_of(results: Sequence[RunResult], interruption: Interruption) -> ForegroundExit:
    """How a run ended, from its result, if it has one. Raises: MoorageError for what was wrong with it."""
    if interruption.signals:
        return ForegroundExit(interruption.exit_status, "signal")
    if not results:
        return ForegroundExit(0, "change")
    result = results[0]
    if result.failure:
        if result.status == 0:
            raise errors.MoorageError(result.failure)
        log.warning("%s", result.failure)
    return ForegroundExit(result.status, "exit")


@asynccontextmanager
async def _cancelled_by(
    changed: Callable[[], Awaitable[None]] | None, interruption: Interruption
) -> AsyncIterator[None]:
    """Within this block a change stops the run as a signal does."""

    async def stop() -> None:
        if changed is not None:
            await changed()
            interruption.cancel()

    async with background_tasks() as tasks:
        tasks.start_soon(stop)
        yield


@asynccontextmanager
async def _runtime_options(
    requested: str, state: Path, id: str
) -> AsyncIterator[Callable[[], Awaitable[RuntimeOptions]]]:
    """The options of the container, chosen while the block starts containerd. Raises: Unsupported, when called."""
    chosen = anyio.Event()
    found: OciRuntime | errors.MoorageError

    async def choose() -> None:
        nonlocal found
        try:
            found = await run_blocking(lambda: choose_runtime(requested, state, id))
        except errors.MoorageError as error:
            found = error
        chosen.set()

    async def get() -> RuntimeOptions:
        await chosen.wait()
        if isinstance(found, errors.MoorageError):
            raise found
        return found.options(state)

    async with background_tasks() as tasks:
        tasks.start_soon(choose)
        yield get


@asynccontextmanager
async def _temporary_directories(
    plan: RunPlan, reporter: Reporter, options: RunOptions
) -> AsyncIterator[TemporaryDirectories]:
    """The directories of a run. Orphans of killed runs are removed first; at the end all of this run, processes too.

    Raises: Unavailable where something cannot be removed, for the next run to remove; only logged where the block
    failed.
    """
    is_foreign = await run_blocking(lambda: has_shim_directory() and not any_exist())
    for orphan in await run_blocking(lock_orphans):
        log.warning("removing what a killed run has left in %s", orphan.state)
        try:
            await _remove_run(orphan, options.timeouts)
        except errors.MoorageError as error:
            log.warning("cannot remove all that a killed run has left: %s", error)
    directories = plan.directories
    temporary = await run_blocking(
        lambda: create(directories.exec_root, directories.propagated_mount.parent, directories.id)
    )
    has_failed = True
    try:
        yield temporary
        has_failed = False
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await _remove_run(temporary, options.timeouts, shim_exit=_SHIM_EXIT, keep_changes=options.keep)
            except errors.MoorageError as error:
                if not has_failed:
                    raise
                log.warning("cannot remove all of this run, the next one tries again: %s", error)
            if not is_foreign:
                await run_blocking(remove_shim_directory)
            if options.keep:
                await reporter(ChangesRetained(temporary.changes))


async def _remove_run(
    temporary: TemporaryDirectories, timeouts: Timeouts, *, shim_exit: float = 0.0, keep_changes: bool = False
) -> None:
    """Remove a run: containerd first, which could start more; last the directory that says what belongs to the run.

    ``shim_exit`` is how many seconds its shim may take to exit by itself.

    Raises: Unavailable naming what cannot be removed.
    """
    containerd = PrivateContainerd(*_containerd_directories(temporary), timeouts)
    try:
        await containerd.stop()
        group = control_group(temporary.id) if temporary.id else ""
        await run_blocking(lambda: end_processes(temporary.state, group, shim_exit, timeouts.killed))
        await run_blocking(lambda: remove_leftovers(containerd.address, PLUGIN_NAMESPACE, temporary.id, group))
        await temporary.remove(keep_changes=keep_changes)
    except OSError as error:
        raise errors.Unavailable(f"cannot remove {temporary.state}: {error}") from error
    finally:
        temporary.unlock()


def _containerd_directories(temporary: TemporaryDirectories) -> tuple[Path, Path]:
    return temporary.data / "containerd", temporary.state / "containerd"

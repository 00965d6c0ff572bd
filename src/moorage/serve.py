"""Puts things together: top to bottom is the order of starting, and everything is undone in reverse."""

import logging
import os
import secrets
import signal as signals
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskStatus
from msgspec import Struct

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.containerd.supervisor import PrivateContainerd, check_machine, supervise
from moorage.embedding import open_executor
from moorage.engine.foreground import Foreground, Gone, Happened, Kept, Plan, Report, exit_status, make_plan
from moorage.engine.network_refresh import keep_current
from moorage.engine.package import PluginDirectory
from moorage.engine.remains import end_processes, has_shim_directory, remove_shim_directory, remove_traces
from moorage.engine.throwaway import Pair, is_any_here, make_pair, new_name, pair_paths, prepare, take_abandoned
from moorage.executor import PLUGIN_NAMESPACE
from moorage.host.inheritance import settle_process
from moorage.plugins import Settings
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("RunOptions", "plan_run", "run_in_foreground")

log = logging.getLogger(__name__)

_STOPPING = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)
_SHIM_LEAVES = 1.0  # seconds; a shim ends a moment after its task is deleted
_LAST_WORDS = 1.0  # seconds; how long a report is waited for that nobody takes after a signal


class RunOptions(Struct, frozen=True):
    """What the user asks of one run in the foreground."""

    keep: bool = False
    """Leave what the plugin has written to its root file system, and say where."""

    timeouts: Timeouts = DEFAULT


def plan_run(plugin: PluginDirectory, settings: Settings) -> Plan:
    """What ``run_in_foreground`` would do, with the names of directories that are not made (blocking)."""
    return make_plan(secrets.token_hex(32), plugin, settings, *pair_paths(new_name()))


async def run_in_foreground(plugin: PluginDirectory, settings: Settings, report: Report, options: RunOptions) -> int:
    """Run a plugin on a containerd of its own until it ends or a signal says so; the exit status for the shell.

    Nothing is left afterwards, except with ``options.keep``. What a killed earlier run has left is removed first.

    Raises: by kind, in words for the user; OSError where ``report`` raised it. Nothing is left then either.
    """
    if os.geteuid() != 0:
        raise errors.Denied("cannot run a plugin: mounts and control groups need root; run this with sudo")
    check_machine()
    settle_process()
    state, data = pair_paths(new_name())
    plan = await run_blocking(lambda: make_plan(secrets.token_hex(32), plugin, settings, state, data))
    audience, status = _Audience(report), 1
    foreground = Foreground(plan, audience, options.timeouts)
    async with _interruptible(audience.lose_patience, foreground.hurry) as interruption:
        audience.on_failure = interruption.cancel
        async with (
            _throwaway(plan, (state, data), audience, options) as pair,
            supervise(*_containerd_places(pair), options.timeouts) as containerd,
            open_executor(containerd.address, pair.state, foreground, timeouts=options.timeouts) as executor,
        ):
            await prepare(plan, plugin.rootfs, pair)
            async with background_tasks() as tasks:
                if plan.network_files is not None:
                    tasks.start_soon(keep_current, plan.network_files, options.timeouts.network_files)
                with interruption.of_this_only():
                    status = exit_status(await foreground.run(executor))
    await audience(Gone())
    if audience.failure is not None:
        raise audience.failure
    if foreground.failure and not interruption.caught:
        if status == 0:
            raise errors.MoorageError(foreground.failure)
        log.warning("%s", foreground.failure)
    return interruption.exit_status() or status


@asynccontextmanager
async def _throwaway(
    plan: Plan, places: tuple[Path, Path], audience: "_Audience", options: RunOptions
) -> AsyncIterator[Pair]:
    """The directories of a run. At the end all that is of it is removed, processes too; before, what killed runs left.

    Raises: Unavailable where something stays, for the next run to remove; only logged where the block failed.
    """
    is_theirs = await run_blocking(lambda: has_shim_directory() and not is_any_here())
    for abandoned in await run_blocking(take_abandoned):
        log.warning("removing what a killed run has left in %s", abandoned.state)
        try:
            await _clear(abandoned, options.timeouts)
        except errors.MoorageError as error:
            log.warning("cannot remove all that a killed run has left: %s", error)
    pair = await run_blocking(lambda: make_pair(*places, plan.id))
    has_failed = True
    try:
        yield pair
        has_failed = False
    finally:
        with anyio.CancelScope(shield=True):
            try:
                await _clear(pair, options.timeouts, by_itself=_SHIM_LEAVES, keep_changes=options.keep)
            except errors.MoorageError as error:
                if not has_failed:
                    raise
                log.warning("cannot remove all of this run, the next one tries again: %s", error)
            if not is_theirs:
                await run_blocking(remove_shim_directory)
            if options.keep:
                await audience(Kept(pair.changes))


async def _clear(pair: Pair, timeouts: Timeouts, *, by_itself: float = 0.0, keep_changes: bool = False) -> None:
    """Remove a run: containerd first, which could start more, and last the directory that says what belongs to it."""
    containerd = PrivateContainerd(*_containerd_places(pair), timeouts)
    try:
        await containerd.stop()
        await run_blocking(lambda: end_processes(pair.state, pair.id, by_itself, timeouts.killed))
        await run_blocking(lambda: remove_traces(containerd.address, PLUGIN_NAMESPACE, pair.id))
        await pair.remove(keep_changes=keep_changes)
    except OSError as error:
        raise errors.Unavailable(f"cannot remove {pair.state}: {error}") from error
    finally:
        pair.let_go()


def _containerd_places(pair: Pair) -> tuple[Path, Path]:
    return pair.data / "containerd", pair.state / "containerd"


class _Audience:
    """Whoever is told what happens. One that fails, or that takes nothing after a signal, is not told the rest."""

    def __init__(self, report: Report) -> None:
        self.failure: OSError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._report = report
        self._patience = float("inf")
        self._scopes: set[anyio.CancelScope] = set()
        self._left = False

    async def __call__(self, happened: Happened) -> None:
        if self._left:
            return
        with anyio.move_on_after(self._patience) as scope:
            self._scopes.add(scope)
            try:
                await self._report(happened)
            except OSError as error:
                self.failure, self._left = error, True
                self.on_failure()
            finally:
                self._scopes.discard(scope)
        self._left = self._left or scope.cancelled_caught

    def lose_patience(self) -> None:
        """From now on wait only a moment for each report."""
        self._patience = _LAST_WORDS
        for scope in self._scopes:
            scope.deadline = anyio.current_time() + _LAST_WORDS


class _Interruption:
    """The signals that came, and what they cancel."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.caught: list[int] = []
        self._scope = scope

    def cancel(self) -> None:
        """Cancel what is under way."""
        self._scope.cancel()

    @contextmanager
    def of_this_only(self) -> Iterator[None]:
        """Within this block only the block is cancelled: what it stands on must live until it has cleaned up."""
        outer = self._scope
        with anyio.CancelScope() as self._scope:
            try:
                yield
            finally:
                self._scope = outer

    def exit_status(self) -> int:
        """What a shell expects of a command that ended by the first signal; 0 where none came."""
        return 128 + self.caught[0] if self.caught else 0


@asynccontextmanager
async def _interruptible(first: Callable[[], None], further: Callable[[], None]) -> AsyncIterator[_Interruption]:
    """The first signal that asks to stop calls ``first`` and cancels the block; each later one calls ``further``."""

    async def receive(interruption: _Interruption, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_STOPPING) as received:
            task_status.started()
            async for number in received:
                (further if interruption.caught else first)()
                interruption.caught.append(number)
                interruption.cancel()

    async with background_tasks() as tasks:
        with anyio.CancelScope() as scope:
            interruption = _Interruption(scope)
            await tasks.start(receive, interruption)
            yield interruption

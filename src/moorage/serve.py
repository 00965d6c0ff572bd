"""Puts things together: top to bottom is the order of starting, and everything is undone in reverse."""

import logging
import os
import secrets
import signal as signals
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.containerd import connect
from moorage.containerd.containers import BundledContainers
from moorage.containerd.supervisor import PrivateContainerd, check_machine, supervise
from moorage.embedding import open_executor, runtime_below
from moorage.engine.cgroups import remove_empty_parent
from moorage.engine.foreground import Foreground, Plan, Report, exit_status, make_plan
from moorage.engine.package import PluginDirectory
from moorage.engine.throwaway import Pair, make_pair, new_name, pair_paths, prepare, take_abandoned
from moorage.executor import PLUGIN_NAMESPACE
from moorage.plugins import Settings
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("RunOptions", "plan_run", "run_in_foreground")

log = logging.getLogger(__name__)

_SHIM_SOCKETS = Path("/run/containerd/s")  # fixed in every shim, whatever containerd's configuration says
_STOPPING = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the user asks of one run in the foreground."""

    keep: bool = False
    """Leave what the plugin has written to its root file system, and say where."""

    timeouts: Timeouts = DEFAULT


def plan_run(plugin: PluginDirectory, settings: Settings) -> Plan:
    """What ``run_in_foreground`` would do, with the names of directories that are not made (blocking)."""
    return make_plan(secrets.token_hex(32), plugin, settings, *pair_paths(new_name()))


async def run_in_foreground(
    plugin: PluginDirectory, settings: Settings, report: Report, options: RunOptions, kept: Callable[[Path], None]
) -> int:
    """Run a plugin on a containerd of its own until it ends or a signal says so; the exit status for the shell.

    Nothing is left afterwards, except with ``options.keep``, and then ``kept`` is told where. What a killed earlier
    run has left is removed first.

    Raises: by kind, in words for the user; nothing is left then either.
    """
    if os.geteuid() != 0:
        raise errors.Denied("cannot run a plugin: mounts and control groups need root; run this with sudo")
    check_machine()
    timeouts, (state, data) = options.timeouts, pair_paths(new_name())
    plan = await run_blocking(lambda: make_plan(secrets.token_hex(32), plugin, settings, state, data))
    foreground = Foreground(plan, report, timeouts)
    status = 1
    async with _interruptible(foreground.hurry) as interruption:
        await _sweep(timeouts)
        had_shim_sockets = await run_blocking(_SHIM_SOCKETS.exists)
        pair = await run_blocking(lambda: make_pair(state, data))
        try:
            async with (
                supervise(*_containerd_places(pair), timeouts) as containerd,
                open_executor(containerd.address, pair.state, foreground, timeouts=timeouts) as executor,
            ):
                await run_blocking(lambda: prepare(plan, plugin.rootfs, pair))
                with interruption.of_this_only():
                    status = exit_status(await foreground.run(executor))
        finally:
            with anyio.CancelScope(shield=True):
                await PrivateContainerd(*_containerd_places(pair), timeouts).stop()
                if foreground.may_live:
                    pair.abandon()  # never take the files from under a process; the next run tries again
                else:
                    await _leave_nothing(pair, had_shim_sockets, kept if options.keep else None)
    return interruption.exit_status() or status


async def _leave_nothing(pair: Pair, had_shim_sockets: bool, kept: Callable[[Path], None] | None) -> None:
    await pair.remove(keep_changes=kept is not None)
    await run_blocking(remove_empty_parent)
    if not had_shim_sockets:
        await run_blocking(_remove_shim_sockets)
    if kept is not None:
        kept(pair.changes)


def _remove_shim_sockets() -> None:
    for directory in (_SHIM_SOCKETS, _SHIM_SOCKETS.parent):
        try:
            directory.rmdir()
        except OSError:
            return  # never made, or somebody else's by now


async def _sweep(timeouts: Timeouts) -> None:
    """Stop and remove what runs in the foreground have left whose command was killed."""
    for pair in await run_blocking(take_abandoned):
        log.warning("removing what a killed run has left in %s", pair.state)
        containerd = PrivateContainerd(*_containerd_places(pair), timeouts)
        try:
            await containerd.ensure()
            async with connect(containerd.address, PLUGIN_NAMESPACE, timeouts) as client:
                containers = BundledContainers(client, pair.state, runtime=runtime_below(pair.state), timeouts=timeouts)
                ids = {record.id for record in await client.list_containers()}
                for id in ids | {task.container_id for task in await client.list_tasks()}:
                    await containers.delete_task(id)
                    await containers.delete(id)
            await containerd.stop()
            await pair.remove()
        except (errors.MoorageError, OSError) as error:
            log.warning("cannot remove all that a killed run has left in %s: %s", pair.state, error)


def _containerd_places(pair: Pair) -> tuple[Path, Path]:
    return pair.data / "containerd", pair.state / "containerd"


class _Interruption:
    """The signals that came, and what they cancel."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.caught: list[int] = []
        self._scope = scope

    def interrupt(self, number: int) -> None:
        """Take note of a signal and cancel what is under way."""
        self.caught.append(number)
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
async def _interruptible(hurry: Callable[[], None]) -> AsyncIterator[_Interruption]:
    """The block is cancelled by the first signal that asks to stop; a further one calls ``hurry``."""

    async def receive(interruption: _Interruption, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_STOPPING) as received:
            task_status.started()
            async for number in received:
                if interruption.caught:
                    hurry()
                interruption.interrupt(number)

    async with background_tasks() as tasks:
        with anyio.CancelScope() as scope:
            interruption = _Interruption(scope)
            await tasks.start(receive, interruption)
            yield interruption

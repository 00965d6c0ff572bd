"""What an engine does with each plugin when it begins: takes over what runs, starts what is wanted, clears the rest."""

import logging
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.adding import end_left_processes, find_left_processes
from moorage.engine.lifecycle import BACK_OFF_LIMIT, Event, Life, State
from moorage.engine.machinery import Machinery
from moorage.engine.plugin import Plugin
from moorage.engine.running import adopt, await_ready, remove_strays
from moorage.engine.versions import go_back
from moorage.engine.work import AWAY, Work, last_exit_of, logged

__all__ = ("Restoring",)

log = logging.getLogger(__name__)


class Restoring:
    """The jobs of a start, for any plugin."""

    def __init__(self, work: Work, tasks: TaskGroup, *, live: bool) -> None:
        """Without ``live`` what runs is ended and started again."""
        self._work = work
        self._tasks = tasks
        self._live = live

    async def restore(self, plugin: Plugin, owners: dict[str, str] | None, *, start: bool, retry: float = AWAY) -> None:
        """Find out what became of it while no engine was there, and go on from that.

        ``owners``: the containers that there are, if they are known. Without ``start`` nothing is started that does not
        run. Where containerd cannot be asked, or something cannot be cleared, it is tried again after ``retry`` s.
        """
        try:
            await self._restore(plugin, owners, start=start)
            plugin.settle()
        except errors.Unavailable as error:
            if plugin.state is not State.DISABLED:
                plugin.settle()
                raise  # a stop or a removal that goes on by itself
            plugin.problem = str(error)
            log.warning("cannot find out what became of plugin %s, it is tried again: %s", plugin.name, error)
            self._tasks.start_soon(self._again, plugin, start, retry)
        except BaseException:
            plugin.settle()
            raise

    async def _again(self, plugin: Plugin, start: bool, pause: float) -> None:
        await anyio.sleep(pause)
        longer = min(2 * pause, BACK_OFF_LIMIT)

        async def job() -> None:
            if plugin.state is State.DISABLED and plugin.run is None and not plugin.stops:  # nobody else was quicker
                plugin.problem = ""
                await self.restore(plugin, None, start=start, retry=longer)

        self._work.inboxes.put(plugin.id, logged(plugin, job))

    async def _restore(self, plugin: Plugin, owners: dict[str, str] | None, *, start: bool) -> None:
        machinery = self._work.need_machinery()
        record = plugin.record
        if record.removing:
            plugin.settle()
            await self._work.erase(plugin)
        elif record.previous is not None:  # the engine ended while it tried another version out
            await self._go_back(plugin, machinery, start=start)
        elif record.enabled and record.container in (owners if owners is not None else await machinery.owners()):
            await self._take_over(plugin, machinery, start=start)
        else:
            await remove_strays(plugin, machinery)
            if not record.enabled or not start:
                await run_blocking(plugin.places.clear)
            else:
                plugin.settle()
                await self._work.start_again(plugin)

    async def _go_back(self, plugin: Plugin, machinery: Machinery, *, start: bool) -> None:
        """Let the version of before count again, and forget the one that was tried out."""
        tried = plugin.record.image
        await go_back(self._work, plugin)
        try:
            await machinery.delete_image(tried, plugin.id)
        except errors.NotFound:
            pass
        except errors.MoorageError as error:
            log.warning("cannot remove image %s, the next start does: %s", tried, error)
        plugin.settle()
        if start:
            await self._work.start_again(plugin)

    async def _take_over(self, plugin: Plugin, machinery: Machinery, *, start: bool) -> None:
        """What to do about the run that its record names, of which there is a container."""
        left = await find_left_processes(plugin)
        exit = await adopt(plugin, machinery)
        plugin.know()
        if exit is not None:
            if start:
                failures = plugin.record.failures
                plugin.become(Life(State.READY, failures))
                await self._work.ended(plugin, last_exit_of(exit), is_failure=exit.code != 0)
        elif not start:  # it is held, to be ended: nobody waits until it is ready
            plugin.move(Event.ADOPTED)
        elif self._live:
            await self._adopted(plugin, machinery, left)
        else:
            await self._work.stop(plugin)
            await self._work.start_again(plugin)

    async def _adopted(self, plugin: Plugin, machinery: Machinery, left: Sequence[Path]) -> None:
        """It runs: end what was added to it, and wait until it is ready, as at its start."""
        run = plugin.run
        assert run is not None
        plugin.move(Event.ADOPTED)
        await end_left_processes(plugin, machinery, left)
        plugin.starting = anyio.CancelScope()
        try:
            with plugin.starting:
                if plugin.stops:  # asked for since it is known what runs
                    plugin.starting.cancel()
                socket = plugin.places.socket(plugin.config)
                await await_ready(plugin, run, machinery, socket, self._work.timeouts.ready)
                plugin.move(Event.ACCEPTED)
        except errors.MoorageError as error:
            await self._work.failed(plugin, error)
        finally:
            plugin.starting = None
        await remove_strays(plugin, machinery)

"""What became of a plugin while no engine was there, and how it goes on from that: a job of the plugin's inbox."""

import logging

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.lifecycle import Event, Life, State
from moorage.engine.machinery import Machinery
from moorage.engine.plugin import Plugin
from moorage.engine.running import adopt, await_ready, remove_strays
from moorage.engine.versions import go_back
from moorage.engine.work import Work, last_exit_of

__all__ = ("restore",)

log = logging.getLogger(__name__)


async def restore(work: Work, plugin: Plugin, owners: dict[str, str], *, start: bool) -> None:
    """Find out what became of it, by the containers that there are and their owners, and go on from that.

    Without ``start`` nothing is started that does not run.
    """
    machinery = work.need_machinery()
    if plugin.record.removing:
        await work.erase(plugin)
        return
    is_there = plugin.record.container in owners
    if plugin.record.previous is not None:  # the engine ended while it tried another version out
        tried = plugin.record.image
        await go_back(work, plugin)
        await _forget(machinery, tried)
        is_there = False
    record = plugin.record
    if record.enabled and is_there:
        exit = await adopt(plugin, machinery)
        if exit is None:
            await _adopted(work, plugin, machinery)
        elif start:
            plugin.become(Life(State.READY, record.failures))
            await work.ended(plugin, last_exit_of(exit), is_failure=exit.code != 0, steady=record.failures == 0)
        return
    await remove_strays(plugin, machinery)
    if not record.enabled or not start:
        await run_blocking(plugin.places.clear)
    else:
        await work.start_again(plugin)


async def _adopted(work: Work, plugin: Plugin, machinery: Machinery) -> None:
    run = plugin.run
    assert run is not None
    plugin.move(Event.ADOPTED)
    plugin.starting = anyio.CancelScope()
    try:
        with plugin.starting:
            socket = plugin.places.socket(plugin.config)
            await await_ready(plugin, run, machinery, socket, work.timeouts.ready)
            plugin.move(Event.ACCEPTED)
    except errors.MoorageError as error:
        await work.failed(plugin, error)
    finally:
        plugin.starting = None
    await remove_strays(plugin, machinery)


async def _forget(machinery: Machinery, image: str) -> None:
    """Remove what was tried out and does not count."""
    try:
        await machinery.storage.delete_image(image, collect=True)
    except errors.MoorageError as error:
        log.warning("cannot remove image %s, the next start does: %s", image, error)

"""Processes beside a plugin's own: run for a caller, and ended where an engine was killed before it could end them."""

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd._growing_logs import cut_runtime_log
from moorage.containerd.processes import AddedProcess, add_process, process_like_the_first, remove_process
from moorage.engine.machinery import Machinery
from moorage.engine.plugin import Plugin
from moorage.host.beneath import remove_tree

__all__ = ("end_left_processes", "execute", "find_left_processes")

log = logging.getLogger(__name__)

_PREFIX = "exec-"
"""Of the directory of each, in the run-time directory of its plugin; the id follows."""


@asynccontextmanager
async def execute(
    plugin: Plugin, machinery: Machinery, arguments: Sequence[str], environment: Sequence[str], *, terminal: bool
) -> AsyncIterator[AddedProcess]:
    """A process beside the plugin's own, until the block ends. Raises: Conflict where nothing runs, Invalid."""
    run = plugin.run
    if run is None or run.ended.is_set():
        raise errors.Conflict(f"plugin {plugin.name} does not run: it is {plugin.state.value}")
    spec = (await machinery.client.get_container(run.container)).spec
    process = process_like_the_first(spec, arguments, environment=environment, terminal=terminal)
    exec_id = secrets.token_hex(8)
    directory = plugin.places.runtime / f"{_PREFIX}{exec_id}"
    try:
        async with add_process(machinery.client, run.container, exec_id, process, directory) as added:
            plugin.added[exec_id] = added
            yield added
    except errors.NotFound as error:
        raise errors.Conflict(f"plugin {plugin.name} does not run any more: {error}") from error
    except errors.Invalid as error:
        raise errors.Invalid(f"cannot run {arguments[0]} in plugin {plugin.name}: {error}") from error
    finally:
        plugin.added.pop(exec_id, None)
        pid = run.pid
        if pid is not None:  # the runtime has appended to its log, whatever came of it
            with anyio.CancelScope(shield=True):
                await run_blocking(lambda: cut_runtime_log(pid, run.container))


async def find_left_processes(plugin: Plugin) -> Sequence[Path]:
    """The directories of those that an earlier engine has added, asked for before anybody can add one to this one."""
    return await run_blocking(lambda: sorted(plugin.places.runtime.glob(f"{_PREFIX}*")))


async def end_left_processes(plugin: Plugin, machinery: Machinery, directories: Sequence[Path]) -> None:
    """Kill what an earlier engine has added to the present run: its callers went with it."""
    assert plugin.run is not None
    for directory in directories:
        log.warning("ending a process that was added to plugin %s by an engine that is gone", plugin.name)
        await remove_process(machinery.client, plugin.run.container, directory.name.removeprefix(_PREFIX))
        await remove_tree(directory)

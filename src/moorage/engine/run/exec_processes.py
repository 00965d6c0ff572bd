"""The processes that callers run beside a plugin's own, for as long as its present run."""

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.threads import run_abandonable, run_blocking
from moorage.containerd.containerd_process import truncate_runtime_log
from moorage.containerd.processes import AddedProcess, ExecCommand, add_process, destroy_process
from moorage.engine.run.mount_sources import started_spec
from moorage.runs.container_files import derive_command

if TYPE_CHECKING:
    from moorage.engine.plugin import PluginState
    from moorage.engine.runtime import ContainerRuntime, EngineContext

__all__ = ("AddedProcesses",)

log = logging.getLogger(__name__)

_EXEC = "exec-"
"""Of the directory of each, in the run-time directory of its plugin; the id follows."""


class AddedProcesses:
    """The processes that callers run beside one plugin's own. A directory each is the trace of one that may run."""

    def __init__(self, plugin: "PluginState", context: "EngineContext") -> None:
        """``plugin`` is only read."""
        self._plugin = plugin
        self._context = context
        self._present: dict[str, AddedProcess] = {}

    @asynccontextmanager
    async def run(self, runtime: "ContainerRuntime", command: ExecCommand) -> AsyncIterator[AddedProcess]:
        """A process beside the plugin's own, until the block ends. Raises: Conflict where nothing runs, Invalid."""
        plugin, run = self._plugin, self._plugin.run
        if run is None or run.finished.is_set():
            raise errors.Conflict(f"plugin {plugin.name} does not run: it is {plugin.state.value}")
        spec = started_spec((await runtime.client.get_container(run.container)).spec, plugin.directories)
        root = str(plugin.directories.root)
        process = await run_abandonable(lambda: derive_command(spec, root, command))
        exec_id = secrets.token_hex(8)
        directory = plugin.directories.runtime / f"{_EXEC}{exec_id}"
        try:
            async with add_process(
                runtime.client, run.container, exec_id, process, directory, timeouts=self._context.timeouts
            ) as added:
                self._present[exec_id] = added
                yield added
        except errors.NotFound as error:
            raise errors.Conflict(f"plugin {plugin.name} does not run any more: {error}") from error
        except errors.Invalid as error:
            raise errors.Invalid(f"cannot run {command.arguments[0]} in plugin {plugin.name}: {error}") from error
        finally:
            self._present.pop(exec_id, None)
            pid = run.pid
            with anyio.CancelScope(shield=True):
                if pid is not None:  # the runtime has appended to its log, whatever came of it
                    await run_blocking(lambda: truncate_runtime_log(pid, run.container))
                if await run_blocking(directory.exists):
                    self._context.tasks.start_soon(self._end_when_possible, run.container, directory)

    def get(self, exec_id: str) -> AddedProcess:
        """One of them by its id. Raises: NotFound."""
        if exec_id not in self._present:
            raise errors.NotFound(f"plugin {self._plugin.name} has no added process {exec_id}")
        return self._present[exec_id]

    async def find_orphans(self) -> Sequence[Path]:
        """The directories of those of an earlier engine. Called before a process can be added by this engine."""
        return await run_blocking(lambda: sorted(self._plugin.directories.runtime.glob(f"{_EXEC}*")))

    async def end_orphans(self, directories: Sequence[Path]) -> None:
        """Kill what an earlier engine has added to the present run, as its callers exited with that engine.

        What cannot be removed now is removed in the background.
        """
        assert self._plugin.run is not None
        container = self._plugin.run.container
        for directory in directories:
            log.warning("ending a process that was added to plugin %s by an engine that has exited", self._plugin.name)
            try:
                await self._end(container, directory)
            except errors.Unavailable as error:
                log.warning("plugin %s: %s; it is tried again", self._plugin.name, error)
                self._context.tasks.start_soon(self._end_when_possible, container, directory)

    async def _end_when_possible(self, container: str, directory: Path) -> None:
        """End a process that is still added to a container, as soon as containerd answers."""
        timeouts, name = self._context.timeouts, self._plugin.name
        for pause in pauses(timeouts.reconnect_first, timeouts.reconnect_limit):
            await anyio.sleep(pause)
            try:
                await self._end(container, directory)
            except errors.Unavailable as error:
                log.debug("plugin %s: %s", name, error)
            except OSError as error:
                log.warning("cannot remove %s: %s", directory, error.strerror)
                return
            else:
                log.info("ended process %s that was added to plugin %s", _exec_id(directory), name)
                return

    async def _end(self, container: str, directory: Path) -> None:
        client = self._context.availability.require().client
        await destroy_process(client, container, _exec_id(directory), directory, timeouts=self._context.timeouts)


def _exec_id(directory: Path) -> str:
    return directory.name.removeprefix(_EXEC)

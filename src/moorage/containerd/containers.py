"""One container with one task per id, with its directory and output FIFOs: what an executor drives.

It knows nothing of plugins, but the order in which objects are created and removed in containerd, and the leftovers of
a half-created one (measured: docs/reference/containerd.md). It implements ``executor.ContainerClient``.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.client import Client
from moorage.containerd.events import subscribe
from moorage.containerd.identifiers import check_identifier
from moorage.containerd.shims import exits
from moorage.containerd.shims.groups import GroupedShims
from moorage.containerd.shims.leftovers import (
    delete_runtime_state,
    find_stale_task_directory,
    is_stale_runtime_state,
    kill_orphaned_shims,
    remove_orphaned_cgroups,
    thaw_groups,
)
from moorage.containerd.shims.processes import Priorities, find_priorities, schedule
from moorage.containerd.stdio import Attach, make_bundle, open_stdio, renew_stdio
from moorage.containerd.types import Envelope, Mount, ProcessExit, RuntimeOptions, Spec, Status
from moorage.host.directory_tree import remove_tree
from moorage.timeouts import DEFAULT, ClientTimeouts

__all__ = ("BUNDLE_LABEL", "INIT_PROCESS_NAME", "BundledContainers")

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

BUNDLE_LABEL = "moorage.bundle"
"""Label of a record: its directory on this machine."""

INIT_PROCESS_NAME = "init"
"""How callers name a container's first process."""

_SIGKILL, _SHIM_CLOSED = 9, "ttrpc: closed"
_CHECK_INTERVAL = 0.02  # seconds between two queries whether containerd has noticed


def _records_exit(
    call: "Callable[Concatenate[BundledContainers, str, Arguments], Awaitable[Answer]]",
) -> "Callable[Concatenate[BundledContainers, str, Arguments], Coroutine[Any, Any, Answer]]":
    """While containerd is unavailable, the exit of a task is queried from its shim and recorded for ``delete_task``."""

    @wraps(call)
    async def recording(
        self: "BundledContainers", id: str, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        async with exits.recording_exit(self._client.namespace, id, self._bundle(id)):
            return await call(self, id, *args, **kwargs)

    return recording


class BundledContainers:
    """The containers of one namespace, each with a directory below ``<root>/bundles/<namespace>``.

    ``runtime`` names their runtime and its state directory, searched for leftovers; ``timeouts`` bound ``client``.
    """

    def __init__(
        self, client: Client, root: Path, *, runtime: RuntimeOptions, timeouts: ClientTimeouts = DEFAULT
    ) -> None:
        self._client = client
        self._bundles = root / "bundles" / client.namespace
        self._runtime = runtime
        self._timeouts = timeouts
        self._shims = GroupedShims(client, timeouts.killed)
        self._created: dict[str, tuple[RuntimeOptions, Sequence[Mount], Priorities]] = {}
        self._known = exits.KnownTasks()

    async def create(
        self,
        id: str,
        spec: Spec,
        runtime_options: RuntimeOptions,
        *,
        rootfs: Sequence[Mount] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create the directory and the record; both or nothing.

        Raises: Conflict where the id has a directory or a record; Invalid where the id or the spec cannot be written.
        Raises: MoorageError where the directory cannot be made.
        """
        bundle = self._bundle(id)
        all_labels = {**(labels or {}), BUNDLE_LABEL: str(bundle)}
        async with AsyncExitStack() as undo:
            try:
                await run_blocking(lambda: make_bundle(bundle))
            except FileExistsError as error:
                raise errors.Conflict(f"container {id} has a directory already, {bundle}") from error
            except OSError as error:
                raise errors.MoorageError(f"cannot make a directory for container {id}: {error}") from error
            undo.push_async_callback(self._undo, remove_tree, bundle)
            undo.push_async_callback(self._undo, self._delete_record, id, all_labels)
            # A cancellation does not interrupt it: containerd may write a record after the undo has found none.
            with anyio.CancelScope(shield=True):
                await self._client.create_container(id, spec, runtime_options, labels=all_labels)
            undo.pop_all()
        self._known.forget(id)
        self._created[id] = runtime_options, tuple(rootfs), find_priorities(spec)
        self._shims.register(id, spec)

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        """Create the task with its output in two FIFOs, hand their readers to ``attach``, start it; its pid.

        On failure the readers are closed; ``delete_task`` removes the rest.

        Raises:
            errors.Conflict: leftovers of an earlier task prevented it; a second try may succeed
            errors.NotFound: ``create`` was not called
            errors.Unsupported: a checkpoint or a standard input
            errors.MoorageError: the FIFOs cannot be made, or the runtime refuses; its text
        """
        if checkpoint_dir or with_stdin:
            raise errors.Unsupported(f"cannot start {id}: checkpoints and standard input are not supported")
        async with self._new_task(id, attach):
            return await self._client.start_task(id)

    async def prepare(self, id: str, attach: Attach) -> int:
        """As ``start``, but the task is only created, not started; the pid of its process. Raises: as ``start``."""
        async with self._new_task(id, attach) as pid:
            return pid

    async def start_prepared(self, id: str) -> int:
        """Start a task that ``prepare`` has created; its pid. Raises: NotFound; MoorageError."""
        return await self._client.start_task(id)

    @asynccontextmanager
    async def _new_task(self, id: str, attach: Attach) -> AsyncIterator[int]:
        """Create the task and hand its streams over; yields the pid. If the block fails, the readers are closed."""
        if id not in self._created:
            raise errors.NotFound(f"cannot start {id}: it was not created here")
        options, rootfs, priorities = self._created[id]
        self._known.forget(id)
        try:
            stdio = await run_blocking(lambda: renew_stdio(self._bundle(id), uid=options.io_uid, gid=options.io_gid))
        except OSError as error:
            raise errors.MoorageError(f"cannot make the output of container {id}: {error}") from error
        out, err = str(stdio.stdout.path), str(stdio.stderr.path)
        make = lambda: self._client.create_task(id, stdout=out, stderr=err, rootfs=rootfs, runtime=options)  # noqa: E731
        try:
            pid = await self._shims.create_task(id, make)
        except BaseException as error:
            stdio.close()
            if isinstance(error, errors.MoorageError) and await self._clear_obstacle(id, error):
                raise errors.Conflict(str(error)) from error
            raise
        try:
            await run_blocking(lambda: schedule(pid, priorities))
            await attach(stdio)
            yield pid
        except BaseException:
            stdio.close()
            raise

    @_records_exit
    async def restore(self, id: str, attach: Attach) -> tuple[bool, int | None]:
        """Hand the readers of a running task to ``attach``; whether it is alive, and its pid.

        A task that was never started or has exited is not alive; ``attach`` is called all the same, since the task may
        have exited in between. The readers are closed if it fails.

        Raises:
            errors.NotFound: no record, no task, or no FIFO
            errors.Unavailable: its shim does not answer
            errors.MoorageError: the FIFOs cannot be opened
        """
        self._known.forget(id)
        self._shims.register(id, (await self._client.get_container(id)).spec)
        await self._shims.adopt(id, (await self._client.get_task(id)).pid)
        try:
            stdio = await run_blocking(lambda: open_stdio(self._bundle(id)))
        except FileNotFoundError as error:
            raise errors.NotFound(f"the output of container {id} is gone: {error}") from error
        except OSError as error:
            raise errors.MoorageError(f"cannot open the output of container {id}: {error}") from error
        try:
            await attach(stdio)
            task = await self._client.get_task(id)
            if task.status is Status.UNKNOWN:
                raise errors.Unavailable(f"the shim of container {id} does not answer")
        except BaseException:
            stdio.close()
            raise
        alive = task.status in (Status.RUNNING, Status.PAUSED, Status.PAUSING)
        return alive, task.pid or None

    @_records_exit
    async def status(self, id: str) -> Status:
        """The state of the task. Raises: NotFound if there is none, not even one whose record was deleted."""
        try:
            task = await self._client.get_task(id)
            if task.status is Status.STOPPED:
                self._known.exits[id] = ProcessExit(task.exit_code, task.exited_at)
            return task.status
        except errors.NotFound:
            # A task without its record is only in the list, and continues to run; "not found" must not end its run.
            if (found := await exits.find_task_without_record(self._client, id)) is None:
                raise
            return found

    @_records_exit
    async def labels(self, id: str) -> Mapping[str, str]:
        """The labels of the record. Raises: NotFound."""
        return (await self._client.get_container(id)).labels

    @_records_exit
    async def signal_process(self, id: str, process_id: str, signal: int) -> None:
        """Send a signal to the first process (``init``) or to an added one. Raises: NotFound if it has exited."""
        exec_id = "" if process_id == INIT_PROCESS_NAME else process_id
        if not exec_id and signal != _SIGKILL and await self._shims.signal(id, signal):
            return
        await self._client.kill(id, signal, exec_id=exec_id)
        if signal == _SIGKILL:
            await self._thaw(id)

    @_records_exit
    async def oom_killed(self, id: str) -> bool:
        """Whether a process of the container was OOM-killed. Known until ``delete_task``.

        Of a task whose first process is known to have exited otherwise than by SIGKILL, no counter is read: it was not.
        """
        if id in self._known.exits and self._known.exits[id].code != 128 + _SIGKILL:
            return False
        return await self._shims.oom_killed(id)

    async def find_exit(self, id: str) -> tuple[int | None, datetime | None] | None:
        """Code and time of a task whose status was stopped, if its first process was its last one; else None."""
        return self._known.exit_of(id) if self._shims.ends_with_first_process(id) else None

    @_records_exit
    async def delete_task(self, id: str) -> tuple[int | None, datetime | None]:
        """Kill the task, wait for its exit, remove it; exit code and time, both None if there was no task.

        Removes the leftovers of a half-created task too: a task without a record, a shim without a task, the runtime's
        state. May be repeated, also by another process: the exit is recorded in the directory until ``delete``.

        Raises: Unavailable while the process does not exit.
        """
        exited = await self._kill_and_delete(id)
        if exited is None and await exits.find_task_without_record(self._client, id) is not None:
            # A task without a record is only accessible under a record of its id.
            await self._client.create_container(id, {}, self._runtime, labels={BUNDLE_LABEL: ""})
            exited = await self._kill_and_delete(id)
        if exited is None:
            async with self._shims.deletion(id):
                await self._clear_shims(id)
            exited = await run_blocking(lambda: exits.find_recorded_exit(self._bundle(id)))
        return (exited.code, exited.exited_at) if exited else (None, None)

    async def directories(self) -> list[str]:
        """The ids that have a directory, also those of which nothing else is left, since it is removed last."""
        return await run_blocking(lambda: [each.name for each in self._bundles.glob("*")])

    async def delete(self, id: str) -> None:
        """Remove the record, the directory and the FIFOs. What is missing is ignored.

        Raises: Conflict while a process of it may run; without its record it would be inaccessible.
        """
        bundle = self._bundle(id)
        status = Status.STOPPED
        if id not in self._known.deleted:
            with suppress(errors.NotFound):
                status = (await self._client.get_task(id)).status
        if status is not Status.STOPPED:
            raise errors.Conflict(f"cannot delete container {id}: it has a task that is {status.value}")
        await self._delete_record(id)
        self._created.pop(id, None)
        self._known.forget(id)
        self._shims.forget(id)
        await remove_tree(bundle)  # last: it contains the recorded exit

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Envelope]]:
        """Events of the tasks of the namespace, from the moment of entering. Raises: Unavailable when it is closed."""
        async with exits.preparing_queries(), subscribe(self._client, timeouts=self._timeouts) as envelopes:
            await self._client.version()  # after a loss it may be another containerd
            yield envelopes

    async def _kill_and_delete(self, id: str) -> ProcessExit | None:
        with anyio.move_on_after(self._timeouts.killed):
            while True:
                try:
                    return await self._kill_and_delete_once(id)
                except errors.MoorageError as error:
                    if _SHIM_CLOSED not in str(error):
                        raise
                # The shim was killed a moment ago; containerd notices, then kills and removes what was in it.
                await anyio.sleep(_CHECK_INTERVAL)
        raise errors.Unavailable(f"cannot stop container {id}: its shim has exited, and containerd has not noticed")

    async def _kill_and_delete_once(self, id: str) -> ProcessExit | None:
        task, exited = None, self._known.exits.get(id)
        if exited is None:
            task = await exits.find_task(self._client, id)
            if task is not None and task.status is Status.STOPPED:
                exited = ProcessExit(task.exit_code, task.exited_at)
        if exited is not None:
            # To kill a stopped task takes the runtime 10 ms for nothing. Once deleted, its exit is only known here.
            await run_blocking(partial(exits.record_exit, self._bundle(id), exited))
        elif task is not None:
            try:
                await self._client.kill(id, _SIGKILL, all_processes=True)
            except errors.NotFound:
                pass
            else:
                await self._thaw(id)
                await exits.wait_for_exit(self._client, id, self._timeouts.killed)
        async with self._shims.deletion(id):
            try:
                deleted = await self._client.delete_task(id)
            except errors.NotFound:
                return None
            except errors.MoorageError:
                self._known.forget(id)  # what was known may be no longer so
                raise
            self._known.deleted.add(id)
            return deleted

    async def _delete_record(self, id: str, only_with: Mapping[str, str] | None = None) -> None:
        """Remove the record; with ``only_with``, only one with exactly these labels (that was created here)."""
        try:
            if only_with is not None and dict((await self._client.get_container(id)).labels) != dict(only_with):
                return
            await self._client.delete_container(id)
        except errors.NotFound:
            pass

    async def _clear_obstacle(self, id: str, error: errors.MoorageError) -> bool:
        """Whether a task could not be created because of an earlier one of this id, so that a second try may succeed.

        A deletion removes containerd's half-created task, but not its leftover directory, nor each state of a runtime.
        """
        if isinstance(error, errors.Conflict):
            return True
        if is_stale_runtime_state(str(error)):
            await self._undo(delete_runtime_state, (await self._recorded(id))[0], self._client.namespace, id)
            return True
        directory = find_stale_task_directory(str(error), self._client.namespace, id)
        if directory is None:
            return False
        log.warning("removing %s, a leftover of an earlier task of %s", directory, id)
        # containerd renames a directory to a hidden one before it removes it; killed in between it never removes the
        # hidden one, and then fails at every deletion of the same id.
        for leftover in (directory, directory.with_name(f".{id}")):
            await self._undo(remove_tree, leftover)
        return True

    async def _clear_shims(self, id: str) -> None:
        """Remove what shim and runtime have created for a container that containerd has no task of."""
        within = self._timeouts.killed
        runtime, spec = await self._recorded(id)

        async def clear_runtime() -> None:
            await delete_runtime_state(runtime, self._client.namespace, id)
            await remove_orphaned_cgroups(spec, runtime=runtime.command, within=within)

        await kill_orphaned_shims(self._client, id, clear_runtime, runtime=runtime.command, within=within)
        await clear_runtime()

    async def _recorded(self, id: str) -> tuple[RuntimeOptions, Spec]:
        """With which runtime a container was created, which may differ from the one for new ones, and its spec."""
        try:
            record = await self._client.get_container(id)
        except errors.NotFound:
            return self._runtime, {}
        return record.runtime, record.spec

    async def _thaw(self, id: str) -> None:
        """Let a killed container continue, if it was frozen: in version 1 it gets no signal before, and crun waits."""
        _, spec = await self._recorded(id)
        await run_blocking(lambda: thaw_groups(spec))

    async def _undo(self, step: Callable[..., Awaitable[None]], *arguments: object) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            try:
                await step(*arguments)
            except (errors.MoorageError, OSError) as error:
                log.warning("cannot clean up after a container: %s", error)

    def _bundle(self, id: str) -> Path:
        # Checked at every use: the directory is removed with all below it, and an id like ".." would name others.
        return self._bundles / check_identifier(id, "container id")

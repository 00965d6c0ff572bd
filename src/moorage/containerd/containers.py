"""One container with one task per id, with its directory and output FIFOs: what an executor drives.

It knows nothing of plugins, but in which order things are made and removed in containerd, and what a half-made one
leaves behind (measured: docs/reference/containerd.md). It satisfies ``executor.ContainerClient`` without knowing it.
"""

import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd._exit_note import find_exit, keep_exit
from moorage.containerd._left_cgroups import clear_left_cgroups
from moorage.containerd._scheduling import find_nice_value, schedule
from moorage.containerd._shim_end import noting_ends
from moorage.containerd._shims import end_lost_shims
from moorage.containerd.client import Client, check_identifier
from moorage.containerd.events import subscribe
from moorage.containerd.stdio import Stdio, fifo_paths, make_bundle, make_fifos, open_stdio
from moorage.containerd.supervisor import find_binary
from moorage.containerd.types import Envelope, Mount, Process, ProcessExit, RuntimeOptions, Spec, Status
from moorage.host.beneath import remove_tree
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("BUNDLE_LABEL", "INIT_PROCESS_NAME", "Attach", "Attached", "BundledContainers")

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

BUNDLE_LABEL = "moorage.bundle"
"""Label of a record: its directory on this machine."""

INIT_PROCESS_NAME = "init"
"""How callers name a container's first process."""

_KILL = 9

# What containerd answers when its own directory for a task is left from before, and what it says when the runtime's is.
_STALE_TASK_DIRECTORY = re.compile(r"mkdir (?P<path>/\S+/io\.containerd\.runtime\.v2\.task/\S+): file exists")
_STALE_RUNTIME_STATE = "container with given ID already exists"

_SHIM_IS_GONE = "ttrpc: closed"
_LOOK_AGAIN = 0.02  # seconds until containerd is asked again whether it has noticed


class Attached(Protocol):
    """Whatever took the streams."""

    async def wait(self) -> None:
        """Return when both streams have been taken to their end."""


Attach = Callable[[Stdio], Awaitable[Attached]]
"""Takes both readers (from now on they are its own to close) and says when they have ended."""


def _asks_the_shim(
    call: "Callable[Concatenate[BundledContainers, str, Arguments], Awaitable[Answer]]",
) -> "Callable[Concatenate[BundledContainers, str, Arguments], Coroutine[Any, Any, Answer]]":
    """While containerd is away, how a task ended is asked of its shim and kept for ``delete_task``."""

    @wraps(call)
    async def asking(
        self: "BundledContainers", id: str, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        async with noting_ends(self._client.namespace, id, self._bundle(id)):
            return await call(self, id, *args, **kwargs)

    return asking


class BundledContainers:
    """The containers of one namespace, each with a directory below ``<root>/bundles/<namespace>``.

    ``runtime`` says which runtime made them and where it keeps its own state, to be looked through for leftovers.
    """

    def __init__(self, client: Client, root: Path, *, runtime: RuntimeOptions, timeouts: Timeouts = DEFAULT) -> None:
        self._client = client
        self._bundles = root / "bundles" / client.namespace
        self._runtime = runtime
        self._timeouts = timeouts
        self._made: dict[str, tuple[RuntimeOptions, Sequence[Mount], int | None]] = {}

    @property
    def _runtime_name(self) -> str:
        return os.path.basename(self._runtime.binary_name or "runc")

    async def create(
        self,
        id: str,
        spec: Spec,
        runtime_options: RuntimeOptions,
        *,
        rootfs: Sequence[Mount] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Make the directory and the record; all of it or nothing.

        Raises: Conflict where the id has a directory or a record; else as ``Client.create_container``.
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
            # Not broken off by a cancellation: containerd may write a record after we have looked for it in vain.
            with anyio.CancelScope(shield=True):
                await self._client.create_container(id, spec, runtime_options, labels=all_labels)
            undo.pop_all()
        self._made[id] = runtime_options, tuple(rootfs), find_nice_value(spec)

    async def start(self, id: str, checkpoint_dir: str, with_stdin: bool, attach: Attach) -> int:
        """Create the task with its output in two FIFOs, hand their readers to ``attach``, start it; its pid.

        On failure the readers are closed; the rest is for ``delete_task``.

        Raises: Conflict where something of an earlier task is in the way; Unsupported for a checkpoint or a standard
        input; MoorageError with the runtime's words.
        """
        if checkpoint_dir or with_stdin:
            raise errors.Unsupported(f"cannot start {id}: checkpoints and standard input are not supported")
        if id not in self._made:
            raise errors.NotFound(f"cannot start {id}: it was not created here")
        options, rootfs, nice = self._made[id]
        try:
            stdio = await run_blocking(lambda: _fresh_stdio(self._bundle(id), options))
        except OSError as error:
            raise errors.MoorageError(f"cannot make the output of container {id}: {error}") from error
        stdout, stderr = str(stdio.stdout.path), str(stdio.stderr.path)
        try:
            # Not broken off by a cancellation: containerd 1.6 would leave a shim for seconds, or for good, in a third
            # of the cases. It runs to its end, within its time limit, and whoever cancelled undoes it.
            with anyio.CancelScope(shield=True):
                pid = await self._client.create_task(id, stdout=stdout, stderr=stderr, rootfs=rootfs, runtime=options)
        except BaseException as error:
            stdio.close()
            if isinstance(error, errors.MoorageError) and await self._clear_obstacle(id, error):
                raise errors.Conflict(str(error)) from error
            raise
        try:
            await run_blocking(lambda: schedule(pid, nice))
            await attach(stdio)
            return await self._client.start_task(id)
        except BaseException:
            stdio.close()
            raise

    @_asks_the_shim
    async def restore(self, id: str, attach: Attach) -> tuple[bool, int | None]:
        """Hand the readers of a running task to ``attach``; whether it lives, and its pid.

        Not alive is a task that was never started or has ended; ``attach`` was called all the same, since it may have
        ended in between.

        Raises: NotFound where there is no record, no task, or no FIFO left; Unavailable where its shim does not say.
        The readers are closed then.
        """
        await self._client.get_container(id)
        await self._client.get_task(id)
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

    @_asks_the_shim
    async def status(self, id: str) -> Status:
        """The state of the task. Raises: NotFound where there is none, not even one whose record was deleted."""
        try:
            return (await self._client.get_task(id)).status
        except errors.NotFound:
            # Without its record a task is only seen in the list, and it runs on; "not found" must not end its run.
            for task in await self._client.list_tasks():
                if task.container_id == id:
                    return task.status
            raise

    @_asks_the_shim
    async def labels(self, id: str) -> Mapping[str, str]:
        """The labels of the record. Raises: NotFound."""
        return (await self._client.get_container(id)).labels

    @_asks_the_shim
    async def signal_process(self, id: str, process_id: str, signal: int) -> None:
        """Send a signal to the first process (``init``) or to an added one. Raises: NotFound for one that ended."""
        exec_id = "" if process_id == INIT_PROCESS_NAME else process_id
        await self._client.kill(id, signal, exec_id=exec_id)

    @_asks_the_shim
    async def oom_killed(self, id: str) -> bool:
        """Whether the kernel killed anything in the container for want of memory. Known until ``delete_task``."""
        return await self._client.oom_kills(id) > 0

    @_asks_the_shim
    async def delete_task(self, id: str) -> tuple[int | None, datetime | None]:
        """Kill the task, wait for its end, remove it; exit code and time, both None where there was no task.

        Clears what a half-made task leaves too: a task without a record, a shim without a task, the runtime's state.
        May be repeated, also by another process: how an ended task ended is kept in its directory until ``delete``.

        Raises: Unavailable where the process does not end.
        """
        ended = await self._kill_and_delete(id)
        if ended is None and await self._is_listed(id):
            # A task whose record is gone can only be reached under a record of its id.
            await self._client.create_container(id, {}, RuntimeOptions(), labels={BUNDLE_LABEL: ""})
            ended = await self._kill_and_delete(id)
        if ended is None:
            await end_lost_shims(
                self._client.address,
                self._client.namespace,
                id,
                lambda: self._clear_runtime(id),
                runtime=self._runtime_name,
                within=self._timeouts.killed,
            )
            await self._clear_runtime(id)
            ended = await run_blocking(lambda: find_exit(self._bundle(id)))
        return (ended.code, ended.exited_at) if ended else (None, None)

    async def delete(self, id: str) -> None:
        """Remove the record, the directory and the FIFOs. What is gone already is fine.

        Raises: Conflict while a process of it may live: without its record nobody could reach it any more.
        """
        bundle = self._bundle(id)
        try:
            status = (await self._client.get_task(id)).status
        except errors.NotFound:
            status = Status.STOPPED
        if status is not Status.STOPPED:
            raise errors.Conflict(f"cannot delete container {id}: it has a task that is {status.value}")
        await self._delete_record(id)
        self._made.pop(id, None)
        await remove_tree(bundle)  # last: it says how the task ended

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Envelope]]:
        """What happens to the tasks of the namespace, from the moment of entering. Raises: Unavailable at its end."""
        async with subscribe(self._client, timeouts=self._timeouts) as envelopes:
            yield envelopes

    async def _kill_and_delete(self, id: str) -> ProcessExit | None:
        with anyio.move_on_after(self._timeouts.killed):
            while True:
                try:
                    return await self._kill_and_delete_once(id)
                except errors.MoorageError as error:
                    if _SHIM_IS_GONE not in str(error):
                        raise
                # The shim was killed a moment ago; containerd notices, then kills and removes what was in it.
                await anyio.sleep(_LOOK_AGAIN)
        raise errors.Unavailable(f"cannot end container {id}: its shim is gone, and containerd does not notice")

    async def _kill_and_delete_once(self, id: str) -> ProcessExit | None:
        task = await self._find_task(id)
        if task is not None and task.status is Status.STOPPED:
            # To kill a stopped task takes the runtime 10 ms for nothing. Once it is deleted nobody else knows its end.
            ended = ProcessExit(task.exit_code, task.exited_at)
            try:
                await run_blocking(lambda: keep_exit(self._bundle(id), ended))
            except OSError as error:
                log.warning("cannot keep how %s ended for the next process: %s", id, error)
        elif task is not None:
            try:
                await self._client.kill(id, _KILL, all_processes=True)
            except errors.NotFound:
                pass
            else:
                await self._wait_for_end(id)
        try:
            return await self._client.delete_task(id)
        except errors.NotFound:
            return None

    async def _find_task(self, id: str) -> Process | None:
        """The task, None where there is none; one of unknown status where its shim gives no answer."""
        try:
            return await self._client.get_task(id)
        except errors.NotFound:
            return None
        except errors.Unavailable:
            raise
        except errors.MoorageError:
            return Process(id, id, 0, Status.UNKNOWN)

    async def _wait_for_end(self, id: str) -> None:
        try:
            await self._client.wait(id, within=self._timeouts.killed)
        except errors.NotFound:
            pass
        except errors.Unavailable as error:
            raise errors.Unavailable(f"cannot end container {id}, its process may still live: {error}") from error
        except errors.MoorageError:
            # The shim went away while we waited; containerd then kills and removes the task itself.
            log.debug("waiting for the end of %s failed", id, exc_info=True)

    async def _is_listed(self, id: str) -> bool:
        return any(task.container_id == id for task in await self._client.list_tasks())

    async def _delete_record(self, id: str, only_with: Mapping[str, str] | None = None) -> None:
        """Remove the record; with ``only_with``, only one that carries just these labels (so, the one we made)."""
        try:
            if only_with is not None and dict((await self._client.get_container(id)).labels) != dict(only_with):
                return
            await self._client.delete_container(id)
        except errors.NotFound:
            pass

    async def _clear_obstacle(self, id: str, error: errors.MoorageError) -> bool:
        """Whether a task could not be created because of an earlier one of this id, so that a second try is worth it.

        The runtime's own state goes by the failure itself and containerd's half-made task by its deletion; only a
        left directory of containerd has to be removed here.
        """
        if isinstance(error, errors.Conflict) or _STALE_RUNTIME_STATE in str(error):
            return True
        if (match := _STALE_TASK_DIRECTORY.search(str(error))) is None:
            return False
        directory = Path(match["path"])
        if directory.name != id or directory.parent.name != self._client.namespace:
            return False
        log.warning("removing %s, left from an earlier task of %s", directory, id)
        # containerd renames a directory to a hidden one before it removes it; killed in between it leaves that for
        # ever, and then fails at every deletion of the same id.
        for left in (directory, directory.with_name(f".{id}")):
            await self._undo(remove_tree, left)
        return True

    async def _clear_runtime(self, id: str) -> None:
        """Remove what a runtime has made of a container that containerd has no task of."""
        await self._delete_runtime_state(id)
        try:
            spec = (await self._client.get_container(id)).spec
        except errors.NotFound:
            return
        await clear_left_cgroups(spec, runtime=self._runtime_name, within=self._timeouts.killed)

    async def _delete_runtime_state(self, id: str) -> None:
        """Remove what the runtime has noted of a container that containerd does not know."""
        root = Path(self._runtime.root) / self._client.namespace
        if not self._runtime.root or not await run_blocking((root / id).exists):
            return
        command = [find_binary(self._runtime.binary_name or "runc"), "--root", str(root), "delete", "--force", id]
        try:
            done = await anyio.run_process(command, check=False)
        except OSError as error:
            log.warning("cannot delete the runtime's state of %s: %s", id, error)
            return
        if done.returncode:
            log.warning("cannot delete the runtime's state of %s: %s", id, done.stderr.decode(errors="replace").strip())

    async def _undo(self, step: Callable[..., Awaitable[None]], *arguments: object) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._timeouts.cleanup):
            try:
                await step(*arguments)
            except (errors.MoorageError, OSError) as error:
                log.warning("cannot clean up after a container: %s", error)

    def _bundle(self, id: str) -> Path:
        # Checked at every use: the directory is removed with all below it, and an id like ".." would name others'.
        return self._bundles / check_identifier(id, "container id")


def _fresh_stdio(bundle: Path, options: RuntimeOptions) -> Stdio:
    """Both FIFOs, new, with their read ends open. Ones that are left from a failed start have no writer."""
    for path in fifo_paths(bundle):
        path.unlink(missing_ok=True)
    make_fifos(bundle, uid=options.io_uid, gid=options.io_gid)
    return open_stdio(bundle)

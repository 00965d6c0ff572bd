"""The end of an engine and of all that it has left running: plugins first, then what they need."""

import logging
import os
import signal as signals
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.assembly import EngineSetup, ServeOptions, lock_data_directory, open_engine, open_plugins
from moorage.containerd.supervisor import PrivateContainerd
from moorage.engine.engine import Engine
from moorage.engine.store import Store
from moorage.engine.values import EngineIdentity, PluginRecord
from moorage.host.cgroups import find_groups, pids_in, remove_parent_group, thaw
from moorage.host.directory_tree import remove_tree
from moorage.host.leftovers import end_processes, remove_leftovers, remove_shim_directory
from moorage.host.mounts import unmount_all_below
from moorage.host.sockets import accepts_connections, is_socket
from moorage.logs.keeper_client import stop_keeper
from moorage.plugins import container_of_group
from moorage.proxy.client import clear_proxy_state, stop_proxy
from moorage.runs.removal import find_control_groups
from moorage.runtime_directory import RUNTIME_PARTS, RuntimeDirectory, RuntimeOwner, check_mount_namespace
from moorage.timeouts import Timeouts

__all__ = (
    "stop_all_plugins",
    "stop_engine",
)

log = logging.getLogger(__name__)


class _Stopped(Struct):
    """What was stopped."""

    plugins: int = 0
    containerd: bool = False
    engine: bool = False

    def as_text(self) -> str:
        parts = [f"{self.plugins} plugin{'' if self.plugins == 1 else 's'}"] if self.plugins else []
        parts += [name for name, was in (("containerd", self.containerd), ("the engine", self.engine)) if was]
        if not parts:
            return ""
        return f"stopped {', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else f"stopped {parts[0]}"


async def stop_engine(options: ServeOptions, report: Callable[[str], None] = log.info) -> int:
    """Stop the engine of these directories and all its plugins, at once, then log keeper, proxy and our containerd.

    Only the data stays, and in it which plugins are enabled, for the next start. Nothing of another engine is touched.
    ``report`` is called with what was stopped.

    Raises: Conflict where the run-time directory is another engine's, or what runs cannot be seen from here;
    Unavailable naming what could not be stopped.
    """
    store, runtime = Store(options.root), RuntimeDirectory(options.exec_root)
    owner = await run_blocking(runtime.find_owner)
    choice = await run_blocking(store.find_identity)
    is_settled = (options.root / "engine.json").exists()
    if not is_settled and (owner is None or owner.root != str(options.root)):
        report(f"nothing to stop: no engine has worked on {options.root}")
        return 0
    if owner is not None and choice is not None and owner.engine_id != choice.engine_id:
        raise errors.Conflict(
            f"cannot stop the engine on {options.root}: {options.exec_root} has the run-time files of the engine on "
            f"{owner.root}; leave --exec-root out, or name that engine with --root"
        )
    if owner is not None:
        options = replace(options, socket=Path(owner.socket))  # what was recorded counts
    if owner is not None and (store.is_locked() or runtime.has_leftovers()):
        await run_blocking(lambda: check_mount_namespace(owner, options.root))
    stopped = _Stopped(engine=await run_blocking(store.is_locked))
    if stopped.engine:
        await _end_engine(store, options.timeouts)
    if not is_settled:
        await _clear_without_data(options, runtime)
    elif _may_run(choice, runtime, stopped):
        async with _lock_when_free(store, options):
            await _stop_all(store, options, stopped, anyio.Event())
    else:
        await _remove_runtime(runtime, owner)
    report(stopped.as_text() or f"nothing to stop: no plugin of the engine on {options.root} runs")
    return 0


def _may_run(choice: EngineIdentity | None, runtime: RuntimeDirectory, stopped: _Stopped) -> bool:
    """Whether something of the engine may run: the system's containerd is queried, a private one leaves files."""
    if choice is None or stopped.engine or runtime.has_leftovers():
        return True
    return choice.containerd != "private" and choice.is_claimed


async def stop_all_plugins(store: Store, options: ServeOptions, *, kill_now: anyio.Event) -> None:
    """Stop all that an engine has left running, which has detached; when ``kill_now`` is set, plugins are killed.

    The caller has the data directory locked.

    Raises: Unavailable naming what could not be stopped.
    """
    await _stop_all(store, options, _Stopped(), kill_now)


async def _stop_all(store: Store, options: ServeOptions, stopped: _Stopped, kill_now: anyio.Event) -> None:
    async with open_engine(store, options) as (engine, ground):
        owner = await run_blocking(ground.runtime.find_owner)
        await engine.publisher.wait_news()
        problems = await _stop_plugins(engine, ground, stopped, kill_now)
        if problems:
            raise errors.Unavailable("; ".join(problems))
        await stop_keeper(ground.keeper, options.timeouts)
        await engine.publisher.shut_down()
        if ground.choice.containerd == "private":
            await ground.private.stop()
            stopped.containerd = True
        await _remove_runtime(ground.runtime, owner, retains_ledger=engine.publisher.has_mounts)


async def _stop_plugins(engine: Engine, ground: EngineSetup, stopped: _Stopped, kill_now: anyio.Event) -> Sequence[str]:
    """Stop every plugin, without containerd where that cannot be used; what failed, as text.

    Raises: Conflict where another engine works on it.
    """
    timeouts = ground.options.timeouts
    with anyio.move_on_after(timeouts.containerd_start + timeouts.rpc) as scope:
        try:
            async with open_plugins(engine, ground, start=False):
                scope.deadline = float("inf")
                stopped.plugins = engine.running()
                return await engine.stop_all(kill_now)
        except errors.Conflict:
            raise
        except errors.MoorageError as error:
            log.warning("containerd cannot be used, the plugins are stopped without it: %s", error)
    if scope.cancelled_caught:
        log.warning("containerd does not come up, the plugins are stopped without it")
    private = ground.private
    if ground.choice.containerd == "private":
        await private.stop()
    stopped.plugins, problems = await stop_without_containerd(
        ground.store, private.state, private.address, ground.choice.namespace, timeouts
    )
    await engine.publisher.protect_mounts()
    return problems


@asynccontextmanager
async def _lock_when_free(store: Store, options: ServeOptions) -> AsyncIterator[None]:
    """Lock the data directory as soon as it is free: another ``moorage down`` may have been quicker."""
    async with AsyncExitStack() as undo:
        while True:
            await _end_engine(store, options.timeouts)
            with suppress(errors.Conflict):
                await undo.enter_async_context(lock_data_directory(options, serves=False))
                break
        yield


async def _end_engine(store: Store, timeouts: Timeouts) -> None:
    """Let the engine that works on this directory detach, and wait for it. Raises: Unavailable."""
    with anyio.move_on_after(timeouts.cleanup):
        signalled_pid = None
        while await run_blocking(store.is_locked):
            owner = store.find_owner()
            if (
                owner is not None
                and owner != signalled_pid
                and await run_blocking(lambda: store.signal_owner(signals.SIGTERM))
            ):
                signalled_pid = owner
            await anyio.sleep(0.02)
        return
    raise errors.Unavailable(f"cannot end the engine on {store.root}: process {store.find_owner()} does not end")


async def _clear_without_data(options: ServeOptions, runtime: RuntimeDirectory) -> None:
    """Clear the run-time directory of an engine whose data directory is gone, and with it what its plugins were."""
    await stop_keeper(options.exec_root / "keeper", options.timeouts)
    await stop_proxy(options.exec_root / "proxy", options.timeouts)
    await PrivateContainerd(options.root / "containerd", options.exec_root / "containerd", options.timeouts).stop()
    await _remove_runtime(runtime, await run_blocking(runtime.find_owner))


async def _remove_runtime(
    runtime: RuntimeDirectory, owner: RuntimeOwner | None, *, retains_ledger: bool = False
) -> None:
    """Remove what is below the run-time directory, and it too where nothing else is in it.

    ``retains_ledger``: what consumers have mounted stays known, and is mounted again after the next start.
    """

    def remove_rest() -> None:
        if owner is not None:
            _remove_socket(Path(owner.socket))
        remove_parent_group()
        remove_shim_directory()
        runtime.clear()

    try:
        for part in RUNTIME_PARTS:
            await run_blocking(lambda part=part: unmount_all_below(runtime.path / part))  # type: ignore[misc]
            if part == "proxy" and retains_ledger:
                await run_blocking(lambda: clear_proxy_state(runtime.path / "proxy"))
            else:
                await remove_tree(runtime.path / part)
        await run_blocking(remove_rest)
    except OSError as error:
        raise errors.Unavailable(f"cannot remove {error.filename or runtime.path}: {error.strerror}") from error


def _remove_socket(path: Path) -> None:
    """Remove the socket of an engine that was killed; one on which another program listens by now stays."""
    if is_socket(path) and not accepts_connections(path):
        path.unlink(missing_ok=True)


_POLL = 0.02  # seconds; the kernel does not report when a control group of version 1 becomes empty


async def stop_without_containerd(
    store: Store, state: Path, address: str, namespace: str, timeouts: Timeouts
) -> tuple[int, Sequence[str]]:
    """Stop every plugin of a data directory, all at once, and unmount what was mounted for it.

    How many ran, and what failed, as text.

    ``state`` is the run-time directory of a private containerd, whose shims end as well; ``address`` is the socket.
    """
    problems: list[str] = []
    running = 0

    async def stop(record: PluginRecord) -> None:
        nonlocal running
        try:
            running += await _stop_plugin(record, store, state, address, namespace, timeouts)
        except (errors.MoorageError, OSError) as error:
            problems.append(f"cannot stop plugin {record.name}: {error}")

    loaded = await run_blocking(store.load)
    async with anyio.create_task_group() as tasks:
        for record in loaded.records:
            tasks.start_soon(stop, record)
    return running, problems


async def _stop_plugin(
    record: PluginRecord, store: Store, state: Path, address: str, namespace: str, timeouts: Timeouts
) -> bool:
    own = record.policy.stop_timeout
    did_run = False
    # every run has a group of its own, and the record names only the last one
    groups = {container_of_group(each): each for each in await run_blocking(lambda: find_control_groups(record.id))}
    for container, group in ({record.container: ""} | groups).items():
        within = timeouts.stop if own is None else own
        within = 0.0 if container == record.next_container else within  # a standby, in which nothing runs yet
        did_run |= await end_group(group, within, timeouts.killed)
        await run_blocking(partial(end_processes, state, group, 0.0, timeouts.killed))
        await run_blocking(partial(remove_leftovers, address, namespace, container, group))
    await run_blocking(lambda: unmount_all_below(store.propagated_mount(record.id)))
    return did_run


async def end_group(path: str, stop_timeout: float, within: float) -> bool:
    """End all processes of a control group: TERM, then KILL after ``stop_timeout`` seconds; whether there were any.

    Raises: Unavailable where one is still running ``within`` seconds after KILL.
    """
    left = await run_blocking(lambda: _pids(path))
    if not left:
        return False
    for number, bound in ((signals.SIGTERM, stop_timeout), (signals.SIGKILL, within)):
        signalled: set[int] = set()
        with anyio.move_on_after(bound):
            while left := await run_blocking(lambda: _pids(path)):
                _signal(path, number, left - signalled)
                signalled |= left
                await anyio.sleep(_POLL)
            return True
        log.info("%d processes of %s still run %g s after %s", len(left), path, bound, signals.Signals(number).name)
    raise errors.Unavailable(f"process {min(left)} is still running {within:g} s after SIGKILL")


def _signal(path: str, number: int, pids: set[int]) -> None:
    for directory in set(find_groups(path).values()) if pids else ():
        thaw(directory)  # no signal arrives before
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _pids(path: str) -> set[int]:
    """The processes in a group and in the groups below it."""
    return pids_in(find_groups(path).values())

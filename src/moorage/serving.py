"""The engine as a program: data directory, API, containerd, plugins, in this order; ended in reverse.

The API answers before containerd is there and before any plugin is started: a plugin may call it while it starts.
"""

import logging
import os
import signal as signals
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import TaskStatus
from msgspec import Struct, field

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.groups import background_tasks
from moorage._lib.notify import ServiceManager
from moorage._lib.threads import run_blocking
from moorage.api.metrics import serve_metrics
from moorage.api.server import serve_api
from moorage.containerd.supervisor import PrivateContainerd, supervise
from moorage.engine.engine import Engine
from moorage.engine.machinery import open_machinery
from moorage.engine.mounts import unmount_all_below
from moorage.engine.packages import Registries
from moorage.engine.remains import remove_group, remove_shim_directory
from moorage.engine.store import Choice, Store
from moorage.executor import PLUGIN_NAMESPACE
from moorage.host.beneath import remove_tree
from moorage.host.inheritance import make_directory, settle_process
from moorage.logs.keeping import end_keeper, open_log_keeper
from moorage.plugins import NO_CONFINEMENT, Confinement
from moorage.service import kept_informed, last_words
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("ServeOptions", "run_engine", "take_down")

log = logging.getLogger(__name__)

_SYSTEM_CONTAINERD = "/run/containerd/containerd.sock"
_RUNTIME_PARTS = ("p", "bundles", "runtime-root", "containerd", "keeper")


class ServeOptions(Struct, frozen=True):
    """Where an engine works."""

    root: Path = Path("/var/lib/moorage")
    exec_root: Path = Path("/run/moorage")
    socket: Path | None = None
    """Where the API listens; None for moorage.sock in ``exec_root``."""
    namespace: str = PLUGIN_NAMESPACE
    containerd: str | None = None
    """``private``, ``system`` or an address; None for what was chosen at the first start (private then)."""
    group: str | None = None
    """Whose members may use the API, besides root."""
    live_restore: bool = True
    """Whether plugins go on running when the engine ends, however it ends, and are taken over by the next one."""
    shim: Literal["each", "shared"] = "each"
    """A shim for each plugin, or one for all that are started from now on."""
    timeouts: Timeouts = DEFAULT
    registries: Registries = field(default_factory=Registries)
    confinement: Confinement = NO_CONFINEMENT
    """Defaults for all plugins; what is not said is as in ``BUILT_IN``."""
    metrics_address: str | None = None
    """HOST:PORT where GET /metrics is served, too; None for nowhere but on the API's socket."""

    @property
    def api_socket(self) -> Path:
        """Where the API listens, settled."""
        return self.socket or self.exec_root / "moorage.sock"


class _Ground(Struct, frozen=True):
    """What one engine stands on, settled."""

    store: Store
    choice: Choice
    options: ServeOptions

    @property
    def keeper(self) -> Path:
        """Where the log keeper works."""
        return self.options.exec_root / "keeper"

    @property
    def private(self) -> PrivateContainerd:
        return PrivateContainerd(
            self.options.root / "containerd", self.options.exec_root / "containerd", self.options.timeouts
        )


async def run_engine(options: ServeOptions) -> int:
    """Serve until a signal says so. Plugins go on running then; without live restore all ends, as in ``take_down``.

    The exit status for the shell.

    Raises: by kind, in words for the user: Denied without root, Conflict for a directory or a namespace that another
    engine works on, Invalid for a directory that cannot be used, Unsupported for the data of a newer version.
    """
    settle_process()
    failure: errors.MoorageError | None = None
    manager = ServiceManager()
    socket = options.api_socket
    async with _engine(options) as (engine, ground), _until_signal(options) as stop:

        async def keep_working() -> None:
            nonlocal failure
            try:
                await _keep_working(engine, ground)
            except errors.Conflict as error:
                failure = error
                stop.cancel()

        async with (
            background_tasks() as tasks,
            serve_api(engine, socket, options.group),
            serve_metrics(engine, options.metrics_address),
            kept_informed(manager, engine, options.timeouts),
        ):
            log.info("the API listens on %s", socket)
            tasks.start_soon(keep_working)
            await anyio.sleep_forever()
    if failure is not None:
        raise failure
    if not options.live_restore:
        await _end_everything(options)
    return 0


async def take_down(options: ServeOptions) -> int:
    """End the engine on these directories and all its plugins, at once, then the log keeper and our containerd.

    Only the data stays, and in it what users want enabled, for the next start.

    Raises: Unavailable naming what could not be ended.
    """
    if not (options.root / "engine.json").exists():
        await end_keeper(options.exec_root / "keeper", options.timeouts)
        await _remove_runtime(options.exec_root)
        return 0
    await _end_engine(Store(options.root), options.timeouts)
    await _end_everything(options)
    return 0


async def _end_everything(options: ServeOptions) -> None:
    """End all that an engine has left running, which has detached. Raises: Conflict where another one works on it."""
    async with _engine(options) as (engine, ground):
        with anyio.move_on_after(options.timeouts.containerd_start + options.timeouts.rpc) as patience:
            async with _machinery(engine, ground, start=False):
                patience.deadline = float("inf")
                problems = await engine.stop_all()
        if patience.cancelled_caught:
            raise errors.Unavailable("cannot stop the plugins: containerd does not come up")
        if problems:
            raise errors.Unavailable("; ".join(problems))
        await end_keeper(ground.keeper, options.timeouts)
        if ground.choice.containerd == "private":
            await ground.private.stop()
        await run_blocking(lambda: options.api_socket.unlink(missing_ok=True))  # of an engine that was killed
    await _remove_runtime(options.exec_root)


@asynccontextmanager
async def _engine(options: ServeOptions) -> AsyncIterator[tuple[Engine, _Ground]]:
    """An engine that has the data directory to itself, with its records read."""
    if os.geteuid() != 0:
        raise errors.Denied("cannot run plugins: mounts and control groups need root; run this with sudo")
    for directory in (options.root, options.exec_root):
        if not directory.is_absolute():
            raise errors.Invalid(f"cannot use {directory}: it must be an absolute path")
    store = Store(options.root)
    lock = await run_blocking(store.lock)
    try:
        choice = await run_blocking(lambda: store.settle(options.containerd, options.namespace))
        ground = _Ground(store, choice, options)
        _ = ground.private  # a path that is too long for its socket is refused now
        make_directory(options.exec_root, 0o711)
        if os.statvfs(options.root).f_flag & os.ST_NOEXEC:
            log.warning(
                "%s is on a file system that is mounted noexec; plugins run only where overlay works", options.root
            )
        async with background_tasks() as tasks:
            engine = Engine(
                store,
                options.exec_root,
                choice,
                tasks,
                options.timeouts,
                options.registries,
                live_restore=options.live_restore,
                shares_shim=options.shim == "shared",
                defaults=options.confinement,
            )
            await run_blocking(engine.load)
            yield engine, ground
    finally:
        os.close(lock)


async def _keep_working(engine: Engine, ground: _Ground) -> None:
    """Find containerd, waited for without bound, and run plugins on it. Raises: Conflict for one that is not ours."""
    timeouts = ground.options.timeouts
    for pause in pauses(timeouts.reconnect_first, timeouts.reconnect_limit):
        try:
            async with _machinery(engine, ground, start=True):
                await anyio.sleep_forever()
        except errors.Conflict:
            raise
        except errors.MoorageError as error:
            log.warning("cannot run plugins yet: %s", error)
            engine.without_machinery(str(error))
        await anyio.sleep(pause)


@asynccontextmanager
async def _machinery(engine: Engine, ground: _Ground, *, start: bool) -> AsyncIterator[None]:
    options, choice = ground.options, ground.choice
    async with (
        _containerd(ground) as address,
        open_log_keeper(ground.keeper, options.timeouts) as keeper,
        open_machinery(
            address, options.exec_root, choice.namespace, engine, keeper, options.timeouts, engine.meter.called
        ) as machinery,
        engine.working_on(machinery, address, start=start),
    ):
        yield


@asynccontextmanager
async def _containerd(ground: _Ground) -> AsyncIterator[str]:
    """The socket of the containerd that was chosen; a private one is started and kept running."""
    if ground.choice.containerd == "private":
        private = ground.private
        async with supervise(private.root, private.state, ground.options.timeouts) as containerd:
            yield containerd.address
    elif ground.choice.containerd == "system":
        yield _SYSTEM_CONTAINERD
    else:
        yield ground.choice.containerd.removeprefix("unix://")


@asynccontextmanager
async def _until_signal(options: ServeOptions) -> AsyncIterator[anyio.CancelScope]:
    """Cancel the block at a signal that asks to stop."""

    async def receive(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signals.SIGINT, signals.SIGTERM) as received:
            task_status.started()
            async for number in received:
                words = last_words(live_restore=options.live_restore)
                log.info("got %s, %s", signals.Signals(number).name, words)
                scope.cancel()

    async with background_tasks() as tasks:
        with anyio.CancelScope() as scope:
            await tasks.start(receive, scope)
            yield scope


async def _end_engine(store: Store, timeouts: Timeouts) -> None:
    """Let the engine that works on this directory detach, and wait for it. Raises: Unavailable."""
    with anyio.move_on_after(timeouts.cleanup):
        told = None
        while await run_blocking(store.is_locked):
            owner = store.find_owner()
            if owner is not None and owner != told:
                told = owner
                try:
                    os.kill(owner, signals.SIGTERM)
                except ProcessLookupError:
                    pass
            await anyio.sleep(0.02)
        return
    raise errors.Unavailable(f"cannot end the engine on {store.root}: process {store.find_owner()} does not end")


async def _remove_runtime(directory: Path) -> None:
    """Remove what is below the run-time directory, and it too where nothing else is in it."""

    def remove_rest() -> None:
        remove_group()
        remove_shim_directory()
        try:
            directory.rmdir()
        except OSError:
            pass  # not there, or something in it is not ours

    try:
        for part in _RUNTIME_PARTS:
            await run_blocking(lambda part=part: unmount_all_below(directory / part))  # type: ignore[misc]
            await remove_tree(directory / part)
        await run_blocking(remove_rest)
    except OSError as error:
        raise errors.Unavailable(f"cannot remove {error.filename or directory}: {error.strerror}") from error

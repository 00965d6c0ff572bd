"""Puts an engine together: the directories it has to itself, its records, and what its plugins run on."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from moorage import errors
from moorage._lib.groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.containerd.supervisor import PrivateContainerd, Report, supervise
from moorage.engine.engine import Engine
from moorage.engine.machinery import open_machinery
from moorage.engine.network_refresh import keep_current
from moorage.engine.packages import Registries
from moorage.engine.runtime_directory import NETWORK_PART, RuntimeDirectory
from moorage.engine.store import Choice, Store
from moorage.host.network_files import NetworkFiles
from moorage.host.process_identity import boot_id
from moorage.logs.keeping import open_log_keeper
from moorage.plugins import NO_CONFINEMENT, Confinement
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("Ground", "ServeOptions", "open_engine", "open_plugins")

log = logging.getLogger(__name__)

_SYSTEM_CONTAINERD = "/run/containerd/containerd.sock"


class ServeOptions(Struct, frozen=True):
    """Where an engine works."""

    root: Path = Path("/var/lib/moorage")
    exec_root: Path = Path("/run/moorage")
    socket: Path | None = None
    """Where the API listens; None for moorage.sock in ``exec_root``."""
    namespace: str | None = None
    """In containerd; None for what was chosen at the first start (plugins.moby then)."""
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


class Ground(Struct, frozen=True):
    """What one engine stands on, settled."""

    store: Store
    choice: Choice
    options: ServeOptions

    @property
    def runtime(self) -> RuntimeDirectory:
        """Its run-time directory."""
        return RuntimeDirectory(self.options.exec_root)

    @property
    def keeper(self) -> Path:
        """Where the log keeper works."""
        return self.options.exec_root / "keeper"

    @property
    def private(self) -> PrivateContainerd:
        return PrivateContainerd(
            self.options.root / "containerd", self.options.exec_root / "containerd", self.options.timeouts
        )


@asynccontextmanager
async def open_engine(options: ServeOptions) -> AsyncIterator[tuple[Engine, Ground]]:
    """An engine that has the data directory to itself, with its records read."""
    if os.geteuid() != 0:
        raise errors.Denied("cannot run plugins: mounts and control groups need root; run this with sudo")
    for directory in (options.root, options.exec_root):
        if not directory.is_absolute():
            raise errors.Invalid(f"cannot use {directory}: it must be an absolute path")
    store = Store(options.root)
    with ExitStack() as undo:
        undo.callback(os.close, await run_blocking(store.lock))
        choice = await run_blocking(lambda: store.settle(options.containerd, options.namespace))
        ground = Ground(store, choice, options)
        _ = ground.private  # a path that is too long for its socket is refused now
        await run_blocking(lambda: _check_old_exec_root(choice, options))
        socket = options.api_socket
        undo.callback(os.close, await run_blocking(lambda: ground.runtime.claim(choice.engine_id, store.root, socket)))
        undo.callback(_clear_unused, ground.runtime)
        await run_blocking(lambda: store.record_exec_root(options.exec_root))
        if os.statvfs(options.root).f_flag & os.ST_NOEXEC:
            log.warning(
                "%s is on a file system that is mounted noexec; plugins run only where overlay works", options.root
            )
        async with background_tasks() as tasks:
            engine = Engine(
                store,
                await run_blocking(lambda: options.exec_root.resolve()),  # runc takes no root behind a link
                choice,
                tasks,
                options.timeouts,
                options.registries,
                live_restore=options.live_restore,
                shares_shim=options.shim == "shared",
                defaults=options.confinement,
            )
            await run_blocking(engine.load)
            network = NetworkFiles(options.exec_root / NETWORK_PART)
            tasks.start_soon(keep_current, network, options.timeouts.network_files)
            yield engine, ground


@asynccontextmanager
async def open_plugins(engine: Engine, ground: Ground, *, start: bool) -> AsyncIterator[None]:
    options, choice = ground.options, ground.choice
    async with (
        _containerd(ground, engine.without_machinery) as address,
        open_log_keeper(ground.keeper, options.timeouts) as keeper,
        open_machinery(
            address,
            options.exec_root,
            choice.namespace,
            engine,
            keeper,
            options.timeouts,
            engine.ownership,
            engine.meter.called,
        ) as machinery,
        engine.working_on(machinery, address, start=start),
    ):
        yield


@asynccontextmanager
async def _containerd(ground: Ground, report: Report) -> AsyncIterator[str]:
    """The socket of the containerd that was chosen; a private one is started and kept running.

    ``report`` is called with why it does not start again, and with an empty text when it serves again.
    """
    if ground.choice.containerd == "private":
        private = ground.private
        async with supervise(private.root, private.state, ground.options.timeouts, report) as containerd:
            yield containerd.address
    elif ground.choice.containerd == "system":
        yield _SYSTEM_CONTAINERD
    else:
        yield ground.choice.containerd.removeprefix("unix://")


def _clear_unused(runtime: RuntimeDirectory) -> None:
    """Remove a run-time directory from which nothing runs: its engine was refused, or has started nothing."""
    if not runtime.has_leftovers():
        runtime.clear()


def _check_old_exec_root(choice: Choice, options: ServeOptions) -> None:
    """Raises: Conflict where plugins of this engine may run from another run-time directory than the one given."""
    if not choice.exec_root or Path(choice.exec_root) == options.exec_root:
        return
    before = RuntimeDirectory(Path(choice.exec_root))
    owner = before.find_owner()
    is_ours = owner is not None and owner.engine_id == choice.engine_id and owner.boot_id == boot_id()
    if is_ours and before.has_leftovers():
        raise errors.Conflict(
            f"cannot use {options.exec_root} for run-time files: plugins of {options.root} may run from "
            f"{choice.exec_root}; leave --exec-root out, or stop them first: moorage down --root {options.root}"
        )

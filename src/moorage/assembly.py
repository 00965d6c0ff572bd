"""Puts an engine together: the directories it has to itself, its records, and what its plugins run on."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from moorage import errors
from moorage._lib.task_groups import background_tasks
from moorage._lib.threads import run_blocking
from moorage.containerd.supervisor import PrivateContainerd, Report, supervise
from moorage.engine.consumers.podman import PODMAN_CONFIG
from moorage.engine.consumers.publisher import PublishPaths
from moorage.engine.engine import Engine
from moorage.engine.installation import Registries
from moorage.engine.runtime import open_runtime
from moorage.engine.store import Store
from moorage.engine.values import PUBLISH_DIRECTORY, EngineIdentity
from moorage.host.proc import boot_id
from moorage.logs.keeper_client import open_keeper_client
from moorage.oci_runtime.choice import AUTO, OciRuntime, check_runtime_name, choose_runtime
from moorage.oci_runtime.trial import clear_trial
from moorage.plugins import NO_CONFINEMENT, Confinement
from moorage.runs.host_security import HostSecurity
from moorage.runs.network_files import NETWORK_PART, NetworkFiles, refresh_periodically
from moorage.runtime_directory import RuntimeDirectory
from moorage.systemd.cgroup_driver import RequestedDriver, choose_driver
from moorage.systemd.scopes import containerd_scope
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("EngineSetup", "ServeOptions", "lock_data_directory", "open_engine", "open_plugins")

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
    """Whether plugins continue to run when the engine exits, however it exits, and are taken over by the next one."""
    shim: Literal["each", "shared"] = "each"
    """A shim for each plugin, or one for all that are started from now on."""
    cgroup_driver: RequestedDriver = "auto"
    """Who creates the control groups of runs that begin from now on; ``auto`` is systemd where that is possible."""
    runtime: str = AUTO
    """For plugins that are started from now on: ``auto``, ``runc``, ``crun`` or an absolute path."""
    timeouts: Timeouts = DEFAULT
    registries: Registries = field(default_factory=Registries)
    confinement: Confinement = NO_CONFINEMENT
    """Defaults for all plugins; what is not said is as in ``BUILT_IN``."""
    publish_directory: Path = PUBLISH_DIRECTORY
    """Where plugins are published: a dockerd looks for sockets in the default."""
    podman_config: Path = PODMAN_CONFIG
    """The file that makes podman know published volume drivers."""
    metrics_address: str | None = None
    """HOST:PORT where GET /metrics is served, too; None for nowhere but on the API's socket."""
    ui: str = ""
    """HOST:PORT of a page in the browser; empty for none."""

    @property
    def api_socket(self) -> Path:
        """Where the API listens, settled."""
        return self.socket or self.exec_root / "moorage.sock"


class EngineSetup(Struct, frozen=True):
    """The resolved directories and options of one engine."""

    store: Store
    choice: EngineIdentity
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
        """Its own containerd, which ``open_plugins`` starts."""
        return PrivateContainerd(
            self.options.root / "containerd", self.options.exec_root / "containerd", self.options.timeouts
        )


@asynccontextmanager
async def lock_data_directory(options: ServeOptions, *, serves: bool) -> AsyncIterator[Store]:
    """The data directory, which no other engine can open until the block ends.

    ``serves``: whether this process is an engine, which exits when it is signalled, and not one that stops what runs.

    Raises: by kind: Denied without root, Invalid for a directory that cannot be used, Conflict for one that another
    engine works on.
    """
    if os.geteuid() != 0:
        raise errors.Denied("cannot run plugins: mounts and control groups need root; run this with sudo")
    for directory in (options.root, options.exec_root, options.publish_directory):
        if not directory.is_absolute():
            raise errors.Invalid(f"cannot use {directory}: it must be an absolute path")
    check_runtime_name(options.runtime)
    store = Store(options.root)
    lock = await run_blocking(lambda: store.lock(os.getpid() if serves else None))
    try:
        yield store
    finally:
        os.close(lock)


@asynccontextmanager
async def open_engine(store: Store, options: ServeOptions) -> AsyncIterator[tuple[Engine, EngineSetup]]:
    """An engine on a data directory that the caller has locked, with its records read."""
    with ExitStack() as undo:
        choice = await run_blocking(lambda: store.settle(options.containerd, options.namespace))
        ground = EngineSetup(store, choice, options)
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
                cgroup_driver=await run_blocking(lambda: choose_driver(options.cgroup_driver)),
                publish_paths=PublishPaths(options.publish_directory, options.podman_config),
            )
            await run_blocking(engine.load)
            await run_blocking(engine.publisher.prepare)
            tasks.start_soon(engine.publisher.run)
            await run_blocking(HostSecurity().refresh_apparmor_profiles)
            network = NetworkFiles(options.exec_root / NETWORK_PART)
            tasks.start_soon(refresh_periodically, network, options.timeouts.network_files)
            yield engine, ground


@asynccontextmanager
async def open_plugins(engine: Engine, ground: EngineSetup, *, start: bool) -> AsyncIterator[None]:
    """Plugins on the containerd that was chosen, until the block ends.

    Without ``start`` nothing is started, also no plugin that should run, and a runtime that is missing is no obstacle.

    Raises: Unsupported where the runtime, or a private containerd, is not on this machine; Unavailable.
    """
    options, choice = ground.options, ground.choice
    oci_runtime, systemd_cgroup = OciRuntime(), engine.info().cgroup_driver == "systemd"
    await run_blocking(lambda: clear_trial(options.exec_root))  # of an engine that was killed
    if start:
        oci_runtime = await run_blocking(
            lambda: choose_runtime(options.runtime, options.exec_root, systemd_cgroup=systemd_cgroup)
        )
        log.info("new containers are run by %s: %s", oci_runtime.version or oci_runtime.command, oci_runtime.reason)
    async with (
        _containerd(ground, engine.set_problem) as address,
        open_keeper_client(ground.keeper, options.timeouts) as keeper,
        open_runtime(
            address,
            options.exec_root,
            choice.namespace,
            engine,
            keeper,
            options.timeouts,
            engine.ownership,
            oci_runtime,
            engine.meter.called,
            systemd_cgroup=systemd_cgroup,
        ) as runtime,
        engine.run_on(runtime, address, start=start),
    ):
        yield


@asynccontextmanager
async def _containerd(ground: EngineSetup, report: Report) -> AsyncIterator[str]:
    """The socket of the containerd that was chosen; a private one is started, and started again when it exits.

    ``report`` is called with why it does not start again, and with an empty text when it serves again.
    """
    if ground.choice.containerd == "private":
        private, options = ground.private, ground.options
        scope = containerd_scope(options.root)
        async with supervise(private.root, private.state, options.timeouts, report, scope=scope) as containerd:
            yield containerd.address
    elif ground.choice.containerd == "system":
        yield _SYSTEM_CONTAINERD
    else:
        yield ground.choice.containerd.removeprefix("unix://")


def _clear_unused(runtime: RuntimeDirectory) -> None:
    """Remove a run-time directory from which nothing runs: its engine was refused, or has started nothing."""
    if not runtime.has_leftovers():
        runtime.clear()


def _check_old_exec_root(choice: EngineIdentity, options: ServeOptions) -> None:
    """Raises: Conflict where plugins of this engine may run from another run-time directory than the one given."""
    if not choice.exec_root or Path(choice.exec_root) == options.exec_root:
        return
    before = RuntimeDirectory(Path(choice.exec_root))
    owner = before.find_owner()
    is_own = owner is not None and owner.engine_id == choice.engine_id and owner.boot_id == boot_id()
    if is_own and before.has_leftovers():
        raise errors.Conflict(
            f"cannot use {options.exec_root} for run-time files: plugins of {options.root} may run from "
            f"{choice.exec_root}; leave --exec-root out, or stop them first: moorage down --root {options.root}"
        )

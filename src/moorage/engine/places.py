"""Where a plugin's parts are on this host, made before a run and removed after the last one. Everything here blocks.

Below the run-time directory a plugin has ``p/<first 12 of its id>``: ``root`` (its mounted root file system, from its
enable to its disable, the same for every run) and ``s`` (the directory of its socket, a new one for every run). The
propagated mount is in the data directory, a shared mount of its own.

Only root gets below ``p``, and what a plugin can write is mounted nosuid and nodev in the host's view. A bind takes
over such flags, so while a run is created its runtime binds from ``r`` and ``v``, views without them, which are
unmounted right after it. Source: docs/adr/0032-what-a-plugin-writes.md.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from moorage import errors
from moorage._lib.bounded import call_bounded
from moorage.containerd.types import Mount, Spec
from moorage.engine.devices import is_in_user_namespace, locked_flags, resolve_devices
from moorage.engine.host_security import HostSecurity
from moorage.engine.mapped_root import (
    IdMarks,
    make_mapped_view,
    mount_mapped_root,
    remove_mapped_view,
    settle_owners,
)
from moorage.engine.mounts import (
    bind_shared,
    close_view,
    drop_dead_mounts,
    is_mount_point,
    mount_all,
    open_view,
    restrict,
    unmount_all_below,
)
from moorage.engine.pins import Check, pin_sources, release_pins
from moorage.engine.runtime_directory import NETWORK_PART
from moorage.host.beneath import Directory, remove_tree_now
from moorage.host.network_files import NetworkFiles
from moorage.host.sockets import PluginSocket
from moorage.plugins import (
    BUILT_IN,
    Config,
    Confinement,
    Places,
    Settings,
    cgroup_path,
    confined_spec,
    host_path,
    needs,
    requested_capabilities,
    socket_path,
)

__all__ = ("SHORT_ID", "PluginPlaces", "Prepared", "sweep")

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SHORT_ID = 12
"""As many digits of an id as its run-time directory has."""


_SHARED = {"io.containerd.runc.v2.group": "moorage"}
"""Containers of a namespace that say the same have one shim. Source: containerd's runc shim, ``StartShim``."""


_RESPONSE = 5.0
"""Seconds until the file systems of mount sources and devices must have answered."""


class Prepared(Struct, frozen=True):
    """What was found below the propagated mount when a run was prepared."""

    dropped: tuple[Path, ...] = ()
    """Mount points that were unmounted: their server is gone."""
    hung: tuple[Path, ...] = ()
    """Mount points that stay and do not answer."""


class PluginPlaces(Struct, frozen=True):
    """The directories of one plugin."""

    id: str
    runtime: Path
    propagated: Path
    shares_shim: bool = False
    """Whether its containers are given to the shim of all plugins that share one."""

    @property
    def root(self) -> Path:
        """Its root file system, mounted from its first run after an enable until its disable."""
        return self.runtime / "root"

    @property
    def sockets(self) -> Path:
        """What the plugin sees as /run/docker/plugins."""
        return self.runtime / "s"

    @property
    def root_view(self) -> Path:
        """What the runtime takes for the root, while a run is created."""
        return self.runtime / "r"

    @property
    def propagated_view(self) -> Path:
        """What the runtime takes for the propagated mount, while a run is created."""
        return self.runtime / "v"

    @property
    def pins(self) -> Path:
        """Where sources of its mounts are pinned while a run is created, under a policy."""
        return self.runtime / "m"

    @property
    def mapped_view(self) -> Path:
        """``root_view`` where root inside is nobody on the host, who can get into no directory of root's."""
        return self.runtime.parent.parent / "u" / self.runtime.name / "r"

    @property
    def cgroup(self) -> str:
        """The control group of its processes, the same for every run."""
        return cgroup_path(self.id)

    def socket(self, config: Config) -> PluginSocket:
        """Its socket. Raises: Invalid for a path that is too long."""
        socket_path(config, self._places(config))
        return PluginSocket(self.runtime, f"{self.sockets.name}/{config.interface.socket}")

    def host_path(self, config: Config, inside: str) -> str:
        """The host's path of what the plugin calls ``inside``, there or not."""
        return host_path(config, self._places(config), inside)

    def spec(self, config: Config, settings: Settings, confinement: Confinement = BUILT_IN, id_base: int = 0) -> Spec:
        """The OCI runtime spec for a run now under a resolved confinement, with the devices that are there now.

        Raises: Invalid naming the entry of the config that this host cannot meet; Unavailable naming one that hangs.
        """
        asked = needs(settings)
        for source in asked.sources:
            if not self._bounded(lambda path=source.path: os.path.exists(path), f"check {source.path}, {source.entry}"):  # type: ignore[misc]
                raise source.missing()
        paths = [device.path for device in asked.devices]
        devices = self._bounded(lambda: resolve_devices(paths), f"check the devices {', '.join(paths)}")
        nested = is_in_user_namespace()
        network = NetworkFiles(self.runtime.parent.parent / NETWORK_PART)
        if config.network.is_host:
            for problem in network.refresh():
                log.warning("%s", problem)
        sources = [*(each.path for each in asked.sources), network.hosts, network.resolv_conf]
        places = Places(
            rootfs=str(self.mapped_view if id_base else self.root_view),
            socket_directory=str(self.sockets),
            cgroup_path=self.cgroup,
            propagated_mount=str(self.propagated_view) if config.propagated_mount else None,
            hosts=network.hosts,
            resolv_conf=network.resolv_conf,
            devices=devices,
            in_user_namespace=nested,
            locked_flags=locked_flags(each for each in sources if os.path.exists(each)) if nested else {},
        )
        host = HostSecurity().features(requested_capabilities(config), id_base=id_base)
        spec = confined_spec(config, settings, places, confinement, host)
        return {**spec, "annotations": _SHARED} if self.shares_shim else spec

    def pin_sources(self, settings: Settings, check: Check) -> Settings:
        """The same settings with sources that cannot be exchanged any more; see ``pins``."""
        self._make_runtime().close()
        return pin_sources(settings, self.pins, check)

    def release_pins(self) -> None:
        """What was pinned is bound, or not needed any more. May be repeated. Raises: Unavailable."""
        release_pins(self.pins)

    def prepare(self, config: Config, mounts: Sequence[Mount], id_base: int = 0) -> Prepared:
        """Make everything that a run needs; ``created`` follows when its container is there. May be repeated.

        ``id_base`` is the first host id of its user namespace; 0 for none.

        Raises: Unsupported for a root that cannot be mounted; Unavailable naming the directory that cannot be made.
        """
        prepared = Prepared()
        try:
            with self._make_runtime() as runtime:
                self.created()  # views of a run whose creation was cut off
                for name in (self.root.name, self.root_view.name, self.propagated_view.name):
                    _ensure(runtime, name, mode=0o700)
                self._mount_root(runtime, mounts, id_base)
                open_view(self.root, make_mapped_view(self.mapped_view, id_base) if id_base else self.root_view)
                self._fresh_sockets(runtime, config, id_base)
                if config.propagated_mount:
                    prepared = self._prepare_propagated()
        except OSError as error:
            raise errors.Unavailable(f"cannot prepare {error.filename or self.runtime}: {error.strerror}") from error
        return prepared

    def created(self) -> None:
        """End the views that the runtime has bound from. May be repeated. Raises: Unavailable naming what stays."""
        try:
            for view in (self.root_view, self.propagated_view):
                close_view(view)
            remove_mapped_view(self.mapped_view)
        except OSError as error:
            raise errors.Unavailable(f"cannot unmount {error.filename}: {error.strerror}") from error

    def protect(self) -> None:
        """Give what an earlier engine, perhaps of an older version, has made the modes and flags of ``prepare``.

        Raises: Unavailable naming what stays open.
        """
        self.created()
        self.release_pins()
        try:
            self._make_runtime().close()
            for target in (self.root, self.propagated):
                if is_mount_point(target):
                    restrict(target)
        except OSError as error:
            raise errors.Unavailable(f"cannot protect {error.filename}: {error.strerror}") from error

    def clear(self) -> None:
        """Unmount everything of the plugin and remove its run-time directory. Its propagated files stay.

        Raises: Unavailable naming what stays.
        """
        try:
            for directory in (self.runtime, self.propagated, self.mapped_view.parent):
                unmount_all_below(directory)
            for directory in (self.runtime, self.mapped_view.parent):
                remove_tree_now(directory)
        except OSError as error:
            raise errors.Unavailable(f"cannot remove {error.filename or self.runtime}: {error.strerror}") from error

    def erase(self) -> None:
        """Remove the propagated files too. Raises: Unavailable naming what stays."""
        self.clear()
        try:
            remove_tree_now(self.propagated)
        except OSError as error:
            raise errors.Unavailable(f"cannot remove {error.filename or self.propagated}: {error.strerror}") from error

    def _places(self, config: Config) -> Places:
        propagated = str(self.propagated) if config.propagated_mount else None
        return Places(str(self.root), str(self.sockets), self.cgroup, propagated)

    def _bounded(self, function: Callable[[], Result], doing: str) -> Result:
        return call_bounded(function, _RESPONSE, doing, owner=self.id)

    def _make_runtime(self) -> Directory:
        """The run-time directory, which only root can enter, as is the one of all plugins above it."""
        base = self.runtime.parent
        with (
            Directory.open(base.parent, may_be_link=True) as top,
            top.make_directory(base.name, mode=0o700, exist_ok=True) as plugins,
        ):
            return plugins.make_directory(self.runtime.name, mode=0o700, exist_ok=True)

    def _mount_root(self, runtime: Directory, mounts: Sequence[Mount], id_base: int) -> None:
        """Mount the root where it is not; one that was mounted for another user namespace is mounted anew."""
        marks = IdMarks(runtime)
        if is_mount_point(self.root):
            if marks.id_base == id_base:
                return
            unmount_all_below(self.root)
        marks.clear()
        settle_owners(mounts, id_base)
        if id_base:
            mount_mapped_root(mounts, self.root, id_base, self.runtime / "l")
            marks.set(id_base)
        else:
            mount_all(mounts, self.root)
        restrict(self.root)

    def _fresh_sockets(self, runtime: Directory, config: Config, id_base: int) -> None:
        """A new, empty directory that the plugin's user can write to: many plugins bind without unlinking first."""
        unmount_all_below(self.sockets)
        runtime.remove(self.sockets.name)
        with ExitStack() as opened:
            directory = runtime
            for name in (self.sockets.name, *Path(config.interface.socket).parent.parts):
                uid, gid = config.user.uid + id_base, config.user.gid + id_base
                made = directory.make_directory(name, mode=0o700, uid=uid, gid=gid)
                directory = opened.enter_context(made)

    def _prepare_propagated(self) -> Prepared:
        with Directory.open(self.propagated.parent) as parent:
            _ensure(parent, self.propagated.name, mode=0o755)
        dropped, hung = drop_dead_mounts(self.propagated)
        if not is_mount_point(self.propagated):
            bind_shared(self.propagated)
        restrict(self.propagated)
        open_view(self.propagated, self.propagated_view, recursive=True)
        return Prepared(tuple(dropped), tuple(hung))


def _ensure(parent: Directory, name: str, *, mode: int) -> None:
    """Make a directory where there is none; one that is there, perhaps with something mounted on it, stays as it is."""
    try:
        parent.make_directory(name, mode=mode).close()
    except FileExistsError:
        pass


def sweep(runtime: Path, keep: frozenset[str]) -> None:
    """Remove the run-time directories of plugins that are not to be kept, mounts first.

    Raises: Unavailable naming what stays.
    """
    base = runtime / "p"
    for directory in sorted(base.iterdir()) if base.is_dir() else ():
        if directory.name not in keep:
            PluginPlaces("", directory, directory / "none").clear()

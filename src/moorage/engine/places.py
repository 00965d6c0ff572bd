"""Where a plugin's parts are on this host, made before a run and removed after the last one. Everything here blocks.

Below the run-time directory a plugin has ``p/<first 12 of its id>``: ``root`` (its mounted root file system, from its
enable to its disable, the same for every run) and ``s`` (the directory of its socket). The propagated mount is in the
data directory, a shared mount of its own.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage._lib.threads import remove_tree_now
from moorage.containerd.types import Mount, Spec
from moorage.engine.devices import is_in_user_namespace, locked_flags, resolve_devices
from moorage.engine.mounts import bind_shared, drop_dead_mounts, is_mount_point, mount_all, unmount_all_below
from moorage.plugins import Config, Places, Settings, build_spec, cgroup_path, host_path, needs, socket_path

__all__ = ("SHORT_ID", "PluginPlaces", "sweep")

SHORT_ID = 12
"""As many digits of an id as its run-time directory has."""


_SHARED = {"io.containerd.runc.v2.group": "moorage"}
"""Containers of a namespace that say the same have one shim. Source: containerd's runc shim, ``StartShim``."""


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
    def cgroup(self) -> str:
        """The control group of its processes, the same for every run."""
        return cgroup_path(self.id)

    def socket(self, config: Config) -> str:
        """The host's path of its socket. Raises: Invalid for one that is too long."""
        return socket_path(config, self._places(config))

    def host_path(self, config: Config, inside: str) -> str:
        """The host's path of what the plugin calls ``inside``, there or not."""
        return host_path(config, self._places(config), inside)

    def spec(self, config: Config, settings: Settings) -> Spec:
        """The OCI runtime spec for a run now, with the devices that are there now.

        Raises: Invalid naming the entry of the config that this host cannot meet.
        """
        asked = needs(settings)
        for source in asked.sources:
            if not os.path.exists(source.path):
                raise source.missing()
        devices = resolve_devices(device.path for device in asked.devices)
        nested = is_in_user_namespace()
        sources = [*(each.path for each in asked.sources), *(each for each in ("/etc/hosts", "/etc/resolv.conf"))]
        places = Places(
            rootfs=str(self.root),
            socket_directory=str(self.sockets),
            cgroup_path=self.cgroup,
            propagated_mount=str(self.propagated) if config.propagated_mount else None,
            hosts=_if_there("/etc/hosts"),
            resolv_conf=_if_there("/etc/resolv.conf"),
            devices=devices,
            in_user_namespace=nested,
            locked_flags=locked_flags(each for each in sources if os.path.exists(each)) if nested else {},
        )
        spec = build_spec(config, settings, places)
        return {**spec, "annotations": _SHARED} if self.shares_shim else spec

    def prepare(self, config: Config, mounts: Sequence[Mount]) -> list[Path]:
        """Make everything that a run needs; the dead mounts that were dropped on the way. May be repeated.

        Raises: Unsupported, Unavailable naming the directory.
        """
        dropped: list[Path] = []
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not is_mount_point(self.root):
                mount_all(mounts, self.root)
            self._fresh_sockets(config)
            if config.propagated_mount:
                self.propagated.mkdir(mode=0o755, exist_ok=True)
                dropped = drop_dead_mounts(self.propagated)
                if not is_mount_point(self.propagated):
                    bind_shared(self.propagated)
        except OSError as error:
            raise errors.Unavailable(f"cannot prepare {error.filename or self.runtime}: {error.strerror}") from error
        return dropped

    def clear(self) -> None:
        """Unmount everything of the plugin and remove its run-time directory. Its propagated files stay.

        Raises: Unavailable naming what stays.
        """
        try:
            for directory in (self.runtime, self.propagated):
                unmount_all_below(directory)
            remove_tree_now(self.runtime)
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

    def _fresh_sockets(self, config: Config) -> None:
        """An empty directory that the plugin's user can write to: many plugins bind without unlinking first."""
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        for entry in self.sockets.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                remove_tree_now(entry)
            else:
                entry.unlink()
        directory = self.sockets / Path(config.interface.socket).parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in (self.sockets, directory):
            os.chown(each, config.user.uid, config.user.gid)


def sweep(runtime: Path, keep: frozenset[str]) -> None:
    """Remove the run-time directories of plugins that are not to be kept, mounts first.

    Raises: Unavailable naming what stays.
    """
    base = runtime / "p"
    for directory in sorted(base.iterdir()) if base.is_dir() else ():
        if directory.name not in keep:
            PluginPlaces("", directory, directory / "none").clear()


def _if_there(path: str) -> str | None:
    return path if os.path.exists(path) else None

"""The plan of a run: what a container gets on this host, for ``moorage run`` and for an engine alike.

``build_plan`` alone turns a config with its settings into the OCI runtime spec of a run. It only looks
at the host; ``preparation`` then makes what the plan names.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from moorage._lib.time_limit import call_bounded
from moorage.containerd.types import Spec
from moorage.host.cgroups import CGROUP_ROOT, CgroupLayout, cgroup_layout
from moorage.host.proc import is_in_user_namespace
from moorage.host.sockets import PluginSocket
from moorage.plugins import (
    BUILT_IN,
    CgroupDriver,
    Config,
    Confinement,
    HostPaths,
    Settings,
    cgroup_path,
    confined_spec,
    needs,
)
from moorage.plugins.apparmor import profile_for
from moorage.runs.devices import locked_flags, resolve_devices
from moorage.runs.directories import PluginDirectories
from moorage.runs.host_security import HostSecurity
from moorage.runs.network_files import NetworkFiles
from moorage.timeouts import DEFAULT

__all__ = ("LOG_DIRECTORY", "PlanOptions", "RunPlan", "build_plan")

Result = TypeVar("Result")

LOG_DIRECTORY = "/run/docker/logging"
"""Where a dockerd makes the FIFOs of a log driver that it finds by a published socket: on the host. It sends that path.
Source: moby daemon/logger/adapter.go, plugin_unix.go."""

_SHARED_SHIM = {"io.containerd.runc.v2.group": "moorage"}
"""Containers of a namespace with the same value have one shim. Source: containerd's runc shim, ``StartShim``."""

_SCOPE = {
    "run.oci.systemd.subgroup": "",
    "org.systemd.property.CollectMode": "'inactive-or-failed'",
}
"""With systemd: crun creates no group below the scope, as runc does, and a scope that failed is not retained, because
nothing removes it later. Source: crun(1); runc docs/systemd.md."""

_RESPONSE = DEFAULT.path_answer
"""Seconds until the file systems of mount sources and devices must have answered."""


class PlanOptions(Struct, frozen=True, kw_only=True):
    """What an engine may set for a run beyond what ``moorage run`` does, whose options are the defaults here."""

    confinement: Confinement = BUILT_IN
    """A resolved one: every field has a value."""
    id_base: int = 0
    """First host id of its user namespace; 0 for none."""
    shares_shim: bool = False
    """Whether its container is given to the shim that all such plugins share."""
    cgroup_driver: CgroupDriver = "cgroupfs"
    """Who creates its control group."""
    container: str = ""
    """Id of its container, after which its control group is named; empty for the plugin's own id."""
    shows_log_directory: bool = False
    """Whether it sees the host's ``LOG_DIRECTORY``."""
    is_standby: bool = False
    """Whether its container is created while an earlier run has the socket directory."""


DEFAULT_OPTIONS = PlanOptions()


class RunPlan(Struct, frozen=True):
    """A plugin with everything that its container gets on this host."""

    config: Config
    directories: PluginDirectories
    socket: PluginSocket
    spec: Spec
    """The OCI runtime spec."""
    id_base: int = 0
    """First host id of its user namespace; 0 for none."""
    shows_log_directory: bool = False
    """Whether it sees the host's ``LOG_DIRECTORY``."""
    is_standby: bool = False
    """Whether its container is created while the run before it uses the directories."""

    @property
    def socket_directory(self) -> Path:
        """Where the directory of its socket is made; that of a standby is renamed before its start."""
        return _socket_directory(self.directories, is_standby=self.is_standby)

    @property
    def network_files(self) -> NetworkFiles | None:
        """What it sees instead of the host's files; None for a plugin that is not on the host's network."""
        return self.directories.network_files if self.config.network.is_host else None

    @property
    def propagated_mount(self) -> Path | None:
        """Its propagated mount on the host; None where its config has none."""
        return self.directories.propagated_mount if self.config.propagated_mount else None


def build_plan(
    directories: PluginDirectories, config: Config, settings: Settings, options: PlanOptions = DEFAULT_OPTIONS
) -> RunPlan:
    """The plan for a run now, with the devices and mount sources that this host has now. Makes nothing; blocks.

    ``moorage run`` and an engine both call this. What differs between them, on purpose, is in the arguments, and in
    how ``prepare_run`` is called:

    - ``directories``: those of ``moorage run`` live as long as the command.
    - ``settings``: under a policy an engine passes mount sources that it has pinned.
    - ``options``: an engine passes the confinement of the plugin, a user namespace, and the shared shim.
    - The root: an engine mounts a snapshot of containerd's, ``moorage run`` an overlay over the plugin's directory.

    Raises: Invalid naming the entry of the config that this host cannot meet, or a socket path that is too long.
    Raises: Unavailable naming a mount source or a device whose file system does not answer.
    """
    socket = directories.socket(config)
    needed = needs(settings)
    for source in needed.sources:
        if not _bounded(partial(os.path.exists, source.path), f"check {source.path}, {source.entry}", directories):
            raise source.missing()
    paths = [device.path for device in needed.devices]
    devices = _bounded(lambda: resolve_devices(paths), f"check the devices {', '.join(paths)}", directories)
    is_nested = is_in_user_namespace()
    network = directories.network_files
    sources = [*(each.path for each in needed.sources), network.hosts, network.resolv_conf, str(CGROUP_ROOT)]
    host_paths = HostPaths(
        rootfs=str(directories.idmapped_view if options.id_base else directories.root_view),
        socket_directory=str(_socket_directory(directories, is_standby=options.is_standby)),
        cgroup_path=cgroup_path(options.container or directories.id, options.cgroup_driver),
        propagated_mount=str(directories.propagated_view) if config.propagated_mount else None,
        hosts=network.hosts,
        resolv_conf=network.resolv_conf,
        devices=devices,
        in_user_namespace=is_nested,
        locked_flags=_locked_flags(sources) if is_nested else {},
        has_cgroup_v2=cgroup_layout().layout is CgroupLayout.V2,
    )
    features = HostSecurity().features(profile_for(config, settings), id_base=options.id_base)
    spec = confined_spec(config, settings, host_paths, options.confinement, features)
    made = _for_options(spec, options)
    return RunPlan(config, directories, socket, made, options.id_base, options.shows_log_directory, options.is_standby)


def _socket_directory(directories: PluginDirectories, *, is_standby: bool) -> Path:
    return directories.next_socket_directory if is_standby else directories.socket_directory


def _for_options(spec: Spec, options: PlanOptions) -> Spec:
    """The spec with the host's log directory, and with what the shim and the runtime's systemd driver read from it."""
    if options.shows_log_directory:
        mount = {"destination": LOG_DIRECTORY, "type": "bind", "source": LOG_DIRECTORY, "options": ["rbind", "rw"]}
        spec = {**spec, "mounts": [*spec["mounts"], mount]}
    annotations = dict(_SHARED_SHIM) if options.shares_shim else {}
    if options.cgroup_driver == "systemd":
        annotations |= _SCOPE
        resources = spec["linux"]["resources"]
        # a scope without a limit of its own has systemd's default
        spec = {**spec, "linux": {**spec["linux"], "resources": {"pids": {"limit": -1}, **resources}}}
    return {**spec, "annotations": annotations} if annotations else spec


def _locked_flags(sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The flags of each source; of one that is made later, those of the directory that it will be in."""
    nearest = {each: _nearest_existing(each) for each in sources}
    flags = locked_flags(nearest.values())
    return {source: flags[found] for source, found in nearest.items()}


def _nearest_existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _bounded(function: Callable[[], Result], action: str, directories: PluginDirectories) -> Result:
    return call_bounded(function, _RESPONSE, action, owner=directories.id)

"""Where the files of one plugin are on this host: path arithmetic only, nothing is looked up or made.

Below the run-time directory (``--exec-root``) a plugin has ``p/<first 12 digits of its id>``:

    root    its mounted root file system, from its enable to its disable, the same for every run
    s       the directory of its socket, a new one for every run
    n       that of the standby of its next run, which becomes s when it is started
    started a file that says since when a run that was a standby runs
    r, v    views of its root and of its propagated mount, only while a container is created: see ``preparation``
    m       pinned sources of its mounts, only while a container is created: see ``pins``
    ready   a file that says since when which run is ready
"""

from pathlib import Path

from msgspec import Struct

from moorage.host.sockets import PluginSocket
from moorage.plugins import Config, HostPaths, cgroup_path, socket_path
from moorage.runs.network_files import NETWORK_PART, NetworkFiles

__all__ = ("SHORT_ID", "PluginDirectories")

SHORT_ID = 12
"""Number of digits of an id in the name of its run-time directory."""


class PluginDirectories(Struct, frozen=True):
    """The directories of one plugin. All paths are absolute and the host's."""

    id: str
    exec_root: Path
    """Run-time directory of all plugins: short, because paths of unix sockets are."""
    propagated_mount: Path
    """Its files on the host that its propagated mount shows."""

    @property
    def runtime(self) -> Path:
        """Its run-time directory, which only root can enter."""
        return self.exec_root / "p" / self.id[:SHORT_ID]

    @property
    def root(self) -> Path:
        """Its root file system, mounted from its first run after an enable until its disable."""
        return self.runtime / "root"

    @property
    def socket_directory(self) -> Path:
        """What the plugin sees as /run/docker/plugins."""
        return self.runtime / "s"

    @property
    def next_socket_directory(self) -> Path:
        """What the standby of its next run has as /run/docker/plugins, before it becomes ``socket_directory``."""
        return self.runtime / "n"

    @property
    def start_record(self) -> Path:
        """The file that says since when a run that was a standby runs: its process is older."""
        return self.runtime / "started"

    @property
    def root_view(self) -> Path:
        """The root for the runtime, while a container is created."""
        return self.runtime / "r"

    @property
    def propagated_view(self) -> Path:
        """The propagated mount for the runtime, while a container is created."""
        return self.runtime / "v"

    @property
    def pins(self) -> Path:
        """Where sources of its mounts are pinned while a container is created, under a policy."""
        return self.runtime / "m"

    @property
    def ready_record(self) -> Path:
        """The file that says since when which run is ready."""
        return self.runtime / "ready"

    @property
    def idmapped_view(self) -> Path:
        """``root_view`` for a plugin with a user namespace, whose root can enter no directory of the host's root."""
        return self.exec_root / "u" / self.runtime.name / "r"

    @property
    def network_files(self) -> NetworkFiles:
        """The copies of /etc/hosts and /etc/resolv.conf that all plugins below this run-time directory share."""
        return NetworkFiles(self.exec_root / NETWORK_PART)

    def socket(self, config: Config) -> PluginSocket:
        """Its socket.

        Raises: Invalid for a path that is longer than a unix socket's may be.
        """
        socket_path(config, self._paths(config))
        return PluginSocket(self.runtime, f"{self.socket_directory.name}/{config.interface.socket}")

    def _paths(self, config: Config) -> HostPaths:
        propagated = str(self.propagated_mount) if config.propagated_mount else None
        return HostPaths(str(self.root), str(self.socket_directory), cgroup_path(self.id), propagated)

"""What the plugin proxy must know of a plugin, and where on this host what it reports is. Pure."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from moorage.engine.consumers.names import socket_path
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginRecord
from moorage.health.supervision import HealthSupervision
from moorage.plugins import Config, Settings
from moorage.proxy.core import answers
from moorage.proxy.core.paths import TranslatedPath, to_host
from moorage.proxy.protocol import PathRule, PluginNews, PluginTable, ProxyState, PublishOptions, VolumeMount
from moorage.runs.directories import PluginDirectories
from moorage.runs.http_call import PluginResponse
from moorage.runs.removal import MountPoint

if TYPE_CHECKING:
    from moorage.engine.run.plugin_run import PluginRun

__all__ = ("PublishablePlugin", "find_host_path", "find_mount_points", "make_table", "path_rules", "with_host_paths")


class PublishablePlugin(Protocol):
    """What is read of a plugin."""

    directories: PluginDirectories

    @property
    def health(self) -> HealthSupervision: ...

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def record(self) -> PluginRecord: ...

    @property
    def config(self) -> Config: ...

    @property
    def state(self) -> State: ...

    @property
    def run(self) -> "PluginRun | None": ...

    @property
    def settings(self) -> Settings:
        """The settings of its next run."""


def make_table(
    plugin: PublishablePlugin, directory: Path, gid: int, *, is_known: bool, news: PluginNews | None
) -> PluginTable:
    """The table of a plugin that is published, or whose volumes the engine uses.

    ``directory`` is that of the sockets, ``gid`` their group. Until it is known what runs of the plugin, it is in the
    state of the last ``news``: calls are not to wait for an engine that starts.

    Raises: Invalid for a plugin whose own socket has too long a path.
    """
    record, run, directories = plugin.record, plugin.run, plugin.directories
    publication = record.published
    state = _state(plugin)
    pid = run.pid or 0 if run is not None and state == "ready" else 0
    if not is_known and news is not None and news.run == record.run and state == "starting":
        state, pid = news.state, news.pid
    return PluginTable(
        id=record.id,
        name=record.name,
        types=tuple(each.text for each in plugin.config.interface.types),
        state=state,
        run=record.run,
        runtime=str(directories.runtime),
        socket=directories.socket(plugin.config).name,
        published=tuple(socket_path(directory, name) for name in publication.names) if publication else (),
        publish_directory=str(directory) if publication else "",
        mode=publication.mode if publication else 0o600,
        gid=gid,
        is_unhealthy=plugin.health.is_unhealthy,
        pid=pid,
        paths=path_rules(plugin),
        options=publication.options if publication else PublishOptions(),
    )


def path_rules(plugin: PublishablePlugin) -> tuple[PathRule, ...]:
    """Which directories of the host the plugin shows where, with the sources that are set now (row P07)."""
    directories, config = plugin.directories, plugin.config
    rules = [
        PathRule(_clean(each.destination), each.source, "bind", each.is_read_only)
        for each in plugin.settings.mounts
        if each.is_bind and each.source and each.destination
    ]
    if config.propagated_mount:
        rules.append(PathRule(_clean(config.propagated_mount), str(directories.propagated_mount), "propagated"))
    return (*rules, PathRule("/", str(directories.root), "root"))


def find_host_path(plugin: PublishablePlugin, inside: str) -> TranslatedPath:
    """The host's path of an absolute path inside a plugin, whether it exists or not; ``..`` never leads outside."""
    found = to_host(path_rules(plugin), _clean(inside))
    assert found is not None, "the root has every normal path"
    return found


def with_host_paths(plugin: PublishablePlugin, method: str, response: PluginResponse) -> PluginResponse:
    """The response to a call with the paths of volumes as the host's; what is no such response is unchanged."""
    answer, document = answers.normalize(f"/{method}", plugin.name, response.status, response.body)
    if answer.is_failure:
        return response
    made, _ = answers.host_paths(f"/{method}", path_rules(plugin), answer, document)
    return response if made is answer else replace(response, body=made.body)


def find_mount_points(plugin: PublishablePlugin, mounts: Sequence[VolumeMount]) -> tuple[MountPoint, ...]:
    """Where file systems are that consumers have mounted; those in its root, which goes with it, are left out."""
    if not mounts:
        return ()
    bases = [rule.outside.rstrip("/") for rule in path_rules(plugin) if rule.kind != "root"]
    found = (_find_mount_point(bases, mount) for mount in mounts)
    return tuple(dict.fromkeys(each for each in found if each is not None))


def _find_mount_point(bases: Sequence[str], mount: VolumeMount) -> MountPoint | None:
    """The mount point is at or above the path. Links above the base are resolved in it, and not in the path."""
    above = [base for base in bases if mount.path.startswith(f"{base}/")]
    if not mount.mount_point or not above:
        return None
    base = max(above, key=len)
    parts = mount.path[len(base) + 1 :].split("/")
    for count in range(len(parts), 0, -1):
        below = "/".join(parts[:count])
        if mount.mount_point.endswith(f"/{below}"):
            return MountPoint(Path(base), below)
    return None


def _clean(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _state(plugin: PublishablePlugin) -> ProxyState:
    match plugin.state:
        case State.READY:
            return "ready"
        case State.FAILED:
            return "failed"
        case State.STARTING | State.RESTARTING:
            return "starting"
        case State.DISABLED | State.STOPPING | State.REMOVING:
            # one that is enabled is restarted or upgraded, or the engine has not started it yet
            return "starting" if plugin.record.enabled else "disabled"

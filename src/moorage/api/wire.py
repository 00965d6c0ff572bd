"""Values as the Docker Engine API's JSON. What Docker's objects have no place for is below the key ``Moorage``."""

import platform
from datetime import UTC, datetime

from moorage._version import __version__
from moorage.api.confinement import confinement_to_api
from moorage.engine.arrivals import Loaded
from moorage.engine.figures import Figures, ProcessView
from moorage.engine.usage import DiskUsage, Pruned
from moorage.engine.values import EngineInfo, Happened, Holder, LastExit, PluginView
from moorage.logs.lines import Line
from moorage.plugins import config_to_api, privileges_to_api, settings_to_api

__all__ = (
    "API_VERSION",
    "MIN_API_VERSION",
    "event_to_api",
    "figures_to_api",
    "holder_to_api",
    "line_to_api",
    "loaded_to_api",
    "plugin_to_api",
    "policy_to_api",
    "process_to_api",
    "pruned_to_api",
    "time_to_api",
    "usage_to_api",
    "version_to_api",
)

API_VERSION = (1, 55)
"""The newest published description of the API. Its part about plugins has not changed since 1.47, but for
``Config.DockerVersion``, which was taken out and was never here.
"""
MIN_API_VERSION = (1, 24)

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def plugin_to_api(plugin: PluginView) -> dict[str, object]:
    """A plugin as GET /plugins/{name}/json shows it. Secrets are masked."""
    origin = {"PluginReference": plugin.reference} if plugin.reference else {}
    return {
        "Config": config_to_api(plugin.config),
        "Enabled": plugin.enabled,
        "Id": plugin.id,
        "Name": plugin.name,
        **origin,
        "Settings": settings_to_api(plugin.settings),
        "Moorage": {
            "State": plugin.state.value,
            "Restarts": plugin.restarts,
            "LastExit": _exit_to_api(plugin.last_exit) if plugin.last_exit else None,
            "NextTryAt": time_to_api(plugin.next_try_at),
            "ReadyAt": time_to_api(plugin.ready_at),
            "StartedAt": time_to_api(plugin.started_at),
            "UptimeSeconds": _seconds_since(plugin.started_at),
            "Pid": plugin.pid,
            "Socket": plugin.socket,
            "Policy": policy_to_api(plugin),
            "Holders": [holder_to_api(holder) for holder in plugin.holders],
            "Privileges": privileges_to_api(plugin.privileges),
            "Widenings": privileges_to_api(plugin.widenings),
            "Ungranted": privileges_to_api(plugin.ungranted),
            "Problem": plugin.problem,
            "Warnings": list(plugin.warnings),
            "Digest": plugin.digest,
            "Tags": list(plugin.tags),
        },
    }


def policy_to_api(plugin: PluginView) -> dict[str, object]:
    """A plugin's policy; StopTimeout is in seconds, null for the engine's default."""
    policy = plugin.policy
    restarts = {"Restarts": policy.restarts.value, "Most": policy.most, "StopTimeout": policy.stop_timeout}
    return {**restarts, **confinement_to_api(plugin.confinement)}


def holder_to_api(holder: Holder) -> dict[str, object]:
    """A holder, with the token that releases it."""
    return {"Token": holder.token, "Owner": holder.owner, "Since": time_to_api(holder.since)}


def event_to_api(happened: Happened) -> dict[str, object]:
    """An event as GET /events tells it."""
    return {
        "Type": "plugin",
        "Action": happened.action,
        "Actor": {"ID": happened.id, "Attributes": {"name": happened.name, **happened.attributes}},
        "scope": "local",
        "time": happened.nanoseconds // 10**9,
        "timeNano": happened.nanoseconds,
    }


def figures_to_api(plugin: PluginView, figures: Figures) -> dict[str, object]:
    """A reading; CPU is in seconds since the control group was made, null is what this machine does not count."""
    return {
        "Id": plugin.id,
        "Name": plugin.name,
        "At": time_to_api(figures.at),
        "CpuSeconds": figures.cpu_seconds,
        "MemoryBytes": figures.memory_bytes,
        "MemoryLimitBytes": figures.memory_limit_bytes,
        "OomKills": figures.oom_kills,
        "Pids": figures.pids,
        "PidsLimit": figures.pids_limit,
        "CpusLimit": figures.cpus_limit,
        "Zombies": figures.zombies,
        "ReadBytes": figures.read_bytes,
        "WrittenBytes": figures.written_bytes,
    }


def process_to_api(process: ProcessView) -> dict[str, object]:
    """A process, by the host's pids."""
    return {
        "Pid": process.pid,
        "Parent": process.parent,
        "State": process.state,
        "Command": process.command,
        "MemoryBytes": process.memory_bytes,
        "CpuSeconds": process.cpu_seconds,
        "Threads": process.threads,
        "StartedAt": time_to_api(process.started_at),
    }


def usage_to_api(usage: DiskUsage) -> dict[str, object]:
    """What everything takes of the disk, in bytes; ``Shared...`` is the part of it that other plugins have, too."""
    return {
        "Plugins": [
            {
                "Id": each.id,
                "Name": each.name,
                "PackageBytes": each.package_bytes,
                "SharedPackageBytes": each.shared_package_bytes,
                "LayersBytes": each.layers_bytes,
                "SharedLayersBytes": each.shared_layers_bytes,
                "WrittenBytes": each.written_bytes,
                "DataBytes": each.data_bytes,
                "LogsBytes": each.logs_bytes,
            }
            for each in usage.plugins
        ],
        "ContentBytes": usage.content_bytes,
        "LayersBytes": usage.layers_bytes,
        "WrittenBytes": usage.written_bytes,
        "Uploads": usage.uploads,
        "UploadsBytes": usage.uploads_bytes,
        "UnreferencedBytes": usage.unreferenced_bytes,
    }


def loaded_to_api(loaded: Loaded) -> dict[str, object]:
    """A plugin of an archive; not ``New`` is one that was here before."""
    plugin = loaded.plugin
    return {
        "Id": plugin.id,
        "Name": plugin.name,
        "Digest": plugin.digest,
        "New": loaded.is_new,
        "Privileges": privileges_to_api(plugin.privileges),
        "Ungranted": privileges_to_api(plugin.ungranted),
        "Warnings": list(plugin.warnings),
    }


def pruned_to_api(pruned: Pruned) -> dict[str, object]:
    """What a prune has removed; uploads stay where ``UnderWay`` is not 0."""
    return {"FreedBytes": pruned.freed_bytes, "Uploads": pruned.uploads, "UnderWay": pruned.under_way}


def line_to_api(line: Line) -> dict[str, object]:
    """A line of output; ``partial`` is there where it continues in the next line of its stream."""
    made: dict[str, object] = {"at": time_to_api(line.at), "stream": line.stream, "text": line.text}
    return made | {"partial": True} if line.partial else made


def version_to_api(info: EngineInfo) -> dict[str, object]:
    """What ``docker version`` shows of its server."""
    details = {
        "ApiVersion": _dotted(API_VERSION),
        "MinAPIVersion": _dotted(MIN_API_VERSION),
        "Os": "linux",
        "Arch": _arch(),
        "KernelVersion": platform.release(),
    }
    components = [{"Name": "Engine", "Version": __version__, "Details": {**details, "Experimental": "false"}}]
    if info.containerd_version:
        components.append({"Name": "containerd", "Version": info.containerd_version, "Details": {}})
    return {
        "Platform": {"Name": "Moorage"},
        "Components": components,
        "Version": __version__,
        **details,
        "GitCommit": "",
        "GoVersion": "",
        "BuildTime": "",
    }


def _exit_to_api(last: LastExit) -> dict[str, object]:
    return {"Code": last.code, "Signal": last.signal, "OOM": last.oom, "At": time_to_api(last.at), "Error": last.error}


def _arch() -> str:
    return _MACHINES.get(platform.machine(), platform.machine())


def time_to_api(at: datetime | None) -> str | None:
    """RFC 3339, null for none."""
    return at.isoformat() if at is not None else None


def _seconds_since(at: datetime | None) -> float | None:
    # never below 0: the clock may have been set back
    return None if at is None else max(0.0, round((datetime.now(UTC) - at).total_seconds(), 3))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

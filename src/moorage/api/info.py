"""What ``GET /info`` answers: the fields of the published schema that mean something here, the others as empty."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from moorage._version import __version__
from moorage.api.wire import time_to_api
from moorage.distribution.hosts import Options
from moorage.engine.values import EngineInfo, PluginView

__all__ = ("info_to_api", "moorage_info_to_api")

_KINDS = {"Volume": "volumedriver", "Network": "networkdriver", "Authorization": "authz", "Log": "logdriver"}
_INDEX = "https://index.docker.io/v1/"
_LOOPBACK = ("127.0.0.0/8", "::1/128")
_SWARM = {
    "NodeID": "",
    "NodeAddr": "",
    "LocalNodeState": "inactive",
    "ControlAvailable": False,
    "Error": "",
    "RemoteManagers": None,
}
_RUNTIME = "io.containerd.runc.v2"


def info_to_api(info: EngineInfo, plugins: Sequence[PluginView]) -> dict[str, object]:
    """The engine as a whole, as ``docker info`` shows it (blocking). Source: moby api/types/system/info.go."""
    return {
        "ID": info.engine_id,
        **dict.fromkeys(("Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images"), 0),
        "Driver": info.snapshotter,
        "DriverStatus": [],
        "Plugins": {kind: _names_of(plugins, capability) for kind, capability in _KINDS.items()},
        **_limits(),
        **_process(info),
        **_machine(),
        "IndexServerAddress": _INDEX,
        "RegistryConfig": _registries(info.registries),
        "GenericResources": None,
        "DockerRootDir": info.root,
        **_proxies(),
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": {_RUNTIME: {"path": "runc"}},
        "DefaultRuntime": _RUNTIME,
        "Swarm": _SWARM,
        "LiveRestoreEnabled": info.live_restore,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": info.containerd_version},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": [],
        "CDISpecDirs": [],
        "Containerd": {
            "Address": info.containerd_address,
            "Namespaces": {"Containers": "", "Plugins": info.namespace},
        },
        "Warnings": [*([info.problem] if info.problem else []), *info.notices],
        "Moorage": moorage_info_to_api(info),
    }


def moorage_info_to_api(info: EngineInfo) -> dict[str, object]:
    """What Docker's object has no place for."""
    return {
        "Containerd": info.containerd,
        "ContainerdAddress": info.containerd_address,
        "ContainerdVersion": info.containerd_version,
        "Namespace": info.namespace,
        "Problem": info.problem,
        "Notices": list(info.notices),
        "ExecRoot": info.exec_root,
        "StartedAt": time_to_api(info.started_at),
    }


def _limits() -> dict[str, bool]:
    """What the kernel can limit; of every machine that plugins run on, and none of it has a warning of Docker's."""
    can = ("MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit")
    quiet = (
        "OomKillDisable",
        "BridgeNfIptables",
        "BridgeNfIp6tables",
    )  # of nothing here: old commands warn without them
    return {**dict.fromkeys((*can, *quiet), True), "IPv4Forwarding": _is_forwarding()}


def _process(info: EngineInfo) -> dict[str, object]:
    return {
        "Debug": False,
        "NFd": len(os.listdir("/proc/self/fd")),
        "NGoroutines": 0,
        "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "LoggingDriver": "local",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "1",
        "NEventsListener": info.listeners,
    }


def _is_forwarding() -> bool:
    try:
        with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _machine() -> dict[str, object]:
    return {
        "KernelVersion": platform.release(),
        "OperatingSystem": _operating_system(),
        "OSType": "linux",
        "OSVersion": _os_release().get("VERSION_ID", ""),
        "Architecture": platform.machine(),
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "Name": platform.node(),
    }


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _operating_system() -> str:
    return _os_release().get("PRETTY_NAME", "Linux")


def _registries(options: Options) -> dict[str, object]:
    """Which registries are spoken to without TLS, and the mirrors of Docker Hub."""
    insecure = [each for each in options.insecure if "/" in each]
    hosts = [each for each in options.insecure if "/" not in each]
    hub = {"Name": "docker.io", "Mirrors": list(options.mirrors), "Secure": True, "Official": True}
    others = {host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False} for host in hosts}
    return {
        "InsecureRegistryCIDRs": [*insecure, *_LOOPBACK],
        "IndexConfigs": {"docker.io": hub, **others},
        "Mirrors": list(options.mirrors),
    }


def _proxies() -> dict[str, str]:
    """Proxies of the environment, without passwords."""
    found = {}
    for key, name in (("HttpProxy", "http_proxy"), ("HttpsProxy", "https_proxy"), ("NoProxy", "no_proxy")):
        value = os.environ.get(name) or os.environ.get(name.upper()) or ""
        scheme, mark, rest = value.partition("://")
        user, at, host = rest.rpartition("@")
        found[key] = f"{scheme}{mark}xxxxx:xxxxx@{host}" if at and user else value
    return found


def _names_of(plugins: Iterable[PluginView], capability: str) -> list[str]:
    return [
        plugin.name
        for plugin in plugins
        if plugin.enabled and any(each.capability.lower() == capability for each in plugin.config.interface.types)
    ]

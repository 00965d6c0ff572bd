"""The kit for plugin authors: drivers of every kind with Python's standard library and nothing else.

    from moorage.kit import SimpleVolumeDriver, serve

A plugin carries this package alone, as ``moorage new`` puts it there; it imports nothing else of Moorage.

Names, imported when they are first used:

    ALLOWED: The decision of an authorization driver to continue.
    METRICS_SOCKET: Path of dockerd's metrics in a plugin.
    AddressRequest: An address to reserve, or to release.
    AddressSpaces: Names of the default address spaces.
    AllocateNetwork: Reserve what a network of Swarm needs.
    AuthorizationRequest: A request to dockerd, and its answer.
    AuthzDriver: Base class of authorization drivers.
    CallFailed: What a driver raises so that its caller is answered with a reason.
    ContainerInfo: The container whose output is logged.
    CreateEndpoint: Create an endpoint in a network.
    CreateNetwork: Create a network.
    CreateVolume: Create a volume.
    Decision: Whether dockerd continues.
    Discovery: A node or a key that has appeared or disappeared.
    Driver: Base class of all drivers, also of your own kind.
    EndpointInterface: Addresses of an endpoint.
    EndpointName: Names an endpoint.
    EntryJoiner: Joins the parts of long lines.
    ExternalConnectivity: Ports that an endpoint publishes.
    FrameDecoder: Finds log entries in a stream of frames.
    GatewayCheck: Options of a network that may need no gateway.
    GatewayDecision: Whether no gateway is allocated.
    InterfaceName: Which interface moves into the container.
    InvalidCall: A request that is malformed.
    IpamCapabilities: What libnetwork has to send.
    IpamData: Addresses of a network.
    IpamDriver: Base class of drivers of address management.
    JoinEndpoint: A container gets an endpoint.
    Joined: What the container gets.
    LeasedAddress: A reserved address.
    Limits: Bounds of a server.
    LogDriver: Base class of log drivers.
    LogEntry: A line of a container's output.
    LogReader: Reads the FIFO of one container's output.
    MetricsDriver: Base class of metrics collectors.
    MountTable: Which users have which volumes mounted, in a file that survives a kill.
    MountVolume: Mount or unmount a volume for a user of it.
    NetworkCapabilities: What a network driver can do.
    NetworkDriver: Base class of network drivers.
    NetworkName: Names a network.
    Pool: A pool of addresses for a network.
    PoolName: Names a pool.
    PoolRequest: A network needs a pool.
    ReadConfig: What docker logs requests.
    RunningPlugin: Runs a plugin's program in a test.
    Secret: The value of a secret.
    SecretDriver: Base class of secret providers.
    SecretRequest: Which secret, and the task that needs it.
    SimpleVolumeDriver: A volume driver of which only four methods are missing.
    StateFile: A JSON file that is whole at any moment.
    StaticRoute: A route in the container.
    StoredVolume: A volume of a MountTable.
    VolumeDriver: Base class of volume drivers.
    VolumeInfo: A volume as it is described to dockerd and podman.
    VolumeName: Names a volume.
    bind_mount: Show a directory at another path.
    call: Call a method of a plugin, in a test.
    deny: The decision of an authorization driver to refuse.
    encode_frame: The frame of a log entry.
    is_mounted: Whether something is mounted at a path.
    serve: Serve drivers until SIGTERM.
    unmount: Undo bind_mount, and any other mount.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.kit.client import RunningPlugin as RunningPlugin
    from moorage.kit.client import call as call
    from moorage.kit.driver import Driver as Driver
    from moorage.kit.drivers.authz import ALLOWED as ALLOWED
    from moorage.kit.drivers.authz import AuthorizationRequest as AuthorizationRequest
    from moorage.kit.drivers.authz import AuthzDriver as AuthzDriver
    from moorage.kit.drivers.authz import Decision as Decision
    from moorage.kit.drivers.authz import deny as deny
    from moorage.kit.drivers.ipam import AddressRequest as AddressRequest
    from moorage.kit.drivers.ipam import AddressSpaces as AddressSpaces
    from moorage.kit.drivers.ipam import IpamCapabilities as IpamCapabilities
    from moorage.kit.drivers.ipam import IpamDriver as IpamDriver
    from moorage.kit.drivers.ipam import LeasedAddress as LeasedAddress
    from moorage.kit.drivers.ipam import Pool as Pool
    from moorage.kit.drivers.ipam import PoolName as PoolName
    from moorage.kit.drivers.ipam import PoolRequest as PoolRequest
    from moorage.kit.drivers.log import ContainerInfo as ContainerInfo
    from moorage.kit.drivers.log import LogDriver as LogDriver
    from moorage.kit.drivers.log import ReadConfig as ReadConfig
    from moorage.kit.drivers.log_entry import EntryJoiner as EntryJoiner
    from moorage.kit.drivers.log_entry import FrameDecoder as FrameDecoder
    from moorage.kit.drivers.log_entry import LogEntry as LogEntry
    from moorage.kit.drivers.log_entry import encode_frame as encode_frame
    from moorage.kit.drivers.log_reader import LogReader as LogReader
    from moorage.kit.drivers.metrics import METRICS_SOCKET as METRICS_SOCKET
    from moorage.kit.drivers.metrics import MetricsDriver as MetricsDriver
    from moorage.kit.drivers.network import AllocateNetwork as AllocateNetwork
    from moorage.kit.drivers.network import CreateEndpoint as CreateEndpoint
    from moorage.kit.drivers.network import CreateNetwork as CreateNetwork
    from moorage.kit.drivers.network import Discovery as Discovery
    from moorage.kit.drivers.network import EndpointInterface as EndpointInterface
    from moorage.kit.drivers.network import EndpointName as EndpointName
    from moorage.kit.drivers.network import ExternalConnectivity as ExternalConnectivity
    from moorage.kit.drivers.network import GatewayCheck as GatewayCheck
    from moorage.kit.drivers.network import GatewayDecision as GatewayDecision
    from moorage.kit.drivers.network import InterfaceName as InterfaceName
    from moorage.kit.drivers.network import IpamData as IpamData
    from moorage.kit.drivers.network import Joined as Joined
    from moorage.kit.drivers.network import JoinEndpoint as JoinEndpoint
    from moorage.kit.drivers.network import NetworkCapabilities as NetworkCapabilities
    from moorage.kit.drivers.network import NetworkDriver as NetworkDriver
    from moorage.kit.drivers.network import NetworkName as NetworkName
    from moorage.kit.drivers.network import StaticRoute as StaticRoute
    from moorage.kit.drivers.secret import Secret as Secret
    from moorage.kit.drivers.secret import SecretDriver as SecretDriver
    from moorage.kit.drivers.secret import SecretRequest as SecretRequest
    from moorage.kit.drivers.simple_volume import SimpleVolumeDriver as SimpleVolumeDriver
    from moorage.kit.drivers.volume import CreateVolume as CreateVolume
    from moorage.kit.drivers.volume import MountVolume as MountVolume
    from moorage.kit.drivers.volume import VolumeDriver as VolumeDriver
    from moorage.kit.drivers.volume import VolumeInfo as VolumeInfo
    from moorage.kit.drivers.volume import VolumeName as VolumeName
    from moorage.kit.failures import CallFailed as CallFailed
    from moorage.kit.failures import InvalidCall as InvalidCall
    from moorage.kit.mount_table import MountTable as MountTable
    from moorage.kit.mount_table import StoredVolume as StoredVolume
    from moorage.kit.mounts import bind_mount as bind_mount
    from moorage.kit.mounts import is_mounted as is_mounted
    from moorage.kit.mounts import unmount as unmount
    from moorage.kit.options import Limits as Limits
    from moorage.kit.server import serve as serve
    from moorage.kit.state_file import StateFile as StateFile

__all__ = (
    "ALLOWED",
    "METRICS_SOCKET",
    "AddressRequest",
    "AddressSpaces",
    "AllocateNetwork",
    "AuthorizationRequest",
    "AuthzDriver",
    "CallFailed",
    "ContainerInfo",
    "CreateEndpoint",
    "CreateNetwork",
    "CreateVolume",
    "Decision",
    "Discovery",
    "Driver",
    "EndpointInterface",
    "EndpointName",
    "EntryJoiner",
    "ExternalConnectivity",
    "FrameDecoder",
    "GatewayCheck",
    "GatewayDecision",
    "InterfaceName",
    "InvalidCall",
    "IpamCapabilities",
    "IpamData",
    "IpamDriver",
    "JoinEndpoint",
    "Joined",
    "LeasedAddress",
    "Limits",
    "LogDriver",
    "LogEntry",
    "LogReader",
    "MetricsDriver",
    "MountTable",
    "MountVolume",
    "NetworkCapabilities",
    "NetworkDriver",
    "NetworkName",
    "Pool",
    "PoolName",
    "PoolRequest",
    "ReadConfig",
    "RunningPlugin",
    "Secret",
    "SecretDriver",
    "SecretRequest",
    "SimpleVolumeDriver",
    "StateFile",
    "StaticRoute",
    "StoredVolume",
    "VolumeDriver",
    "VolumeInfo",
    "VolumeName",
    "bind_mount",
    "call",
    "deny",
    "encode_frame",
    "is_mounted",
    "serve",
    "unmount",
)

_MODULES = {
    "ALLOWED": "drivers.authz",
    "METRICS_SOCKET": "drivers.metrics",
    "AddressRequest": "drivers.ipam",
    "AddressSpaces": "drivers.ipam",
    "AllocateNetwork": "drivers.network",
    "AuthorizationRequest": "drivers.authz",
    "AuthzDriver": "drivers.authz",
    "CallFailed": "failures",
    "ContainerInfo": "drivers.log",
    "CreateEndpoint": "drivers.network",
    "CreateNetwork": "drivers.network",
    "CreateVolume": "drivers.volume",
    "Decision": "drivers.authz",
    "Discovery": "drivers.network",
    "Driver": "driver",
    "EndpointInterface": "drivers.network",
    "EndpointName": "drivers.network",
    "EntryJoiner": "drivers.log_entry",
    "ExternalConnectivity": "drivers.network",
    "FrameDecoder": "drivers.log_entry",
    "GatewayCheck": "drivers.network",
    "GatewayDecision": "drivers.network",
    "InterfaceName": "drivers.network",
    "InvalidCall": "failures",
    "IpamCapabilities": "drivers.ipam",
    "IpamData": "drivers.network",
    "IpamDriver": "drivers.ipam",
    "JoinEndpoint": "drivers.network",
    "Joined": "drivers.network",
    "LeasedAddress": "drivers.ipam",
    "Limits": "options",
    "LogDriver": "drivers.log",
    "LogEntry": "drivers.log_entry",
    "LogReader": "drivers.log_reader",
    "MetricsDriver": "drivers.metrics",
    "MountTable": "mount_table",
    "MountVolume": "drivers.volume",
    "NetworkCapabilities": "drivers.network",
    "NetworkDriver": "drivers.network",
    "NetworkName": "drivers.network",
    "Pool": "drivers.ipam",
    "PoolName": "drivers.ipam",
    "PoolRequest": "drivers.ipam",
    "ReadConfig": "drivers.log",
    "RunningPlugin": "client",
    "Secret": "drivers.secret",
    "SecretDriver": "drivers.secret",
    "SecretRequest": "drivers.secret",
    "SimpleVolumeDriver": "drivers.simple_volume",
    "StateFile": "state_file",
    "StaticRoute": "drivers.network",
    "StoredVolume": "mount_table",
    "VolumeDriver": "drivers.volume",
    "VolumeInfo": "drivers.volume",
    "VolumeName": "drivers.volume",
    "bind_mount": "mounts",
    "call": "client",
    "deny": "drivers.authz",
    "encode_frame": "drivers.log_entry",
    "is_mounted": "mounts",
    "serve": "server",
    "unmount": "mounts",
}
"""The module of each name; imported at its first use: an idle plugin has only what it needs."""

# from here on, SIGTERM stops a plugin that is still importing
importlib.import_module("moorage.kit._process_one")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

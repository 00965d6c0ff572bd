"""Network drivers: ``docker.networkdriver/1.0``.

Source: moby's daemon/libnetwork/drivers/remote and its api package.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from moorage.kit.driver import Driver, DriverCall, Eventually, unsupported
from moorage.kit.messages import named

__all__ = (
    "AllocateNetwork",
    "CreateEndpoint",
    "CreateNetwork",
    "Discovery",
    "EndpointInterface",
    "EndpointName",
    "ExternalConnectivity",
    "GatewayCheck",
    "GatewayDecision",
    "InterfaceName",
    "IpamData",
    "JoinEndpoint",
    "Joined",
    "NetworkCapabilities",
    "NetworkDriver",
    "NetworkName",
    "StaticRoute",
)


@dataclass(frozen=True)
class NetworkCapabilities:
    """What the driver can do."""

    scope: str = "local"
    """``local`` or ``global``."""
    connectivity_scope: str | None = None
    gw_alloc_checker: bool = False
    """Whether ``check_gateway`` may be called."""


@dataclass(frozen=True)
class IpamData:
    """Addresses of a network."""

    address_space: str = ""
    pool: str = ""
    """CIDR."""
    gateway: str = ""
    """With the length of its prefix."""
    aux_addresses: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkName:
    """Names a network."""

    network_id: str


@dataclass(frozen=True)
class CreateNetwork:
    """Create a network."""

    network_id: str
    options: dict[str, Any] = field(default_factory=dict)
    ipv4_data: tuple[IpamData, ...] = ()
    ipv6_data: tuple[IpamData, ...] = ()


@dataclass(frozen=True)
class AllocateNetwork(CreateNetwork):
    """Reserve what a network of Swarm needs, on a manager."""


@dataclass(frozen=True)
class EndpointInterface:
    """Addresses of an endpoint; those that are empty the driver chooses."""

    address: str = ""
    """With the length of its prefix."""
    address_ipv6: str = named("AddressIPv6", default="")
    mac_address: str = ""


@dataclass(frozen=True)
class CreateEndpoint:
    """Create an endpoint in a network."""

    network_id: str
    endpoint_id: str
    interface: EndpointInterface | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointName:
    """Names an endpoint."""

    network_id: str
    endpoint_id: str


@dataclass(frozen=True)
class JoinEndpoint:
    """A container gets an endpoint."""

    network_id: str
    endpoint_id: str
    sandbox_key: str = ""
    """Path of its network namespace."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InterfaceName:
    """Which interface moves into the container."""

    src_name: str
    """On the host."""
    dst_prefix: str
    """Beginning of its name in the container; libnetwork adds a number."""
    dst_name: str | None = None


@dataclass(frozen=True)
class StaticRoute:
    """A route in the container."""

    destination: str
    """CIDR."""
    route_type: int = 0
    """0 by ``next_hop``, 1 by the interface."""
    next_hop: str = ""


@dataclass(frozen=True)
class Joined:
    """What the container gets."""

    interface_name: InterfaceName | None = None
    gateway: str = ""
    gateway_ipv6: str = named("GatewayIPv6", default="")
    static_routes: tuple[StaticRoute, ...] = ()
    disable_gateway_service: bool = False


@dataclass(frozen=True)
class Discovery:
    """A node or a key that has appeared or disappeared."""

    discovery_type: int = 0
    discovery_data: Any = None


@dataclass(frozen=True)
class ExternalConnectivity:
    """Ports that an endpoint publishes."""

    network_id: str
    endpoint_id: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GatewayCheck:
    """Options of a network."""

    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GatewayDecision:
    """Whether no gateway is allocated."""

    skip_ipv4: bool = False
    skip_ipv6: bool = False


class NetworkDriver(Driver):
    """A network driver."""

    kind: ClassVar[str] = "NetworkDriver"
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "GetCapabilities": DriverCall("get_capabilities"),
        "GwAllocCheck": DriverCall("check_gateway", GatewayCheck),
        "AllocateNetwork": DriverCall("allocate_network", AllocateNetwork, lambda options: {"Options": options}),
        "FreeNetwork": DriverCall("free_network", NetworkName),
        "CreateNetwork": DriverCall("create_network", CreateNetwork),
        "DeleteNetwork": DriverCall("delete_network", NetworkName),
        "CreateEndpoint": DriverCall("create_endpoint", CreateEndpoint, lambda made: {"Interface": made or {}}),
        "DeleteEndpoint": DriverCall("delete_endpoint", EndpointName),
        "EndpointOperInfo": DriverCall("describe_endpoint", EndpointName, lambda value: {"Value": value}),
        "Join": DriverCall("join", JoinEndpoint),
        "Leave": DriverCall("leave", EndpointName),
        "DiscoverNew": DriverCall("discover_new", Discovery),
        "DiscoverDelete": DriverCall("discover_delete", Discovery),
        "ProgramExternalConnectivity": DriverCall("program_connectivity", ExternalConnectivity),
        "RevokeExternalConnectivity": DriverCall("revoke_connectivity", EndpointName),
    }

    def get_capabilities(self) -> Eventually[NetworkCapabilities]:
        """What it can do."""
        return NetworkCapabilities()

    def check_gateway(self, request: GatewayCheck) -> Eventually[GatewayDecision]:
        """Whether a network with these options needs no gateway."""
        return GatewayDecision()

    def allocate_network(self, request: AllocateNetwork) -> Eventually[dict[str, str]]:
        """Reserve what a network of Swarm needs; options for ``create_network`` on the nodes."""
        raise unsupported("networks of Swarm")

    def free_network(self, request: NetworkName) -> Eventually[None]:
        """Release what ``allocate_network`` reserved."""
        raise unsupported("networks of Swarm")

    def create_network(self, request: CreateNetwork) -> Eventually[None]:
        """Create a network."""
        raise NotImplementedError

    def delete_network(self, request: NetworkName) -> Eventually[None]:
        """Delete a network; repeated it succeeds."""
        raise NotImplementedError

    def create_endpoint(self, request: CreateEndpoint) -> Eventually[EndpointInterface | None]:
        """Create an endpoint; the addresses that the driver chose, and no others."""
        raise NotImplementedError

    def delete_endpoint(self, request: EndpointName) -> Eventually[None]:
        """Delete an endpoint; repeated it succeeds."""
        raise NotImplementedError

    def describe_endpoint(self, request: EndpointName) -> Eventually[dict[str, Any]]:
        """Anything, for ``docker network inspect``."""
        return {}

    def join(self, request: JoinEndpoint) -> Eventually[Joined]:
        """Give an endpoint to a container."""
        raise NotImplementedError

    def leave(self, request: EndpointName) -> Eventually[None]:
        """The container does not use it any more."""
        raise NotImplementedError

    def discover_new(self, request: Discovery) -> Eventually[None]:
        """A node or a key has appeared."""

    def discover_delete(self, request: Discovery) -> Eventually[None]:
        """A node or a key has disappeared."""

    def program_connectivity(self, request: ExternalConnectivity) -> Eventually[None]:
        """Publish ports."""

    def revoke_connectivity(self, request: EndpointName) -> Eventually[None]:
        """Undo ``program_connectivity``."""

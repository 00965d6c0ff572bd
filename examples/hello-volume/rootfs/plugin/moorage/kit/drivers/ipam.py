"""Address management: ``docker.ipamdriver/1.0``. Its errors are in ``Error``, not in ``Err``.

Source: moby's daemon/libnetwork/ipams/remote/api.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from moorage.kit.driver import Driver, DriverCall, Eventually
from moorage.kit.messages import named

__all__ = (
    "AddressRequest",
    "AddressSpaces",
    "IpamCapabilities",
    "IpamDriver",
    "LeasedAddress",
    "Pool",
    "PoolName",
    "PoolRequest",
)


@dataclass(frozen=True)
class IpamCapabilities:
    """What libnetwork has to send."""

    requires_mac_address: bool = named("RequiresMACAddress", default=False)
    requires_request_replay: bool = False


@dataclass(frozen=True)
class AddressSpaces:
    """Names of the default address spaces."""

    local_default_address_space: str
    global_default_address_space: str


@dataclass(frozen=True)
class PoolRequest:
    """A network needs a pool; without ``pool`` the driver chooses one."""

    address_space: str = ""
    pool: str = ""
    """CIDR."""
    sub_pool: str = ""
    options: dict[str, str] = field(default_factory=dict)
    v6: bool = False


@dataclass(frozen=True)
class Pool:
    """A pool for a network."""

    pool_id: str
    pool: str
    """CIDR."""
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolName:
    """Names a pool."""

    pool_id: str


@dataclass(frozen=True)
class AddressRequest:
    """An address to reserve, or to release; without ``address`` the driver chooses one."""

    pool_id: str
    address: str = ""
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeasedAddress:
    """A reserved address."""

    address: str
    """With the length of its prefix: 10.0.0.2/24."""
    data: dict[str, str] = field(default_factory=dict)


class IpamDriver(Driver):
    """A driver of address management."""

    kind: ClassVar[str] = "IpamDriver"
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "GetCapabilities": DriverCall("get_capabilities"),
        "GetDefaultAddressSpaces": DriverCall("get_address_spaces"),
        "RequestPool": DriverCall("request_pool", PoolRequest),
        "ReleasePool": DriverCall("release_pool", PoolName),
        "RequestAddress": DriverCall("request_address", AddressRequest),
        "ReleaseAddress": DriverCall("release_address", AddressRequest),
    }

    def failure(self, text: str) -> dict[str, object]:
        """The reason in ``Error``, where libnetwork reads it, and in ``Err``, where dockerd does for status 500."""
        return {"Error": text, "Err": text}

    def get_capabilities(self) -> Eventually[IpamCapabilities]:
        """What it needs."""
        return IpamCapabilities()

    def get_address_spaces(self) -> Eventually[AddressSpaces]:
        """Its default address spaces."""
        raise NotImplementedError

    def request_pool(self, request: PoolRequest) -> Eventually[Pool]:
        """Reserve a pool."""
        raise NotImplementedError

    def release_pool(self, request: PoolName) -> Eventually[None]:
        """Release a pool; repeated it succeeds."""
        raise NotImplementedError

    def request_address(self, request: AddressRequest) -> Eventually[LeasedAddress]:
        """Reserve an address of a pool."""
        raise NotImplementedError

    def release_address(self, request: AddressRequest) -> Eventually[None]:
        """Release an address; repeated it succeeds."""
        raise NotImplementedError

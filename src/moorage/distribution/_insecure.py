"""Which registries may be spoken to without checked TLS: by name, by network, and by the addresses of a name.

Source: Docker's ``registry`` package (loopback and ``insecure-registries``, where a name counts by its addresses). On
purpose stricter: every address of a name must be in such a network, not only one of them; and the addresses that the
decision was made on are the ones that are connected to.
"""

import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from moorage.distribution.origin import Origin, split_host

__all__ = ("InsecureHosts", "Lookup", "is_listed", "is_loopback", "look_up")

log = logging.getLogger(__name__)

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a name. Raises: OSError where it has none."""

_LOOPBACK = ("127.0.0.0/8", "::1/128")


async def look_up(host: str) -> Sequence[str]:
    """The addresses of a name, as the system resolves it. Raises: OSError."""
    found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class InsecureHosts:
    """The decisions of one operation; a name is resolved once."""

    def __init__(self, entries: Sequence[str], lookup: Lookup, within: float) -> None:
        """``entries``: hosts and networks, each with a port or without; ``within``: seconds for one lookup."""
        self._entries = entries
        self._lookup = lookup
        self._within = within
        self._decided: dict[tuple[str, int], bool] = {}
        self.addresses: dict[str, Sequence[str]] = {}
        """Of names that are insecure because of these addresses; no other may be connected to."""

    def is_named(self, origin: Origin) -> bool:
        """Whether a server is insecure as it is written: loopback, or listed."""
        return is_loopback(origin.host) or is_listed(origin.host, origin.port, self._entries)

    async def resolves_to_insecure(self, origin: Origin) -> bool:
        """Whether every address of a server's name is loopback or in a listed network. A name without any is not."""
        key = (origin.host, origin.port)
        if key not in self._decided:
            self._decided[key] = await self._resolve(origin)
        return self._decided[key]

    async def _resolve(self, origin: Origin) -> bool:
        if _address(origin.host) is not None:
            return False
        found: Sequence[str] = ()
        try:
            with anyio.move_on_after(self._within):
                found = await self._lookup(origin.host)
        except (OSError, UnicodeError) as error:
            log.debug("cannot resolve %s: %s", origin.host, error)
        networks = (*_LOOPBACK, *self._entries)
        if not found or not all(is_listed(each, origin.port, networks) for each in found):
            return False
        self.addresses[origin.host] = found
        return True


def is_loopback(host: str) -> bool:
    """Whether a host, without port and brackets, is this machine by its name: localhost, 127.0.0.0/8, ::1."""
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_listed(host: str, port: int | None, entries: Iterable[str]) -> bool:
    """Whether a list of hosts and networks, each with a port or without, has this one."""
    address, host = _address(host), host.lower()
    for entry in entries:
        name, entry_port = split_entry(entry)
        if entry_port is not None and entry_port != port:
            continue
        if name == host:
            return True
        try:
            if address is not None and address in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            pass  # a name, and not this one
    return False


def split_entry(entry: str) -> tuple[str, int | None]:
    """A host or network of a list, in lower case, and its port, if it has one. A scheme before it is passed over."""
    entry = entry.strip().lower()
    if entry.startswith(("https://", "http://")):
        entry = entry.partition("://")[2].rstrip("/")
    if network := re.fullmatch(r"\[?([0-9a-f:.]+/\d+)\]?(?::(\d+))?", entry):
        return network[1], int(network[2]) if network[2] else None
    return split_host(entry)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

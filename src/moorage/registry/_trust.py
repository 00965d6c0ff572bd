"""How the server of a registry is verified: certificates as in ``certs.d``, and which hosts are insecure.

Source: Docker's layout of ``certs.d``, and its ``registry`` package (loopback and ``insecure-registries``, where a name
counts by its addresses). On purpose stricter: a client certificate is shown only to the host that it is for, not to
those that this host refers to; every address of a name must be in an insecure network, not only one of them; and the
addresses that the decision was made on are the ones that are connected to.
"""

import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import anyio

from moorage import errors
from moorage.registry.origin import Origin, split_host

__all__ = (
    "CertificateStore",
    "InsecureHosts",
    "Lookup",
    "is_in_list",
    "is_loopback",
    "resolve_host",
    "system_context",
    "verifying_context",
)


def verifying_context() -> ssl.SSLContext:
    """A new context that verifies servers with the system's certificates, alike on every version of Python.

    Since Python 3.13 the default context refuses certificates without key identifiers (RFC 5280, strictly), which
    private CAs made by hand do not have and which curl and Go accept; and it accepts an intermediate CA as a trust
    anchor, as Go does. The first is turned off, the second on.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@cache
def system_context() -> ssl.SSLContext:
    """The context with the certificates of the system. Created when needed: loading them usually takes 60 ms."""
    return verifying_context()


class CertificateStore:
    """Directories of ``HOST[:PORT]/*.crt`` (CAs), ``*.cert``, ``*.key`` (client certificates). Every call blocks."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories

    def has_authorities(self, origin: Origin) -> bool:
        """Whether a CA is stored for this server, which then must be verified by it."""
        return bool(self._files(origin, "*.crt"))

    def make_context(self, origin: Origin, referrer: Origin, *, is_insecure: bool) -> ssl.SSLContext | Literal[False]:
        """The TLS context for this server, never aiohttp's own; False for no verification.

        A server that a registry refers to (for tokens, for blobs) is verified by that registry's CAs, as in Docker,
        unless it has a CA of its own. Raises: Invalid for certificates that cannot be used.
        """
        certificates = self._files(origin, "*.cert")
        authorities = self._files(origin, "*.crt") or self._files(referrer, "*.crt")
        for path in self._files(origin, "*.key"):
            if path.with_suffix(".cert") not in certificates:
                raise errors.Invalid(f"cannot use the key {path}: there is no {path.stem}.cert beside it")
        if not certificates and (is_insecure or not authorities):
            return False if is_insecure else system_context()
        context = verifying_context()
        if is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for path in authorities:
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:
                raise errors.Invalid(f"cannot use the certificate {path}: {error}") from error
        for path in certificates:
            _load_pair(context, path)
        return context

    def _files(self, origin: Origin, pattern: str) -> list[Path]:
        """The files of this pattern for a server, in the order of their names."""
        return [path for folder in self._folders(origin) for path in sorted(folder.glob(pattern))]

    def _folders(self, origin: Origin) -> Iterator[Path]:
        """The directories for this server, in whichever form their names write its host and port."""
        for directory in self._directories:
            try:
                folders = sorted(directory.iterdir())
            except OSError:  # most machines have no such directory
                continue
            for folder in folders:
                host, port = split_host(folder.name)
                if host == origin.host and (origin.port == port or (port is None and origin.has_default_port)):
                    yield folder


def _load_pair(context: ssl.SSLContext, certificate: Path) -> None:
    key = certificate.with_suffix(".key")
    if not key.exists():
        raise errors.Invalid(f"cannot use the certificate {certificate}: there is no {key.name} beside it")
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # never prompts
    except (OSError, ssl.SSLError) as error:
        raise errors.Invalid(f"cannot use the certificate {certificate} with {key.name}: {error}") from error


log = logging.getLogger(__name__)

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a name. Raises: OSError for an unknown name."""

_LOOPBACK = ("127.0.0.0/8", "::1/128")


async def resolve_host(host: str) -> Sequence[str]:
    """The addresses of a name, as the system resolves it. Raises: OSError."""
    found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class InsecureHosts:
    """Which hosts are insecure, for one operation; a name is resolved once."""

    def __init__(self, entries: Sequence[str], lookup: Lookup, within: float) -> None:
        """``entries``: hosts and networks, each with a port or without; ``within``: seconds for one lookup."""
        self._entries = entries
        self._lookup = lookup
        self._within = within
        self._decided: dict[tuple[str, int], bool] = {}
        self.addresses: dict[str, Sequence[str]] = {}
        """Of names that are insecure because of these addresses; no other may be connected to."""

    def is_named(self, origin: Origin) -> bool:
        """Whether a server is insecure by its name: loopback, or listed."""
        return is_loopback(origin.host) or is_in_list(origin.host, origin.port, self._entries)

    async def resolves_to_insecure(self, origin: Origin) -> bool:
        """Whether every address of a server's name is loopback or in a listed network. False without addresses."""
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
        if not found or not all(is_in_list(each, origin.port, networks) for each in found):
            return False
        self.addresses[origin.host] = found
        return True


def is_loopback(host: str) -> bool:
    """Whether a host, without port and brackets, is this machine: localhost, 127.0.0.0/8, ::1."""
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_in_list(host: str, port: int | None, entries: Iterable[str]) -> bool:
    """Whether a host is in a list of hosts and networks, each with a port or without."""
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
    """A host or network of a list, in lower case, and its port, if it has one. A scheme is ignored."""
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

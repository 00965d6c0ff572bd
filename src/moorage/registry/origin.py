"""Origins: which server a URL names. Credentials and trust are tied to an origin, never to text.

Source: RFC 6454 section 4 and RFC 3986 section 6.2: scheme and host in lower case, and the port that is used in effect.
"""

import ipaddress
import re
from urllib.parse import quote_from_bytes

from msgspec import Struct
from yarl import URL

from moorage.oci.reference import DEFAULT_HOST, Reference

__all__ = ("Origin", "is_same_host", "is_same_reference", "is_same_repository", "resolve_location", "split_host")

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_UNQUOTED = "".join(map(chr, range(0x21, 0x7F)))  # every printable ASCII character: what is quoted already stays


class Origin(Struct, frozen=True):
    """A server as a client sees it. URLs with equal origins name the same server."""

    scheme: str
    host: str
    """In lower case, without brackets and final dot; an IPv6 address in its shortest form."""
    port: int
    """The effective port, also if the URL names none."""

    @classmethod
    def of(cls, url: URL) -> "Origin":
        """The origin of a URL. Raises: ValueError for one without a host, or of another scheme than http and https."""
        scheme, host = url.scheme.lower(), url.raw_host
        if scheme not in _PORTS or not _HOST.fullmatch(host or ""):
            raise ValueError(f"{url} is not the URL of a server")
        return cls(scheme, _canonical(host or ""), url.port or _PORTS[scheme])

    @property
    def is_secure(self) -> bool:
        """Whether it is used over TLS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """``host:port``, as in errors and the Host header."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def has_default_port(self) -> bool:
        """Whether its port is the default of its scheme, which users leave out."""
        return self.port == _PORTS[self.scheme]


def resolve_location(base: URL, location: str) -> URL:
    """The target of a ``Location`` header in a response from ``base``.

    The origin is written in its canonical form and a user in it is dropped. Path and query stay byte for byte (they may
    be signed), except that invalid bytes are quoted. Raises: ValueError for a URL that names no server.
    """
    if not location:
        raise ValueError("there is no location")
    text = quote_from_bytes(location.encode("utf-8", "surrogateescape"), safe=_UNQUOTED)
    url = base.join(URL(text, encoded=True))
    origin = Origin.of(url)
    port = f":{origin.port}" if url.explicit_port is not None else ""
    return URL.build(
        scheme=origin.scheme,
        authority=f"{_bracketed(origin.host)}{port}",
        path=url.raw_path,
        query_string=url.raw_query_string,
        encoded=True,
    )


def split_host(text: str) -> tuple[str, int | None]:
    """The canonical host and the port, if any, of a registry as users write it: ``HOST``, ``[::1]:5000``."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        return _canonical(text), None
    return _canonical(host), int(port[:9])


def is_same_host(first: str, second: str) -> bool:
    """Whether two names of registries, as users write them, are equal: letter case and the port 443 do not matter."""
    return _registry(first) == _registry(second)


def is_same_reference(first: Reference, second: Reference) -> bool:
    """Whether two references mean one package of one registry, however its host is written."""
    return is_same_repository(first, second) and (first.tag, first.digest) == (second.tag, second.digest)


def is_same_repository(first: Reference, second: Reference) -> bool:
    """Whether two references mean one repository of one registry, however its host is written."""
    return first.path == second.path and is_same_host(first.host, second.host)


def _registry(text: str) -> tuple[str, int]:
    host, port = split_host(text)
    return DEFAULT_HOST if host == f"index.{DEFAULT_HOST}" else host, port or _PORTS["https"]


def _canonical(host: str) -> str:
    host = host.lower().removeprefix("[").removesuffix("]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

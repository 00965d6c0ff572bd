"""Which URL a registry's host is spoken to with, what proves who it is, and through which proxy.

Sources: Docker's ``registry`` package for docker.io's host, loopback, ``insecure-registries`` and mirrors, and its
layout of ``certs.d``. On purpose stricter: a mirror over plain http must be marked insecure as well, and a client's
certificate is shown to the host it is for and to no other that this one refers to.
"""

import ipaddress
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from msgspec import Struct, field
from yarl import URL

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.plugins.reference import DEFAULT_HOST

__all__ = ("DOCKER_HUB", "Endpoint", "Hosts", "Options", "is_loopback", "proxy_for")

DOCKER_HUB = "registry-1.docker.io"
"""Who answers for docker.io."""

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?|\[[0-9A-Fa-f:]+\](?::[0-9]+)?")


class Options(Struct, frozen=True):
    """What the user of this machine has decided about registries."""

    insecure: tuple[str, ...] = ()
    """Hosts (``registry.lan``, ``10.0.0.1:5000``) or networks (``10.0.0.0/8``) whose certificate is not checked and
    that may be spoken to in plain http. A host without a port means each port of it, a host with one only that."""

    mirrors: tuple[str, ...] = ()
    """URLs (``https://mirror.lan``) that are asked before docker.io, in this order, and only for pulls."""

    certificate_directories: tuple[Path, ...] = ()
    """Directories like ``/etc/docker/certs.d``: below ``HOST[:PORT]`` are ``*.crt`` (more CAs), and ``*.cert`` with
    ``*.key`` (our certificate). A host that has a CA there is spoken to in verified TLS only, also on loopback."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """Where ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` (in small letters or large) are read from."""


class Endpoint(Struct, frozen=True):
    """One server that answers for a host: its URLs, the first that works is used from then on."""

    name: str
    """How it is called in messages and where credentials are looked up: ``docker.io``, ``localhost:5000``."""
    urls: tuple[URL, ...]
    is_mirror: bool = False


class Hosts:
    """The decisions of one operation; certificates are read once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._contexts: dict[tuple[str, str], ssl.SSLContext | Literal[False]] = {}

    async def endpoints(self, host: str, *, is_pull: bool) -> list[Endpoint]:
        """Who is asked for what lies on a host, in this order. Raises: Invalid for a mirror that cannot be used."""
        mirrors = self._options.mirrors if is_pull and host == DEFAULT_HOST else ()
        server = DOCKER_HUB if host == DEFAULT_HOST else host
        return await run_blocking(lambda: [*map(self._mirror, mirrors), Endpoint(host, self._urls(server))])

    async def may_be_plain(self, url: URL) -> bool:
        """Whether this URL's host may be spoken to in plain http, and with a certificate that nobody checks."""
        return await run_blocking(lambda: self._may_be_plain(url))

    def _may_be_plain(self, url: URL) -> bool:
        host = url.host or ""
        if self._folders(_host_port(url), "*.crt"):
            return False
        return is_loopback(host) or _is_listed(host, url.explicit_port or url.port, self._options.insecure)

    async def context(self, url: URL, *, asked_by: URL | None = None) -> ssl.SSLContext | Literal[False]:
        """How aiohttp is to check a server: with a context of ours, which is never aiohttp's; False for not at all.

        A server that a registry refers to (for tokens, for blobs) may also be proven by that registry's CAs, as in
        Docker, where it has no certificate of its own there. Raises: Invalid for certificates that cannot be used.
        """
        key = (_host_port(url), _host_port(asked_by or url))
        if key not in self._contexts:
            self._contexts[key] = await run_blocking(lambda: self._make_context(url, asked_by or url))
        return self._contexts[key]

    def proxy(self, url: URL) -> URL | None:
        """The proxy through which this URL is asked for. Raises: Invalid for one that is no URL."""
        return proxy_for(url, self._options.environ)

    def _urls(self, server: str) -> tuple[URL, ...]:
        try:
            secure = URL(f"https://{server}")
            plain = URL(f"http://{server}")
        except ValueError as error:
            raise errors.Invalid(f"cannot use the registry {server}: {error}") from error
        return (secure, plain) if self._may_be_plain(secure) else (secure,)

    def _mirror(self, text: str) -> Endpoint:
        try:
            url = URL(text if "://" in text else f"https://{text}")
        except ValueError as error:
            raise errors.Invalid(f"cannot use the mirror {text}: {error}") from error
        if url.scheme not in ("https", "http") or not url.host or url.query or url.fragment or url.user:
            raise errors.Invalid(f"cannot use the mirror {text}: it must be https://HOST or http://HOST")
        if url.scheme == "http" and not self._may_be_plain(url):
            raise errors.Invalid(f"cannot use the mirror {text}: plain http needs {_host_port(url)} marked insecure")
        return Endpoint(_host_port(url), (url.with_path(url.path.rstrip("/")),), is_mirror=True)

    def _folders(self, host: str, pattern: str) -> list[Path]:
        """The files of this pattern for a host, in the order of their names (blocking)."""
        if not _FOLDER.fullmatch(host):
            return []
        folders = [directory / host for directory in self._options.certificate_directories]
        return [path for folder in folders for path in sorted(folder.glob(pattern))]

    def _make_context(self, url: URL, asked_by: URL) -> ssl.SSLContext | Literal[False]:
        host = _host_port(url)
        certificates = self._folders(host, "*.cert")
        authorities = self._folders(host, "*.crt") or self._folders(_host_port(asked_by), "*.crt")
        for path in self._folders(host, "*.key"):
            if path.with_suffix(".cert") not in certificates:
                raise errors.Invalid(f"cannot use the key {path}: there is no {path.stem}.cert beside it")
        may_be_plain = self._may_be_plain(url)
        if not certificates and (may_be_plain or not authorities):
            return False if may_be_plain else _machines_own()
        context = ssl.create_default_context()
        if may_be_plain:
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


@cache
def _machines_own() -> ssl.SSLContext:
    """What this machine trusts. Made at need: 60 ms go into the certificates of a usual machine."""
    return ssl.create_default_context()


def _load_pair(context: ssl.SSLContext, certificate: Path) -> None:
    key = certificate.with_suffix(".key")
    if not key.exists():
        raise errors.Invalid(f"cannot use the certificate {certificate}: there is no {key.name} beside it")
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # never asks at a terminal
    except (OSError, ssl.SSLError) as error:
        raise errors.Invalid(f"cannot use the certificate {certificate} with {key.name}: {error}") from error


def is_loopback(host: str) -> bool:
    """Whether a host, without port and brackets, is this machine by its name: localhost, 127.0.0.0/8, ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_port(url: URL) -> str:
    """``host`` or ``host:port``, the port where one was written."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host or ""
    return f"{host}:{url.explicit_port}" if url.explicit_port is not None else host


def _is_listed(host: str, port: int | None, entries: Iterable[str]) -> bool:
    """Whether a list of hosts and networks, each with a port or without, has this one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in entries:
        name, entry_port = _split_port(entry.strip().lower())
        if entry_port is not None and entry_port != port:
            continue
        if name == host.lower():
            return True
        try:
            if address is not None and address in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            pass  # a name, and not this one
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    if match := re.fullmatch(r"\[([0-9a-f:]+)\](?::([0-9]+))?|([^:]*):([0-9]+)", entry):
        port = match[2] or match[4]
        return match[1] or match[3], int(port) if port else None
    return entry, None


# ------------------------------------------------------------------------------------------------------ proxies


def proxy_for(url: URL, environ: Mapping[str, str]) -> URL | None:
    """The proxy that the environment names for this URL, as Go's programs (Docker among them) read it.

    ``NO_PROXY`` has hosts (with all below them), addresses and networks, each with a port or without, or ``*``. This
    machine itself is never asked for through a proxy. aiohttp's own reading (``trust_env``) is not used: it asks for
    loopback through the proxy, knows no networks, and takes credentials from ``~/.netrc`` along.

    Raises: Invalid for a proxy that is no URL.
    """
    name = f"{url.scheme}_proxy"
    proxy = environ.get(name) or environ.get(name.upper())
    host = url.host or ""
    if not proxy or is_loopback(host):
        return None
    exempt = [each.strip().lower() for each in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")]
    if "*" in exempt or _is_listed(host, url.port, exempt) or any(_is_below(url, each) for each in exempt):
        return None
    try:
        parsed = URL(proxy if "://" in proxy else f"http://{proxy}")
    except ValueError as error:
        raise errors.Invalid(f"cannot use the proxy in {name.upper()}: it is not a URL") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise errors.Invalid(f"cannot use the proxy in {name.upper()}: it must be http://HOST or https://HOST")
    return parsed


def _is_below(url: URL, entry: str) -> bool:
    """Whether the URL's host is below an entry of NO_PROXY: ``lan`` and ``.lan`` hold ``a.lan``."""
    name, port = _split_port(entry)
    name = name.removeprefix("*").lstrip(".")
    return bool(name) and (port is None or port == url.port) and (url.host or "").lower().endswith(f".{name}")

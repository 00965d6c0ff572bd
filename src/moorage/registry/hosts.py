"""Hosts of registries: their URLs, mirrors, proxies, and how their TLS certificates are verified.

Sources: Docker's ``registry`` package for docker.io's host and mirrors. On purpose stricter: a mirror over plain http
must be marked insecure as well.
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct, field
from yarl import URL

from moorage import errors
from moorage._lib.task_groups import require_asyncio
from moorage._lib.threads import run_blocking
from moorage.oci.reference import DEFAULT_HOST
from moorage.registry._trust import (
    CertificateStore,
    InsecureHosts,
    Lookup,
    is_in_list,
    is_loopback,
    resolve_host,
    split_entry,
)
from moorage.registry.origin import Origin
from moorage.timeouts import DEFAULT, RegistryTimeouts

__all__ = ("DOCKER_HUB", "Endpoint", "Hosts", "Options", "proxy_for")

DOCKER_HUB = "registry-1.docker.io"
"""The server of docker.io."""


class Options(Struct, frozen=True):
    """The options of a machine's administrator about registries."""

    insecure: tuple[str, ...] = ()
    """Hosts (``registry.lan``, ``10.0.0.1:5000``) or networks (``10.0.0.0/8``) whose certificate is not verified and
    that may be used over plain http. A host without a port means each port of it, a host with one only that. A name
    also counts where all of its addresses are in these networks, or are loopback."""

    mirrors: tuple[str, ...] = ()
    """URLs (``https://mirror.lan``) that are tried before docker.io, in this order, and only for pulls."""

    certificate_directories: tuple[Path, ...] = ()
    """Directories like ``/etc/docker/certs.d``: below ``HOST[:PORT]`` are ``*.crt`` (more CAs), and ``*.cert`` with
    ``*.key`` (a client certificate). A host with a CA there is used over verified TLS only, also on loopback."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """The environment with ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` (in lower or upper case)."""


class Endpoint(Struct, frozen=True):
    """One server of a host: its candidate URLs; the first that works is used."""

    name: str
    """Its name in messages and for credentials: ``docker.io``, ``localhost:5000``."""
    urls: tuple[URL, ...]
    is_mirror: bool = False


class Hosts:
    """Decisions about hosts for one operation; certificates are read once, names are resolved once."""

    def __init__(
        self, options: Options, *, timeouts: RegistryTimeouts = DEFAULT, lookup: Lookup = resolve_host
    ) -> None:
        self._options = options
        self._certificates = CertificateStore(options.certificate_directories)
        self._insecure = InsecureHosts(options.insecure, lookup, timeouts.registry_lookup)
        self._contexts: dict[tuple[Origin, Origin], ssl.SSLContext | Literal[False]] = {}

    @property
    def pinned(self) -> Mapping[str, Sequence[str]]:
        """The only addresses that connections to these names may use: the names were trusted because of them."""
        return self._insecure.addresses

    async def endpoints(self, host: str, *, is_pull: bool) -> list[Endpoint]:
        """The servers to ask for content of a host, in order.

        Raises:
            errors.Invalid: a mirror cannot be used
            errors.Unsupported: the event loop is not one of asyncio (trio)
        """
        require_asyncio(f"use the registry {host}")
        mirrors = self._options.mirrors if is_pull and host == DEFAULT_HOST else ()
        server = DOCKER_HUB if host == DEFAULT_HOST else host
        return [*[await self._mirror(each) for each in mirrors], Endpoint(host, await self._urls(server))]

    async def is_insecure(self, url: URL, *, referrer: URL | None = None) -> bool:
        """Whether this URL's host may be used over plain http, or with an unverified certificate.

        A server that a registry refers to (for tokens, for blobs) is only resolved if the registry itself is insecure,
        so that a DNS response never disables verification. A name that is reached through a proxy is not resolved: the
        proxy resolves it, perhaps differently. A host with a CA of its own is never insecure.
        """
        origin = Origin.of(url)
        if await run_blocking(lambda: self._certificates.has_authorities(origin)):
            return False
        if self._insecure.is_named(origin):
            return True
        if origin.host in (DOCKER_HUB, DEFAULT_HOST) or self.proxy(url) is not None:
            return False
        if referrer is not None and Origin.of(referrer) != origin and not await self.is_insecure(referrer):
            return False
        return await self._insecure.resolves_to_insecure(origin)

    async def context(self, url: URL, *, referrer: URL | None = None) -> ssl.SSLContext | Literal[False]:
        """The TLS context for a server, never aiohttp's own; False for no verification.

        ``referrer`` is the registry that refers to it, see ``CertificateStore``. Raises: Invalid for certificates that
        cannot be used.
        """
        origin, asker = Origin.of(url), Origin.of(referrer or url)
        if (origin, asker) not in self._contexts:
            is_insecure = await self.is_insecure(url, referrer=referrer)
            self._contexts[origin, asker] = await run_blocking(
                lambda: self._certificates.make_context(origin, asker, is_insecure=is_insecure)
            )
        return self._contexts[origin, asker]

    def proxy(self, url: URL) -> URL | None:
        """The proxy for this URL, None for a direct connection. Raises: Invalid for a malformed proxy URL."""
        return proxy_for(url, self._options.environ)

    async def _urls(self, server: str) -> tuple[URL, ...]:
        try:
            secure = URL(f"https://{server}")
            plain = URL(f"http://{server}")
            is_insecure = await self.is_insecure(secure)
        except ValueError as error:
            raise errors.Invalid(f"cannot use the registry {server}: {error}") from error
        return (secure, plain) if is_insecure else (secure,)

    async def _mirror(self, text: str) -> Endpoint:
        try:
            url = URL(text if "://" in text else f"https://{text}")
            origin = Origin.of(url)
        except ValueError as error:
            raise errors.Invalid(f"cannot use the mirror {text}: it must be https://HOST or http://HOST") from error
        name = f"{url.host_subcomponent}:{url.explicit_port}" if url.explicit_port else url.host_subcomponent or ""
        if url.query or url.fragment or url.user:
            raise errors.Invalid(f"cannot use the mirror {text}: it must be https://HOST or http://HOST")
        if not origin.is_secure and not await self.is_insecure(url):
            raise errors.Invalid(f"cannot use the mirror {text}: plain http needs {name} marked insecure")
        return Endpoint(name, (url.with_path(url.path.rstrip("/")),), is_mirror=True)


# ------------------------------------------------------------------------------------------------------ proxies


def proxy_for(url: URL, environ: Mapping[str, str]) -> URL | None:
    """The proxy that the environment names for this URL, read as Go programs such as Docker read it.

    ``NO_PROXY`` lists hosts (with their subdomains), addresses and networks, each with a port or without, or ``*``.
    This machine itself is never reached through a proxy. aiohttp's own reading (``trust_env``) is not used: it sends
    requests to loopback through the proxy, knows no networks, and adds credentials from ``~/.netrc``.

    Raises: Invalid for a malformed proxy URL.
    """
    name = f"{url.scheme}_proxy"
    proxy = environ.get(name) or environ.get(name.upper())
    host = url.host or ""
    if not proxy or is_loopback(host):
        return None
    exempt = [each.strip().lower() for each in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")]
    if "*" in exempt or is_in_list(host, url.port, exempt) or any(_is_below(url, each) for each in exempt):
        return None
    try:
        parsed = URL(proxy if "://" in proxy else f"http://{proxy}")
    except ValueError as error:
        raise errors.Invalid(f"cannot use the proxy in {name.upper()}: it is not a URL") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise errors.Invalid(f"cannot use the proxy in {name.upper()}: it must be http://HOST or https://HOST")
    return parsed


def _is_below(url: URL, entry: str) -> bool:
    """Whether the URL's host is a subdomain of an entry of NO_PROXY: ``a.lan`` is one of ``lan`` and ``.lan``."""
    name, port = split_entry(entry)
    name = name.removeprefix("*").lstrip(".")
    return bool(name) and (port is None or port == url.port) and (url.host or "").lower().endswith(f".{name}")

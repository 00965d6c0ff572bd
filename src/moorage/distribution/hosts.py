"""Which URL a registry's host is spoken to with, what proves who it is, and through which proxy.

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
from moorage._lib.threads import run_blocking
from moorage.distribution._insecure import InsecureHosts, Lookup, is_listed, is_loopback, look_up, split_entry
from moorage.distribution._tls import CertificateStore
from moorage.distribution.origin import Origin
from moorage.plugins.reference import DEFAULT_HOST
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("DOCKER_HUB", "Endpoint", "Hosts", "Options", "proxy_for")

DOCKER_HUB = "registry-1.docker.io"
"""Who answers for docker.io."""


class Options(Struct, frozen=True):
    """What the user of this machine has decided about registries."""

    insecure: tuple[str, ...] = ()
    """Hosts (``registry.lan``, ``10.0.0.1:5000``) or networks (``10.0.0.0/8``) whose certificate is not checked and
    that may be spoken to in plain http. A host without a port means each port of it, a host with one only that. A name
    also counts where all of its addresses are in these networks, or are loopback."""

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
    """The decisions of one operation; certificates are read once, names that decide something are resolved once."""

    def __init__(self, options: Options, *, timeouts: Timeouts = DEFAULT, lookup: Lookup = look_up) -> None:
        self._options = options
        self._certificates = CertificateStore(options.certificate_directories)
        self._insecure = InsecureHosts(options.insecure, lookup, timeouts.registry_lookup)
        self._contexts: dict[tuple[Origin, Origin], ssl.SSLContext | Literal[False]] = {}

    @property
    def pinned(self) -> Mapping[str, Sequence[str]]:
        """The only addresses that these names may be connected to: they were trusted because of them."""
        return self._insecure.addresses

    async def endpoints(self, host: str, *, is_pull: bool) -> list[Endpoint]:
        """Who is asked for what lies on a host, in this order. Raises: Invalid for a mirror that cannot be used."""
        mirrors = self._options.mirrors if is_pull and host == DEFAULT_HOST else ()
        server = DOCKER_HUB if host == DEFAULT_HOST else host
        return [*[await self._mirror(each) for each in mirrors], Endpoint(host, await self._urls(server))]

    async def is_insecure(self, url: URL, *, referrer: URL | None = None) -> bool:
        """Whether this URL's host may be spoken to in plain http, and with a certificate that is not checked.

        What a registry refers to (for tokens, for blobs) is only resolved where the registry itself is insecure, so
        that an answer of name servers never opens a way out of checked TLS. A name that is reached through a proxy is
        not resolved: the proxy does that, and differently perhaps. A host with a CA of its own is never insecure.
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
        """How aiohttp checks a server: by a context of ours, never aiohttp's; False for not at all.

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
        """The proxy through which this URL is requested. Raises: Invalid for one that is no URL."""
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
    if "*" in exempt or is_listed(host, url.port, exempt) or any(_is_below(url, each) for each in exempt):
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
    name, port = split_entry(entry)
    name = name.removeprefix("*").lstrip(".")
    return bool(name) and (port is None or port == url.port) and (url.host or "").lower().endswith(f".{name}")

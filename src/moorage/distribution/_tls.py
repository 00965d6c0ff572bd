"""How the certificate of a registry is checked, and which certificate is shown to it: the directories like certs.d.

Source: Docker's layout of ``certs.d``. On purpose stricter: a client's certificate is shown to the host it is for, and
to no other that this one refers to.
"""

import ssl
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from moorage import errors
from moorage.distribution.origin import Origin, split_host

__all__ = ("CertificateStore", "system_context", "verifying_context")


def verifying_context() -> ssl.SSLContext:
    """A new context that checks servers by what this machine trusts, in the same way on every version of Python.

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
    """What this machine trusts, nothing added. Made when needed: loading a usual machine's certificates takes 60 ms."""
    return verifying_context()


class CertificateStore:
    """Directories with ``HOST[:PORT]/*.crt`` (CAs), ``*.cert`` and ``*.key`` (our certificate). Every call blocks."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories

    def has_authorities(self, origin: Origin) -> bool:
        """Whether a CA is stored for this server, so that it is only spoken to with TLS that this CA proves."""
        return bool(self._files(origin, "*.crt"))

    def make_context(self, origin: Origin, referrer: Origin, *, is_insecure: bool) -> ssl.SSLContext | Literal[False]:
        """How aiohttp checks this server: by a context of ours, never aiohttp's; False for not at all.

        A server that a registry refers to (for tokens, for blobs) may also be proven by that registry's CAs, as in
        Docker, where it has no CA of its own there. Raises: Invalid for certificates that cannot be used.
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
        """The folders whose name means this server, however its host and port are written in it."""
        for directory in self._directories:
            try:
                folders = sorted(directory.iterdir())
            except OSError:  # most machines have none
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
        context.load_cert_chain(certificate, key, password=lambda: b"")  # never asks at a terminal
    except (OSError, ssl.SSLError) as error:
        raise errors.Invalid(f"cannot use the certificate {certificate} with {key.name}: {error}") from error

"""Failures below HTTP, by what they mean for the caller."""

import os
import ssl
from enum import Enum, auto

import aiohttp
from yarl import URL

from moorage.distribution._connections import exceeded_limit
from moorage.distribution._status import clean

__all__ = ("TransportError", "TransportErrorKind", "reason_of", "transport_error")


class TransportErrorKind(Enum):
    """What a failure means for the caller."""

    NO_CONNECTION = auto()  # no such name, nothing listens
    NO_TLS = auto()  # something listens and does not speak TLS, or does not answer at all
    UNTRUSTED = auto()  # its certificate is not good
    BROKEN = auto()  # cut, silent or slow after that
    REFUSED = auto()  # by us, so that another try does not help: a redirect, a limit, too much time


class TransportError(Exception):
    """One attempt failed below HTTP; the text is the cause in "cannot ...: <cause>"."""

    def __init__(self, text: str, kind: TransportErrorKind) -> None:
        super().__init__(text)
        self.kind = kind


def transport_error(error: Exception, url: URL, proxy: URL | None) -> TransportError:
    """An exception of aiohttp or of the system, as what it means."""
    kinds = TransportErrorKind
    peer = _peer(url) + (f" (through the proxy {_peer(proxy)})" if proxy else "")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return TransportError(f"the certificate of {peer} cannot be trusted: {reason_of(error)}", kinds.UNTRUSTED)
    if (tls := _tls_error(error)) is not None:
        if "ALERT" in str(getattr(tls, "reason", "")):  # with TLS 1.3 also in place of the first answer
            return TransportError(f"{peer} refuses TLS with us: {reason_of(tls)}", kinds.UNTRUSTED)
        return TransportError(f"{peer} does not speak TLS: {reason_of(tls)}", kinds.NO_TLS)
    if (limit := exceeded_limit(error, peer)) is not None:
        return TransportError(limit, kinds.REFUSED)
    return _connection_error(error, peer, is_tls=url.scheme == "https")


def _peer(url: URL) -> str:
    return f"{url.host_subcomponent}:{url.port}"  # an IPv6 address in brackets: ::1:1 would be another one


def _connection_error(error: Exception, peer: str, *, is_tls: bool) -> TransportError:
    kinds = TransportErrorKind
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return TransportError(f"{peer} cannot be reached in time", kinds.NO_TLS if is_tls else kinds.NO_CONNECTION)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return TransportError(f"{peer} cannot be reached: the proxy answers {error.status}", kinds.NO_TLS)
    if isinstance(error, aiohttp.ClientConnectorError):
        is_cut = is_tls and isinstance(error.os_error, ConnectionResetError | BrokenPipeError)
        kind = kinds.NO_TLS if is_cut else kinds.NO_CONNECTION
        return TransportError(f"{peer} cannot be reached: {reason_of(error)}", kind)
    if isinstance(error, TimeoutError):
        return TransportError(f"{peer} does not answer in time", kinds.BROKEN)
    if isinstance(error, aiohttp.ClientConnectionError | ConnectionError):
        return TransportError(f"the connection to {peer} broke: {reason_of(error)}", kinds.BROKEN)
    return TransportError(f"{peer} does not answer as HTTP does: {reason_of(error)}", kinds.BROKEN)


def reason_of(error: Exception) -> str:
    """The cause, without the addresses and flags that aiohttp and ssl add."""
    cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    reason = str(cause.reason or "").replace("_", " ").lower() if isinstance(cause, ssl.SSLError) else ""
    number = cause.errno if isinstance(cause, OSError) and not reason else None
    system = os.strerror(number).lower() if number is not None and number > 0 else getattr(cause, "strerror", None)
    text = getattr(cause, "verify_message", None) or reason or system or str(cause)
    return clean(str(text)) or type(cause).__name__


def _tls_error(error: Exception) -> ssl.SSLError | None:
    """What TLS says, wherever aiohttp has put it; also where it says nothing: a peer that ends the handshake."""
    candidates = (getattr(error, "os_error", None), error.__cause__, error)
    return next((each for each in candidates if isinstance(each, ssl.SSLError)), None)

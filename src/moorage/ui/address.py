"""Where the page listens, and what browsers see instead. Imports nothing slow: every start of an engine reads it."""

import ipaddress
from urllib.parse import urlsplit

from moorage import errors

__all__ = ("parse_listen", "parse_origin")


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or :PORT, where only this machine can connect.

    Raises:
        errors.Invalid: it is no such address, or others can reach it
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise errors.Invalid(f"cannot serve the page on {text!r}: it must be HOST:PORT, as in 127.0.0.1:8377")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise errors.Invalid(
            f"cannot serve the page on {text!r}: it has no TLS, so HOST must be 127.0.0.1, [::1] or localhost; "
            "from other machines use ssh -L, or a proxy with TLS and --origin"
        )
    return host, int(port)


def parse_origin(text: str) -> str:
    """The origin of a proxy, as browsers send it.

    Raises:
        errors.Invalid: it is no https://HOST[:PORT]
    """
    try:
        found = urlsplit(text.lower())
        _ = found.port
    except ValueError:
        found = urlsplit("")
    if found.scheme != "https" or not found.hostname or found.path.strip("/") or found.query or "@" in found.netloc:
        raise errors.Invalid(f"cannot use origin {text!r}: it must be https://HOST[:PORT]")
    return f"https://{found.netloc}"

"""Who may use the page: the token, the session, the Host and Origin of a request, and what a browser may do with it.

The token is for everything that shows something of the engine, because names, output and settings are not for every
user of the machine. It comes in a form and becomes a cookie, which pages of other origins cannot use: it is
``SameSite=Strict``, and a request that changes something needs the very origin of the page besides.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from msgspec import Struct

from moorage import errors

__all__ = ("HEADERS", "Access", "read_token")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
"""Of every answer. No script, style or picture but the files of this server; no markup from texts in scripts either."""

_LEAST_TOKEN = 20
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Access(Struct, frozen=True):
    """What requests must have."""

    token: str
    port: int
    """Of this server: browsers do not separate cookies by port, so it is in the name."""
    origin: str = ""
    """What browsers see where a proxy is before this server, ``https://HOST``; empty where none is."""

    @property
    def cookie(self) -> str:
        """The name of the cookie of the session."""
        return f"moorage-{self.port}"

    def check_host(self, request: web.BaseRequest) -> None:
        """Refuse a request to another name than this server has: a site of others may resolve to this machine.

        Raises:
            errors.Denied: it is to another host
        """
        host = request.headers.get("Host", "")
        try:
            parsed = urlsplit(f"//{host}")
            is_own = parsed.hostname in _LOCAL_NAMES and parsed.netloc == host and "@" not in host
            _ = parsed.port
        except ValueError:
            is_own = False
        if not is_own and not (self.origin and host == urlsplit(self.origin).netloc):
            raise errors.Denied("cannot answer: the request is to another host than this one")

    def check_origin(self, request: web.BaseRequest) -> None:
        """Refuse a request that a page of another origin sends, or that does not say what sends it.

        Raises:
            errors.Denied: it is from another origin
        """
        origin = request.headers.get("Origin", "")
        if origin not in (f"http://{request.headers.get('Host', '')}", self.origin or None):
            raise errors.Denied("cannot do this: the request is not from this page")

    def is_token(self, text: str) -> bool:
        """Whether this is the token; the time that takes says nothing of it."""
        return hmac.compare_digest(_digest(text), _digest(self.token))

    def is_known(self, request: web.BaseRequest) -> bool:
        """Whether the request has the cookie of a session."""
        given = request.cookies.get(self.cookie, "")
        return hmac.compare_digest(given.encode(errors="replace"), self._session().encode())

    def log_in(self, answer: web.Response) -> None:
        """Give the answer the cookie of a session, until the browser is closed."""
        is_secure = self.origin.startswith("https:")
        answer.set_cookie(self.cookie, self._session(), httponly=True, samesite="Strict", secure=is_secure, path="/")

    def log_out(self, answer: web.Response) -> None:
        """Remove the cookie."""
        answer.del_cookie(self.cookie, path="/", httponly=True, samesite="Strict")

    def _session(self) -> str:
        """Derived from the token, so that a session is valid as long as the token is, whichever process has it."""
        return hmac.new(self.token.encode(), b"moorage session", hashlib.sha256).hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def read_token(path: Path | None) -> str:
    """The token of a file, which is created for its owner only where it is missing; without a file, a new one.

    Raises:
        errors.Invalid: the file has no token, or others can read it
        OSError: it cannot be read or written
    """
    if path is None:
        return secrets.token_urlsafe(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read_token(path)
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
    return token


def _read_token(path: Path) -> str:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(4096).decode(errors="replace").strip()
    if mode & 0o077:
        raise errors.Invalid(f"cannot use {path}: others than its owner can read it; run: chmod 600 {path}")
    if len(text) < _LEAST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise errors.Invalid(f"cannot use {path}: it must have one token of at least {_LEAST_TOKEN} characters")
    return text

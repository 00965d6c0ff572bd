"""Credentials for registries, and the ``X-Registry-Auth`` header that carries them in Docker's API."""

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import single_line
from moorage._lib.values import repr_without

__all__ = (
    "ANONYMOUS",
    "Credentials",
    "CredentialsFor",
    "credentials_for",
    "decode_registry_auth",
    "encode_registry_auth",
    "parse_credentials",
)

_HEADER_LIMIT = 64 * 1024  # characters of X-Registry-Auth; tokens have some thousands
_ABSENCE = "moorage.absence"  # Moorage's own key in X-Registry-Auth; other engines ignore it


class Credentials(Struct, frozen=True):
    """A user name with a secret of any kind. ``repr`` shows no secrets.

    ``username`` and ``password`` are what ``docker login`` asks for.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """An OAuth2 refresh token, used instead of name and password."""
    registry_token: str = ""
    """A bearer token that is sent unchanged; no token server is used."""
    reason_absent: str = ""
    """Why configured credentials are not available; shown if a registry requires credentials."""

    __repr__ = repr_without("password", "identity_token", "registry_token")

    @property
    def is_anonymous(self) -> bool:
        """Whether there are no credentials."""
        return not (self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str | None:
        """The header of scheme Basic, in UTF-8; None without a user name."""
        if not self.username or self.identity_token:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


ANONYMOUS = Credentials()

CredentialsFor = Callable[[str], Awaitable[Credentials]]
"""The credentials for a registry's host (``docker.io``, ``localhost:5000``). Raises: MoorageError."""


def credentials_for(host: str, credentials: Credentials) -> CredentialsFor:
    """These credentials for this host, none for any other (a mirror)."""

    async def find(requested: str) -> Credentials:
        return credentials if requested == host else ANONYMOUS

    return find


# ---------------------------------------------------------------------------------------------- X-Registry-Auth


def decode_registry_auth(header: str) -> Credentials:
    """Read the ``X-Registry-Auth`` header of Docker's API; an empty one means anonymous.

    It is base64 (URL or standard alphabet, padded or not) of a JSON object with any of ``username``, ``password``,
    ``auth`` (base64 of name:password, counts where there is no username), ``identitytoken``, ``registrytoken``; other
    keys are ignored, also ``serveraddress``: a plugin's reference says where it comes from. Letter case of keys
    does not matter, as in Go. Raises: Invalid; Docker would continue without credentials and fail later.
    """
    if not header.strip():
        return ANONYMOUS
    if len(header) > _HEADER_LIMIT:
        raise errors.Invalid(f"cannot read X-Registry-Auth: it is longer than {_HEADER_LIMIT} characters")
    try:
        document = msgspec.json.decode(_from_base64(header.strip()))
    except (ValueError, RecursionError) as error:  # binascii's and msgspec's errors are ValueErrors
        raise errors.Invalid("cannot read X-Registry-Auth: it is not JSON in base64") from error
    if document is None:
        return ANONYMOUS
    if not isinstance(document, dict):
        raise errors.Invalid("cannot read X-Registry-Auth: it is not a JSON object")
    return parse_credentials(document, "X-Registry-Auth")


def encode_registry_auth(credentials: Credentials) -> str:
    """The ``X-Registry-Auth`` header for these credentials; "" for none."""
    if credentials.is_anonymous:
        return _encode({_ABSENCE: credentials.reason_absent}) if credentials.reason_absent else ""
    document = {
        "username": credentials.username,
        "password": credentials.password,
        "identitytoken": credentials.identity_token,
        "registrytoken": credentials.registry_token,
    }
    return _encode(document)


def _encode(document: Mapping[str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(document)).decode()


def parse_credentials(document: Mapping[str, object], where: str) -> Credentials:
    """Credentials from one object in Docker's form; see ``decode_registry_auth``. Raises: Invalid naming ``where``."""
    folded = {key.lower(): value for key, value in document.items()}
    texts: dict[str, str] = {}
    for key in ("username", "password", "auth", "identitytoken", "registrytoken", _ABSENCE):
        value = folded.get(key)
        if value is not None and not isinstance(value, str):
            raise errors.Invalid(f"cannot read {where}: {key} is not a string")
        texts[key] = value or ""
    username, password = texts["username"], texts["password"]
    if texts["auth"] and not username:
        username, password = _split_auth(texts["auth"], where)
    return Credentials(username, password, texts["identitytoken"], texts["registrytoken"], single_line(texts[_ABSENCE]))


def _split_auth(auth: str, where: str) -> tuple[str, str]:
    try:
        username, colon, password = _from_base64(auth).decode().partition(":")
    except ValueError as error:
        raise errors.Invalid(f"cannot read {where}: auth is not base64 of name:password") from error
    if not colon:
        raise errors.Invalid(f"cannot read {where}: auth has no colon between name and password")
    return username, password.strip("\0")


def _from_base64(text: str) -> bytes:
    text = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error

"""Who asks a registry: credentials, and the Authorization headers that answer the challenges of registries.

Sources: the distribution project's token specification (``docs/spec/auth/{token,oauth}.md``, ``scope.md``), and
Docker for the class ``repository(plugin)`` and for ``X-Registry-Auth``.
"""

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Mapping

import anyio
import msgspec
from msgspec import Struct
from yarl import URL

from moorage import errors
from moorage._lib.values import repr_without
from moorage.distribution._challenges import Challenge
from moorage.distribution._status import clean, error_kind, status_text
from moorage.distribution.origin import Origin

__all__ = (
    "ANONYMOUS",
    "Authorizer",
    "Credentials",
    "CredentialsFor",
    "Scope",
    "TokenReply",
    "TokenRequest",
    "credentials_for",
    "decode_registry_auth",
    "encode_registry_auth",
    "read_userpass",
)

CLIENT_ID = "moorage"

_HEADER_LIMIT = 64 * 1024  # characters of X-Registry-Auth; tokens have some thousands
_ABSENCE = "moorage.absence"  # our own key in X-Registry-Auth; other engines pass over it
_LIFETIME = 60.0  # seconds a token lasts where its server does not say
_LONGEST_LIFETIME = 86400.0  # seconds that are believed; a server may send any number
_MARGIN = 5.0  # seconds before its end at which a token is not used any more
_REFUSED = (400, 403)  # what a token server says to a scope that it does not know


class Credentials(Struct, frozen=True):
    """What somebody proves with who he is. Nothing of it is shown by ``repr``, except who."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """An OAuth2 refresh token; it stands for name and password."""
    registry_token: str = ""
    """A bearer token that is sent as it is; nothing is requested from a token server."""
    absence: str = ""
    """Why there are no credentials where some were configured; for errors, where a registry turns out to want them."""

    __repr__ = repr_without("password", "identity_token", "registry_token")

    @property
    def is_anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str | None:
        """The Authorization of scheme Basic, in UTF-8; None without a name."""
        if not self.username or self.identity_token:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


ANONYMOUS = Credentials()

CredentialsFor = Callable[[str], Awaitable[Credentials]]
"""The credentials for a registry's host (``docker.io``, ``localhost:5000``). Raises: MoorageError."""


def credentials_for(host: str, credentials: Credentials) -> CredentialsFor:
    """These credentials for this host, and none for any other (a mirror)."""

    async def find(asked: str) -> Credentials:
        return credentials if asked == host else ANONYMOUS

    return find


# ---------------------------------------------------------------------------------------------- X-Registry-Auth


def decode_registry_auth(header: str) -> Credentials:
    """Read the ``X-Registry-Auth`` header of Docker's API; one that is empty says anonymous.

    It is base64 (URL or standard alphabet, padded or not) of a JSON object with any of ``username``, ``password``,
    ``auth`` (base64 of name:password, counts where there is no username), ``identitytoken``, ``registrytoken``; other
    keys are passed over, also ``serveraddress``: a plugin's reference says where it comes from. Letter case of keys
    does not matter, as in Go. Raises: Invalid; Docker would go on without credentials and fail later, with other words.
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
    return read_userpass(document, "X-Registry-Auth")


def encode_registry_auth(credentials: Credentials) -> str:
    """The ``X-Registry-Auth`` header for these credentials; "" for none."""
    if credentials.is_anonymous:
        return _encode({_ABSENCE: credentials.absence}) if credentials.absence else ""
    document = {
        "username": credentials.username,
        "password": credentials.password,
        "identitytoken": credentials.identity_token,
        "registrytoken": credentials.registry_token,
    }
    return _encode(document)


def _encode(document: Mapping[str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(document)).decode()


def read_userpass(document: Mapping[str, object], where: str) -> Credentials:
    """Credentials from one object in Docker's form; see ``decode_registry_auth``. Raises: Invalid naming ``where``."""
    folded = {key.lower(): value for key, value in document.items()}
    texts: dict[str, str] = {}
    for key in ("username", "password", "auth", "identitytoken", "registrytoken", _ABSENCE):
        value = folded.get(key)
        if value is not None and not isinstance(value, str):
            raise errors.Invalid(f"cannot read {where}: {key} is not a text")
        texts[key] = value or ""
    username, password = texts["username"], texts["password"]
    if texts["auth"] and not username:
        username, password = _split_auth(texts["auth"], where)
    return Credentials(username, password, texts["identitytoken"], texts["registrytoken"], clean(texts[_ABSENCE]))


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


# ------------------------------------------------------------------------------------------------------- tokens


class Scope(Struct, frozen=True):
    """What is asked of one repository: its path and the actions, ``pull`` or ``pull,push``."""

    path: str
    actions: str

    def of_class(self, name: str) -> str:
        """The text of it for a token server; ``name`` is ``repository`` or ``repository(plugin)``."""
        return f"{name}:{self.path}:{self.actions}"


class TokenRequest(Struct, frozen=True):
    """A request to a token server: GET with the query in the URL, or POST where there is a form."""

    url: URL
    authorization: str | None = None
    form: Mapping[str, str] | None = None
    scopes: tuple[str, ...] = ()
    """What is requested, for errors."""

    __repr__ = repr_without("authorization", "form")

    def server_of(self, registry: str) -> str:
        """Whom this request goes to, for errors; the registry is the one that named it."""
        return f"the token server {self.url.with_query(None)} of {registry}"

    def refusal(self, registry: str, reply: "TokenReply", note: str = "") -> errors.MoorageError:
        """The failure that an answer other than 200 is: with server, scopes, status, and the server's own words."""
        server, status, scopes = self.url.with_query(None), status_text(reply.status), " ".join(self.scopes)
        text = f"the token server {server} of {registry} answers {status} to a request for the scope {scopes}"
        if not scopes:
            text = f"the token server {server} of {registry} answers {status} to a log-in"
        return error_kind(reply.status)(text + (f": {reply.words}" if reply.words else "") + note)


class TokenReply(Struct, frozen=True):
    """What a token server answered: the status, the body, and the server's words where it refused."""

    status: int
    body: bytes
    words: str = ""

    __repr__ = repr_without("body")


class _Token(Struct, frozen=True):
    header: str
    ends_at: float  # time.monotonic

    __repr__ = repr_without("header")


class Authorizer:
    """The Authorization for one registry during one operation; tokens are stored until they expire.

    ``send`` carries a request to the token server and must refuse a realm that credentials may not be sent to. With
    ``is_login`` an identity token is requested as well, for clients that store it in place of the password.
    """

    def __init__(
        self,
        host: str,
        credentials: Credentials,
        send: Callable[[TokenRequest], Awaitable[TokenReply]],
        *,
        is_login: bool = False,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._send = send
        self._is_login = is_login
        self.identity_token = credentials.identity_token
        """The one that was given, or the one that the token server granted in its place."""
        self.requested: tuple[str, ...] = ()
        """The scopes that the last token was granted for."""
        self._tokens: dict[frozenset[Scope], _Token] = {}
        self._is_basic = False
        self._style = 0
        self._lock = anyio.Lock()

    @property
    def is_anonymous(self) -> bool:
        """Whether it has no credentials to show."""
        return self._credentials.is_anonymous

    @property
    def anonymity(self) -> str:
        """That there are no credentials, and why."""
        absence = self._credentials.absence
        return "no credentials were given" + (f": {absence}" if absence else "")

    def known(self, scopes: frozenset[Scope]) -> str | None:
        """The header that this needs, as far as it is known without asking anybody."""
        if self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        if self._is_basic:
            return self._credentials.basic
        token = self._tokens.get(scopes)
        return token.header if token and time.monotonic() < token.ends_at else None

    async def answer(self, challenges: list[Challenge], scopes: frozenset[Scope], refused: str | None) -> str | None:
        """A header that answers these challenges and is not ``refused``, the one they came for; None: there is none.

        Called again with what it returned, it tries the next form of scopes, so a caller loops until None.

        Raises: Unauthorized, Denied where the token server refuses; Unavailable.
        """
        if self._credentials.registry_token:
            return None
        bearer = next((each for each in challenges if each.scheme == "bearer" and "realm" in each.parameters), None)
        async with self._lock:
            known = self.known(scopes)
            if known is not None and known != refused:
                return known  # another request was faster
            if bearer is None:
                return self._answer_basic(challenges, refused)
            return await self._answer_bearer(bearer.parameters, scopes, refused)

    def _answer_basic(self, challenges: list[Challenge], refused: str | None) -> str | None:
        basic = self._credentials.basic
        if refused == basic or not any(each.scheme == "basic" for each in challenges):
            return None
        self._is_basic = basic is not None
        return basic

    async def _answer_bearer(
        self, parameters: Mapping[str, str], scopes: frozenset[Scope], refused: str | None
    ) -> str | None:
        """A token for the plugin class and the plain one; for the plain one where a server does not take that.

        A token server is to pass over a class that it does not know, but some refuse the request, and some grant
        nothing at all. The plugin class alone comes last, only where the two others were refused by the token server.
        """
        token = self._tokens.pop(scopes, None)
        if token is not None and token.header == refused and time.monotonic() < token.ends_at:
            self._style += 1  # it is fresh and does not do
        styles = _styles(scopes, parameters.get("scope", ""))
        refusal: errors.MoorageError | None = None
        while self._style < len(styles):
            if self._style == 2 and refusal is None:
                break
            request = self._request(parameters, styles[self._style])
            reply = await self._send(request)
            if reply.status == 200:
                return self._accept(request, reply, scopes)
            if self._style < 2:  # what is said of the plugin class alone explains the least
                refusal = self._refusal(request, reply)
            if reply.status not in _REFUSED and not (reply.status == 401 and self.is_anonymous):
                break  # a wrong password is not shown three times: that may lock the account
            self._style += 1
        self._style = 0
        if refusal is not None:
            raise refusal
        return None

    def _accept(self, request: TokenRequest, reply: TokenReply, scopes: frozenset[Scope]) -> str:
        token, identity = _read_token(reply.body, request.server_of(self._host))
        self._tokens[scopes] = token
        self.requested = request.scopes
        self.identity_token = identity or self.identity_token
        return token.header

    def _request(self, parameters: Mapping[str, str], scopes: list[str]) -> TokenRequest:
        try:
            realm = URL(parameters["realm"])
            Origin.of(realm)
        except ValueError as error:
            raise errors.Unavailable(f"the realm that {self._host} names is no URL") from error
        service = {"service": parameters["service"]} if "service" in parameters else {}
        if self._credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token,
                "client_id": CLIENT_ID,
                "scope": " ".join(scopes),
                **service,
            }
            return TokenRequest(realm, form=form, scopes=tuple(scopes))
        account = {"account": self._credentials.username} if self._credentials.basic else {}
        login = {"client_id": CLIENT_ID, "offline_token": "true"} if self._is_login else {}
        query = [*account.items(), *service.items(), *login.items(), *(("scope", each) for each in scopes)]
        return TokenRequest(realm.extend_query(query), self._credentials.basic, scopes=tuple(scopes))

    def _refusal(self, request: TokenRequest, reply: TokenReply) -> errors.MoorageError:
        note = ""
        if reply.status == 401:
            note = f" ({self.anonymity})" if self.is_anonymous else " (the credentials were not accepted)"
        return request.refusal(self._host, reply, note)


def _styles(scopes: frozenset[Scope], challenged: str) -> list[list[str]]:
    """The forms in which scopes are asked for, in order: both classes, only the plain one, only that of plugins."""
    ordered = sorted(scopes, key=lambda scope: (scope.path, scope.actions))
    plain = [scope.of_class("repository") for scope in ordered]
    plugin = [scope.of_class("repository(plugin)") for scope in ordered]
    extra = [each for each in challenged.split() if not any(_is_within(each, asked) for asked in plain + plugin)]
    return [plugin + plain + extra, plain + extra, plugin] if ordered else [extra]


def _is_within(scope: str, asked: str) -> bool:
    """Whether one scope's text asks for nothing that another does not; actions come in any order."""
    name, _, actions = scope.rpartition(":")
    of, _, all_actions = asked.rpartition(":")
    return name == of and set(actions.split(",")) <= set(all_actions.split(","))


def _read_token(body: bytes, server: str) -> tuple[_Token, str]:
    """The token of a reply (``token`` or ``access_token``, ``expires_in`` seconds from now), and its identity token.

    Raises: Unavailable naming ``server``.
    """
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise errors.Unavailable(f"{server} does not answer in JSON") from error
    fields = document if isinstance(document, dict) else {}
    token = fields.get("token") or fields.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise errors.Unavailable(f"{server} answers without a token")
    lifetime, identity = fields.get("expires_in"), fields.get("refresh_token")
    if not isinstance(lifetime, int | float) or lifetime <= 0:
        lifetime = _LIFETIME
    lifetime = min(lifetime, _LONGEST_LIFETIME)
    made = _Token(f"Bearer {token}", time.monotonic() + lifetime - min(_MARGIN, lifetime / 2))
    return made, identity if isinstance(identity, str) else ""

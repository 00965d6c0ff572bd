"""Authorization headers that answer the challenges (``WWW-Authenticate``) of registries, and tokens for them.

Sources: RFC 9110 section 11; the distribution project's token specification (``docs/spec/auth/{token,oauth}.md``,
``scope.md``); Docker for the class ``repository(plugin)``.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import anyio
import msgspec
from msgspec import Struct
from yarl import URL

from moorage import errors
from moorage._lib.values import repr_without
from moorage.registry._retry import error_kind, status_text
from moorage.registry.credentials import Credentials
from moorage.registry.origin import Origin

__all__ = ("Authorizer", "Challenge", "Scope", "TokenReply", "TokenRequest", "parse_challenges")

CLIENT_ID = "moorage"
_LIFETIME = 60.0  # seconds a token lasts if its server does not say
_LONGEST_LIFETIME = 86400.0  # seconds that are accepted; a server may send any number
_MARGIN = 5.0  # seconds before it expires in which a token is no longer used
_REFUSED = (400, 403)  # the answers of token servers to an unknown scope
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[ \t,]*({_TOKEN})(?:[ \t]+|(?=,)|$)")
_PARAMETER = re.compile(rf'[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))[ \t]*(?=,|$)', re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")


class Challenge(Struct, frozen=True):
    """One authentication scheme that a server accepts. Scheme and parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` headers, in order; malformed challenges are ignored."""
    found: list[Challenge] = []
    for header in headers:
        at = 0
        while scheme := _SCHEME.match(header, at):
            parameters: dict[str, str] = {}
            at = scheme.end()
            while parameter := _PARAMETER.match(header, at):
                name, quoted, plain = parameter.groups()
                value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
                parameters.setdefault(name.lower(), value)
                at = parameter.end()
            if not parameters and (blob := _TOKEN68.match(header, at)) and "=" in blob[0]:
                at = blob.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


class Scope(Struct, frozen=True):
    """Access to one repository: its path and the actions, ``pull`` or ``pull,push``."""

    path: str
    actions: str

    def of_class(self, name: str) -> str:
        """The scope as a token server reads it; ``name`` is ``repository`` or ``repository(plugin)``."""
        return f"{name}:{self.path}:{self.actions}"


class TokenRequest(Struct, frozen=True):
    """A request to a token server: GET with the query in the URL, or POST with a form if there is one."""

    url: URL
    authorization: str | None = None
    form: Mapping[str, str] | None = None
    scopes: tuple[str, ...] = ()
    """The requested scopes, for error messages."""

    __repr__ = repr_without("authorization", "form")

    def server_of(self, registry: str) -> str:
        """The token server, for error messages; ``registry`` is the registry that named it."""
        return f"the token server {self.url.with_query(None)} of {registry}"

    def refusal(self, registry: str, reply: "TokenReply", note: str = "") -> errors.MoorageError:
        """The error for a response other than 200: server, scopes, status, and the server's message."""
        server, status, scopes = self.url.with_query(None), status_text(reply.status), " ".join(self.scopes)
        text = f"the token server {server} of {registry} answers {status} to a request for the scope {scopes}"
        if not scopes:
            text = f"the token server {server} of {registry} answers {status} to a log-in"
        return error_kind(reply.status)(text + (f": {reply.message}" if reply.message else "") + note)


class TokenReply(Struct, frozen=True):
    """The response of a token server: status, body, and the server's message if it refused."""

    status: int
    body: bytes
    message: str = ""

    __repr__ = repr_without("body")


class _Token(Struct, frozen=True):
    header: str
    ends_at: float  # time.monotonic

    __repr__ = repr_without("header")


class Authorizer:
    """The Authorization for one registry during one operation; tokens are stored until they expire.

    ``send`` carries a request to the token server and must refuse a realm that credentials may not be sent to. With
    ``is_login`` an identity token is requested as well, for clients that store it instead of the password.
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
        """The given one, or the one that the token server granted instead."""
        self.requested: tuple[str, ...] = ()
        """The scopes of the last token."""
        self._tokens: dict[frozenset[Scope], _Token] = {}
        self._is_basic = False
        self._form = 0
        self._lock = anyio.Lock()

    @property
    def is_anonymous(self) -> bool:
        """Whether there are no credentials."""
        return self._credentials.is_anonymous

    @property
    def anonymous_reason(self) -> str:
        """ "no credentials were given", and why, for error messages."""
        reason_absent = self._credentials.reason_absent
        return "no credentials were given" + (f": {reason_absent}" if reason_absent else "")

    def known(self, scopes: frozenset[Scope]) -> str | None:
        """The Authorization header for these scopes if it is known without a request; None otherwise."""
        if self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        if self._is_basic:
            return self._credentials.basic
        token = self._tokens.get(scopes)
        return token.header if token and time.monotonic() < token.ends_at else None

    async def answer(self, challenges: list[Challenge], scopes: frozenset[Scope], refused: str | None) -> str | None:
        """A header that answers these challenges and differs from ``refused``; None if there is none.

        Called again with the header that it returned, it tries the next form of the scopes: callers loop until None.

        Raises: Unauthorized, Denied where the token server refuses; Unavailable.
        """
        if self._credentials.registry_token:
            return None
        bearer = next((each for each in challenges if each.scheme == "bearer" and "realm" in each.parameters), None)
        async with self._lock:
            known = self.known(scopes)
            if known is not None and known != refused:
                return known  # another request has fetched it meanwhile
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
        """A token for the plugin class and the plain class; for the plain class if the server refuses both.

        A token server is to pass over a class that it does not know, but some refuse the request, and some grant
        nothing at all. The plugin class alone comes last, only where the two others were refused by the token server.
        """
        token = self._tokens.pop(scopes, None)
        if token is not None and token.header == refused and time.monotonic() < token.ends_at:
            self._form += 1  # it has not expired, and was refused
        forms = _scope_forms(scopes, parameters.get("scope", ""))
        refusal: errors.MoorageError | None = None
        while self._form < len(forms):
            if self._form == 2 and refusal is None:
                break
            request = self._request(parameters, forms[self._form])
            reply = await self._send(request)
            if reply.status == 200:
                return self._accept(request, reply, scopes)
            if self._form < 2:  # a refusal of the plugin class alone explains the least
                refusal = self._refusal(request, reply)
            if reply.status not in _REFUSED and not (reply.status == 401 and self.is_anonymous):
                break  # a wrong password is not sent three times: that may lock the account
            self._form += 1
        self._form = 0
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
            note = f" ({self.anonymous_reason})" if self.is_anonymous else " (the credentials were not accepted)"
        return request.refusal(self._host, reply, note)


def _scope_forms(scopes: frozenset[Scope], challenged: str) -> list[list[str]]:
    """The forms in which scopes are requested, in order: both classes, only the plain one, only that of plugins."""
    ordered = sorted(scopes, key=lambda scope: (scope.path, scope.actions))
    plain = [scope.of_class("repository") for scope in ordered]
    plugin = [scope.of_class("repository(plugin)") for scope in ordered]
    extra = [
        each for each in challenged.split() if not any(_is_within(each, requested) for requested in plain + plugin)
    ]
    return [plugin + plain + extra, plain + extra, plugin] if ordered else [extra]


def _is_within(scope: str, requested: str) -> bool:
    """Whether one scope is part of another one; actions come in any order."""
    name, _, actions = scope.rpartition(":")
    of, _, all_actions = requested.rpartition(":")
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

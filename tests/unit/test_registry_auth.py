"""Reading credentials and challenges, and which tokens are requested."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.registry._authorization import Authorizer, Challenge, Scope, TokenReply, TokenRequest, parse_challenges
from moorage.registry.credentials import ANONYMOUS, Credentials, credentials_for, decode_registry_auth

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

SCOPES = frozenset((Scope("a/b", "pull"),))
PLUGIN, PLAIN = "repository(plugin):a/b:pull", "repository:a/b:pull"
ME = Credentials("me", "secret")


def header(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


# X-Registry-Auth


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"username": "me", "password": "se:cret", "serveraddress": "x"}, Credentials("me", "se:cret")),
        ({"auth": base64.b64encode(b"me:se:cret").decode()}, Credentials("me", "se:cret")),
        ({"auth": base64.b64encode(b"other:one").decode(), "username": "me"}, Credentials("me", "")),
        ({"identitytoken": "refresh"}, Credentials(identity_token="refresh")),
        ({"IdentityToken": "refresh", "Username": "me"}, Credentials("me", identity_token="refresh")),
        ({"registrytoken": "bearer"}, Credentials(registry_token="bearer")),
        ({"username": "mé ~ÿ", "password": None}, Credentials("mé ~ÿ")),
        ({}, ANONYMOUS),
        (None, ANONYMOUS),
    ],
)
def test_d05_the_header_is_read_in_all_its_forms(document: object, expected: Credentials) -> None:
    assert decode_registry_auth(header(document)) == expected
    assert decode_registry_auth(header(document).rstrip("=")) == expected
    assert decode_registry_auth(base64.b64encode(json.dumps(document).encode()).decode()) == expected


def test_d05_an_empty_header_is_anonymous() -> None:
    assert decode_registry_auth("").is_anonymous
    assert decode_registry_auth(" \n").is_anonymous


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("!", "not JSON in base64"),
        (header({})[:-2] + "A", "not JSON in base64"),
        (base64.b64encode(b"[" * 20000).decode(), "not JSON in base64"),
        (header([1]), "not a JSON object"),
        (header({"username": 1}), "username is not a string"),
        (header({"auth": "%"}), "auth is not base64"),
        (header({"auth": base64.b64encode(b"me").decode()}), "no colon"),
        ("A" * 70000, "longer than"),
    ],
)
def test_d05_a_header_that_cannot_be_read_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(errors.Invalid, match=complaint):
        decode_registry_auth(text)


@given(st.text(), st.text())
def test_d05_any_name_and_password_come_through(username: str, password: str) -> None:
    found = decode_registry_auth(header({"username": username, "password": password}))
    assert (found.username, found.password) == (username, password)


@given(st.text())
def test_d05_no_header_does_anything_but_be_read_or_refused(text: str) -> None:
    try:
        decode_registry_auth(text)
    except errors.Invalid:
        pass


def test_d05_no_secret_is_shown() -> None:
    shown = repr(Credentials("me", "hidden-1", "hidden-2", "hidden-3"))
    assert "me" in shown
    assert "hidden" not in shown


async def test_d05_credentials_are_for_one_host_only() -> None:
    find = credentials_for("docker.io", ME)
    assert await find("docker.io") == ME
    assert (await find("mirror.lan")).is_anonymous


# challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://auth.lan/token",service="registry.lan",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://auth.lan/token", "service": "registry.lan", "scope": PLAIN + ",push"})],
        ),
        (['Basic realm="a, b=\\"c\\" \\\\"'], [("basic", {"realm": 'a, b="c" \\'})]),
        (["BASIC realm=plain"], [("basic", {"realm": "plain"})]),
        (
            ['Basic realm="x", Bearer realm="y" , service = "z"'],
            [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})],
        ),
        (["Negotiate", "Bearer realm=y"], [("negotiate", {}), ("bearer", {"realm": "y"})]),
        (["Negotiate, Basic realm=y"], [("negotiate", {}), ("basic", {"realm": "y"})]),
        (["NTLM TlRMTVNTUAAC=, Basic realm=y"], [("ntlm", {}), ("basic", {"realm": "y"})]),
        (["Bearer"], [("bearer", {})]),
        ([""], []),
        (["=,;"], []),
    ],
)
def test_d05_challenges_are_read(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(each.scheme, each.parameters) for each in parse_challenges(headers)] == expected


@given(st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), st.text(st.characters(codec="latin-1"))))
def test_d05_any_quoted_value_comes_through(parameters: dict[str, str]) -> None:
    quoted = (
        f'{key}="{value.translate({34: chr(92) + chr(34), 92: chr(92) * 2})}"' for key, value in parameters.items()
    )
    (found,) = parse_challenges(["Bearer " + ", ".join(quoted)])
    assert found == Challenge("bearer", parameters)


@given(st.text())
def test_d05_no_challenge_makes_it_fail(text: str) -> None:
    parse_challenges([text, f"Bearer {text}", f'Bearer realm="{text}'])


# which tokens are requested


class TokenServer:
    """Answers as configured; notes the scopes of each request."""

    def __init__(self, answer: Callable[[list[str]], TokenReply]) -> None:
        self.requests: list[TokenRequest] = []
        self._answer = answer

    async def __call__(self, request: TokenRequest) -> TokenReply:
        self.requests.append(request)
        return self._answer(self.scopes[-1])

    @property
    def scopes(self) -> list[list[str]]:
        return [(each.form["scope"].split() if each.form else each.url.query.getall("scope")) for each in self.requests]


def granted(token: str = "t", **fields: Any) -> TokenReply:
    return TokenReply(200, json.dumps({"token": token, **fields}).encode())


BEARER = parse_challenges([f'Bearer realm="https://auth.lan/token?x=1",service="reg",scope="{PLAIN}"'])


async def test_d05_both_classes_are_requested_and_the_token_is_reused() -> None:
    server = TokenServer(lambda scopes: granted())
    authorizer = Authorizer("reg.lan", ME, server)
    assert authorizer.known(SCOPES) is None
    assert await authorizer.answer(BEARER, SCOPES, None) == "Bearer t"
    assert authorizer.known(SCOPES) == "Bearer t"
    assert await authorizer.answer(BEARER, SCOPES, None) == "Bearer t"
    (request,) = server.requests
    assert server.scopes == [[PLUGIN, PLAIN]]
    assert request.authorization == "Basic bWU6c2VjcmV0"
    assert dict(request.url.query) | {"scope": ""} == {"x": "1", "service": "reg", "account": "me", "scope": ""}


async def test_d05_a_token_is_requested_again_when_it_has_expired() -> None:
    server = TokenServer(lambda scopes: granted(expires_in=1e-9))
    authorizer = Authorizer("reg.lan", ME, server)
    await authorizer.answer(BEARER, SCOPES, None)
    assert authorizer.known(SCOPES) is None
    assert await authorizer.answer(BEARER, SCOPES, "Bearer t") == "Bearer t"
    assert server.scopes == [[PLUGIN, PLAIN]] * 2


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("accepted", [[PLAIN], [PLUGIN]])
async def test_d05_a_server_that_refuses_a_class_gets_the_other(status: int, accepted: list[str]) -> None:
    server = TokenServer(lambda scopes: granted() if scopes == accepted else TokenReply(status, b"", "no such class"))
    assert await Authorizer("reg.lan", ME, server).answer(BEARER, SCOPES, None) == "Bearer t"
    assert server.scopes == [[PLUGIN, PLAIN], [PLAIN], [PLUGIN]][: len(server.scopes)]


async def test_d05_a_server_that_grants_nothing_for_both_gets_the_plain_class_then_no_more() -> None:
    server = TokenServer(lambda scopes: granted("-".join(scopes)))
    authorizer = Authorizer("reg.lan", ME, server)
    first = await authorizer.answer(BEARER, SCOPES, None)
    second = await authorizer.answer(BEARER, SCOPES, first)
    assert second == f"Bearer {PLAIN}"
    assert await authorizer.answer(BEARER, SCOPES, second) is None
    assert len(server.requests) == 2


async def test_d05_a_wrong_password_is_shown_once() -> None:
    server = TokenServer(lambda scopes: TokenReply(401, b"", "wrong"))
    with pytest.raises(
        errors.Unauthorized, match=r"of reg\.lan answers 401 .*: wrong .the credentials were not accepted"
    ):
        await Authorizer("reg.lan", ME, server).answer(BEARER, SCOPES, None)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, errors.Denied), (400, errors.Invalid), (429, errors.Unavailable), (503, errors.Unavailable)],
)
async def test_d05_a_refusal_of_the_token_server_keeps_its_kind(status: int, kind: type[Exception]) -> None:
    server = TokenServer(lambda scopes: TokenReply(status, b"", "words"))
    with pytest.raises(kind, match="words") as caught:
        await Authorizer("reg.lan", ME, server).answer(BEARER, SCOPES, None)
    assert type(caught.value) is kind


@pytest.mark.parametrize("lifetime", ["1e308", "9" * 400, "18446744073709551616"])
async def test_case_202_a_token_may_have_any_lifetime(lifetime: str) -> None:
    server = TokenServer(lambda scopes: TokenReply(200, b'{"token": "t", "expires_in": %s}' % lifetime.encode()))
    assert await Authorizer("reg.lan", ME, server).answer(BEARER, SCOPES, None) == "Bearer t"


async def test_d05_an_identity_token_is_sent_as_a_form_and_nothing_else_is() -> None:
    server = TokenServer(lambda scopes: TokenReply(200, b'{"access_token": "a", "expires_in": 300}'))
    authorizer = Authorizer("reg.lan", Credentials("me", "x", identity_token="refresh"), server)
    assert await authorizer.answer(BEARER, SCOPES, None) == "Bearer a"
    (request,) = server.requests
    assert request.authorization is None
    assert request.form == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh",
        "client_id": "moorage",
        "service": "reg",
        "scope": f"{PLUGIN} {PLAIN}",
    }
    assert "refresh" not in repr(request)


async def test_d05_a_registry_token_is_sent_as_it_is() -> None:
    server = TokenServer(lambda scopes: granted())
    authorizer = Authorizer("reg.lan", Credentials(registry_token="r"), server)
    assert authorizer.known(SCOPES) == "Bearer r"
    assert await authorizer.answer(BEARER, SCOPES, "Bearer r") is None
    assert server.requests == []


async def test_d05_basic_is_sent_once_it_was_requested() -> None:
    authorizer = Authorizer("reg.lan", ME, TokenServer(lambda scopes: granted()))
    challenges = parse_challenges(['Basic realm="r"'])
    assert authorizer.known(SCOPES) is None
    shown = await authorizer.answer(challenges, SCOPES, None)
    assert shown == authorizer.known(SCOPES) == "Basic bWU6c2VjcmV0"
    assert await authorizer.answer(challenges, SCOPES, shown) is None
    anonymous = Authorizer("reg.lan", ANONYMOUS, TokenServer(lambda scopes: granted()))
    assert await anonymous.answer(challenges, SCOPES, None) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b"[" * 100000])
async def test_d05_a_token_server_that_answers_nonsense_is_unavailable(body: bytes) -> None:
    server = TokenServer(lambda scopes: TokenReply(200, body))
    with pytest.raises(errors.Unavailable, match=r"the token server https://auth\.lan/token of reg\.lan"):
        await Authorizer("reg.lan", ME, server).answer(BEARER, SCOPES, None)

"""What users of registries hit: long headers, steps that may fail, URLs that are written differently, redirects."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from aiohttp import web

from moorage import errors
from moorage.plugins import parse_reference
from moorage.registry.credentials import Credentials, credentials_for
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from support.fault_registry import Answer, FaultRegistry, always, cut, first, refuse, sends, serve_faults, silent
from support.registries import Authority
from support.registry_client import (
    BLOB,
    DATA,
    DIGEST,
    MANIFEST,
    QUICK,
    SCHEMA2,
    TAG,
    UPLOADS,
    push,
    read,
    resolve,
    takes,
    talk,
    token_server,
    tokens,
)

pytestmark = [pytest.mark.real, pytest.mark.anyio]

BASIC = "Basic bWU6c2VjcmV0"


def logged_in(inner: Answer) -> Answer:
    """Only for me."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != BASIC:
            await request.read()
            return refuse(401, "who are you", WWW_Authenticate="Basic realm=x")
        return await inner(request)

    return answer


def with_headers(inner: Answer, headers: list[tuple[str, str]]) -> Answer:
    """The same answer with these headers beside its own."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await inner(request)
        for name, value in headers:
            response.headers.add(name, value)
        return response

    return answer


# case 202: headers


@pytest.mark.parametrize("length", [8_200, 12_000, 60_000])
async def test_case_202_a_redirect_may_be_long(server: FaultRegistry, other: FaultRegistry, length: int) -> None:
    for path, content in ((TAG, sends(MANIFEST, SCHEMA2)), (BLOB, sends(DATA))):
        server.answers["GET", path] = always(307, Location=f"{other.url}/v2/x?sig={'s' * length}")
        other.answers["GET", "x"] = content
        assert await (resolve if path == TAG else read)(server) in (MANIFEST, DATA)
        assert len(other.seen[-1].query["sig"][0]) == length


@pytest.mark.parametrize(
    "headers",
    [
        [("X", "x" * 65_536)],
        [("X" * 60_000, "x" * 60_000)],
        [(f"X-{number}", "x" * 60_000) for number in range(4)],
        [(f"X-{number}", "x") for number in range(10_000)],
        [("Set-Cookie", f"a{number}={'x' * 4000}") for number in range(50)],
    ],
)
async def test_case_202_headers_up_to_the_limits_are_read(
    server: FaultRegistry, headers: list[tuple[str, str]]
) -> None:
    server.answers["GET", TAG] = with_headers(sends(MANIFEST, SCHEMA2), headers)
    assert await resolve(server) == MANIFEST


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([("X", "x" * 65_537)], r"a header of more than 65536 bytes \(64 KiB\)"),
        ([("X", "x" * 5_000_000)], r"a header of more than 65536 bytes \(64 KiB\)"),
        ([(f"X-{number}", "x" * 60_000) for number in range(5)], r"more than 262144 bytes of headers \(256 KiB\)"),
        ([(f"X-{number}", "x") for number in range(40_000)], r"more than 262144 bytes of headers \(256 KiB\)"),
        ([(f"X-{number}", "x" * 60_000) for number in range(500)], r"more than 262144 bytes of headers \(256 KiB\)"),
    ],
)
async def test_case_202_an_answer_over_a_limit_names_it_and_is_not_tried_again(
    server: FaultRegistry, headers: list[tuple[str, str]], words: str
) -> None:
    server.answers["GET", TAG] = with_headers(sends(MANIFEST, SCHEMA2), headers)
    server.answers["GET", BLOB] = with_headers(sends(DATA), headers)
    for call in (resolve, read):
        server.seen.clear()
        with pytest.raises(errors.Unavailable, match=f"{server.host} sends an answer with {words}"):
            await call(server)
        assert len(server.seen) == 1


async def test_case_202_a_challenge_and_a_token_servers_answer_may_be_long(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    answer = with_headers(token_server(), [("X", "x" * 50_000)])
    tokens(server, f"{server.url}/token?long={'x' * 30_000}", answer)
    assert await resolve(server) == MANIFEST


@asynccontextmanager
async def raw_server(speak: Callable[[anyio.abc.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server on a loopback port that speaks as it likes; it may be left in the middle."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await speak(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # the client has gone

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def test_case_202_interim_answers_count_for_the_limit(server: FaultRegistry) -> None:
    async def speak(stream: anyio.abc.SocketStream) -> None:
        if not (await stream.receive()).startswith(b"GET"):
            return
        while True:
            await stream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 50)

    async with raw_server(speak) as port:
        with pytest.raises(errors.Unavailable, match=r"more than 262144 bytes of headers"):
            await resolve(FaultRegistry(port=port))


@pytest.mark.parametrize(("length", "words"), [(20_000, "the proxy answers 403"), (70_000, "65536 bytes")])
async def test_case_202_a_proxys_answer_has_the_same_limits(length: int, words: str) -> None:
    async def speak(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 403 no\r\nX: " + b"x" * length + b"\r\nContent-Length: 0\r\n\r\n")
        await stream.receive()

    async with raw_server(speak) as port:
        options = Options(environ={"HTTPS_PROXY": f"http://127.0.0.1:{port}"})
        reference = parse_reference("registry.test/a/b:1")
        async with Registry(reference, options=options, timeouts=QUICK) as registry:
            with pytest.raises(errors.Unavailable, match=words):
                await registry.resolve(reference)


# cases 205 and 206: steps that may fail


async def reset(request: web.Request) -> web.StreamResponse:
    cut(request)
    return web.Response()


@pytest.mark.parametrize("answer", [*map(always, (400, 401, 403, 405, 409, 429, 500, 501, 503)), reset, silent])
async def test_case_205_a_registry_that_cannot_say_whether_it_has_a_blob_gets_it(
    server: FaultRegistry, answer: Answer
) -> None:
    server.answers["HEAD", BLOB] = answer
    async with talk(server, access="push") as registry:
        assert not await registry.may_omit_blob(DIGEST)
    server.answers["HEAD", BLOB] = always(200)
    async with talk(server, access="push") as registry:
        assert await registry.may_omit_blob(DIGEST)


async def test_case_205_a_check_at_a_server_without_head_is_no_answer(
    server: FaultRegistry, other: FaultRegistry
) -> None:
    for status in (403, 405):
        server.answers["HEAD", BLOB] = always(307, Location=f"{other.url}/v2/signed?for=GET")
        other.answers["HEAD", "signed"] = always(status)
        async with talk(server, access="push") as registry:
            assert not await registry.may_omit_blob(DIGEST)
        assert other.seen[-1].method == "HEAD"


@pytest.mark.parametrize("answer", [*map(always, (400, 401, 403, 404, 405, 409, 429, 500, 501, 503)), reset, silent])
async def test_case_206_a_mount_that_fails_is_no(server: FaultRegistry, answer: Answer) -> None:
    server.answers["POST", UPLOADS] = answer
    async with talk(server, access="push") as registry:
        assert not await registry.mount_blob(DIGEST, "other/one")
    assert len(server.of("POST")) == 1


async def test_case_206_a_token_server_that_refuses_the_other_repository_refuses_the_mount_only(
    server: FaultRegistry,
) -> None:
    stored = takes(server, always(503))
    tokens(server, f"{server.url}/token", token_server("other/one", 403))
    async with talk(server, access="push") as registry:
        assert not await registry.mount_blob(DIGEST, "other/one")
    await push(server)
    assert stored == [DATA]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("answer", [reset, silent, always(500), always(302, Location="ftp://x/")])
async def test_case_205_a_registry_on_loopback_whose_base_fails_is_used_all_the_same(
    tmp_path: Path, answer: Answer
) -> None:
    pair = await anyio.to_thread.run_sync(lambda: Authority(tmp_path / "ca").issue("server", "IP:127.0.0.1"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    async with serve_faults(context) as secure:
        secure.answers["GET", ""] = answer
        secure.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
        assert await resolve(secure) == MANIFEST


# case 209: origins


def capitals(url: str) -> str:
    """The same server, written differently."""
    return url.replace("http://127.0.0.1", "HTTP://LOCALHOST")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_case_209_a_redirect_to_the_same_server_written_differently_keeps_the_login(
    server: FaultRegistry, status: int
) -> None:
    at_home = FaultRegistry(server.port)
    reference = parse_reference(f"localhost:{server.port}/a/b:1")
    for path, content in ((TAG, sends(MANIFEST, SCHEMA2)), (BLOB, sends(DATA))):
        server.answers["GET", path] = logged_in(always(status, Location=f"{capitals(at_home.url)}/v2/x?a=%2B+b"))
        server.answers["GET", "x"] = logged_in(content)
        me = credentials_for(reference.host, Credentials("me", "secret"))
        async with Registry(reference, options=Options(environ={}), credentials=me, timeouts=QUICK) as registry:
            if path == TAG:
                assert (await registry.resolve(reference)).data == MANIFEST
            else:
                assert b"".join([each async for each in registry.read_blob(DIGEST, len(DATA))]) == DATA
    assert server.seen[-1].query == {"a": ["+ b"]}


async def test_case_209_an_upload_location_written_differently_keeps_the_login(server: FaultRegistry) -> None:
    stored = takes(server, always(503), f"{capitals(server.url)}/v2/a/b/up?_state=x%2By")
    for key, inner in list(server.answers.items()):
        server.answers[key] = logged_in(inner)
    reference = parse_reference(f"localhost:{server.port}/a/b:1")
    me = credentials_for(reference.host, Credentials("me", "secret"))
    async with Registry(reference, "push", options=Options(environ={}), credentials=me, timeouts=QUICK) as registry:
        await registry.push_blob(DIGEST, len(DATA), _chunks)
    assert stored == [DATA]
    assert server.seen[-1].query["_state"] == ["x+y"]


async def _chunks() -> Any:
    yield DATA


@pytest.mark.parametrize(
    "location", ["http://B\u00fccher.example/", "http://h:99999/", "//", "http://a..b/", "gopher://x/", "http://%41/"]
)
async def test_case_209_a_location_that_names_no_server_is_refused(server: FaultRegistry, location: str) -> None:
    server.answers["GET", TAG] = always(302, Location=location)
    server.answers["POST", UPLOADS] = always(202, Location=location)
    with pytest.raises(errors.Unavailable, match=r"redirects to nowhere|redirects more than|which is not https"):
        await resolve(server)
    if location != "//":  # which means the server itself
        with pytest.raises(errors.Unavailable, match="names no location to upload to"):
            await push(server)


# case 210: redirects of what has a body


@pytest.mark.parametrize("status", [307, 308])
async def test_case_210_an_upload_that_is_redirected_goes_on_there_with_the_login_at_home_only(
    server: FaultRegistry, other: FaultRegistry, status: int
) -> None:
    stored: list[bytes] = []

    async def store(request: web.Request) -> web.StreamResponse:
        stored.append(await request.read())
        return refuse(201)

    for target in (server, other):
        stored.clear()
        guard = logged_in if target is server else (lambda inner: inner)
        server.answers["POST", UPLOADS] = logged_in(always(status, Location=f"{target.url}/v2/begin"))
        target.answers["POST", "begin"] = guard(always(202, Location="/v2/up?_state=1"))
        target.answers["PUT", "up"] = guard(always(status, Location="/v2/up2?signed=%2B"))
        target.answers["PUT", "up2"] = guard(always(status, Location=f"{other.url}/v2/up3?signed=%2B"))
        other.answers["PUT", "up3"] = store
        await push(server)
        assert stored == [DATA]
    assert {each.authorization for each in other.seen} == {None}
    assert other.seen[-1].query == {"signed": ["+"]}


async def test_case_210_a_manifest_and_a_mount_that_are_redirected_arrive(
    server: FaultRegistry, other: FaultRegistry
) -> None:
    got: list[bytes] = []

    async def store(request: web.Request) -> web.StreamResponse:
        got.append(await request.read())
        return refuse(201)

    server.answers["PUT", TAG] = always(308, Location=f"{other.url}/v2/m")
    other.answers["PUT", "m"] = store
    server.answers["POST", UPLOADS] = always(307, Location=f"{other.url}/v2/mount?mount={DIGEST}&from=x")
    other.answers["POST", "mount"] = always(201)
    async with talk(server, access="push") as registry:
        await registry.push_manifest("1", MANIFEST, SCHEMA2)
        assert await registry.mount_blob(DIGEST, "x")
    assert got == [MANIFEST]


async def test_case_210_redirects_of_an_upload_end(server: FaultRegistry) -> None:
    server.answers["POST", UPLOADS] = always(202, Location="/v2/up")
    server.answers["PUT", "up"] = always(307, Location="/v2/up")
    with pytest.raises(errors.Unavailable, match=r"redirects an upload more than 10 times"):
        await push(server)
    server.answers["POST", UPLOADS] = always(307, Location=f"/v2/{UPLOADS}")
    with pytest.raises(errors.Unavailable, match=r"redirects more than 10 times"):
        await push(server)


async def test_case_210_a_redirect_that_requires_a_get_is_not_followed_for_a_push(server: FaultRegistry) -> None:
    for status in (301, 302, 303):
        server.answers["POST", UPLOADS] = always(status, Location="/v2/elsewhere")
        with pytest.raises(errors.MoorageError, match=f"answers {status}"):
            await push(server)
    assert {each.method for each in server.seen} == {"POST"}


# case 242: refusals of token servers


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, errors.Invalid), (401, errors.Unauthorized), (403, errors.Denied), (404, errors.NotFound)],
)
@pytest.mark.parametrize("identity", [False, True])
async def test_case_242_a_refusal_of_the_token_server_names_scope_server_and_status(
    server: FaultRegistry, other: FaultRegistry, status: int, kind: type[Exception], identity: bool
) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{other.url}/token?x=1", silent)
    other.answers["GET", "/token"] = other.answers["POST", "/token"] = always(status, "because")
    me = Credentials(identity_token="refresh") if identity else Credentials("me", "secret")
    words = (
        rf"cannot read the manifest 1 in {server.host}/a/b: the token server {other.url}/token of {server.host}"
        rf" answers {status} \(.*\) to a request for the scope .*repository:a/b:pull.*: because"
    )
    with pytest.raises(kind, match=words) as caught:
        await resolve(server, credentials=credentials_for(server.host, me))
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)
    assert "refresh" not in str(caught.value)


@pytest.mark.parametrize("answer", [*map(always, (429, 500, 503)), reset, silent, always(200), always(302)])
async def test_case_242_a_token_server_that_fails_in_another_way_is_named_as_well(
    server: FaultRegistry, other: FaultRegistry, answer: Answer
) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{other.url}/token", silent)
    other.answers["GET", "/token"] = answer
    with pytest.raises(errors.Unavailable, match=f"token server {other.url}/token of {server.host}"):
        await resolve(server)


async def test_case_242_a_token_that_does_not_do_names_its_scope(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", token_server(), accepted="Bearer another")
    words = r"answers 401 .*with the credentials given; .*granted a token for the scope .*repository:a/b:pull"
    with pytest.raises(errors.Unauthorized, match=words):
        await resolve(server)


async def test_case_207_a_refusal_gives_the_reason_for_missing_credentials(server: FaultRegistry) -> None:
    absent = credentials_for(server.host, Credentials(reason_absent="docker-credential-x is not installed"))
    server.answers["GET", TAG] = always(401, "log in", WWW_Authenticate="Basic realm=x")
    with pytest.raises(errors.Unauthorized, match=r"no credentials were given: docker-credential-x is not installed"):
        await resolve(server, credentials=absent)
    tokens(server, f"{server.url}/token", always(401, "who"))
    with pytest.raises(errors.Unauthorized, match=r"no credentials were given: docker-credential-x is not installed"):
        await resolve(server, credentials=absent)


async def test_case_208_a_mirror_whose_credentials_fail_is_used_without(server: FaultRegistry) -> None:
    async def fails(host: str) -> Credentials:
        if host == "docker.io":
            return Credentials("me", "secret")
        raise errors.MoorageError("no keyring")

    reference = parse_reference("a/b:1")
    options = Options(mirrors=(server.url,), environ={})
    server.answers["GET", TAG] = first(sends(MANIFEST, SCHEMA2))
    async with Registry(reference, options=options, credentials=fails, timeouts=QUICK) as registry:
        assert (await registry.resolve(reference)).data == MANIFEST
    assert [each.authorization for each in server.seen] == [None]

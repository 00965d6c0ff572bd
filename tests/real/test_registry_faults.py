"""The registry client against a registry that fails, lies, dawdles, or leads elsewhere."""

import hashlib
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from moorage import errors
from moorage.oci.limits import MANIFEST_BYTES
from moorage.plugins import parse_reference
from moorage.registry._retry import TRIES
from moorage.registry.credentials import Credentials, credentials_for
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from support.conditions import TIMEOUT_SECONDS, eventually
from support.fault_registry import (
    Answer,
    FaultRegistry,
    always,
    begin_of,
    claims,
    cut,
    first,
    refuse,
    sends,
    sends_slowly,
    serve_faults,
    silent,
)
from support.limits import limit
from support.registries import Authority, serve_proxy
from support.registry_client import (
    BLOB,
    DATA,
    DIGEST,
    MANIFEST,
    MANIFEST_DIGEST,
    OTHER_DIGEST,
    QUICK,
    SCHEMA2,
    TAG,
    UPLOADS,
    chunks,
    here,
    push,
    read,
    resolve,
    takes,
    talk,
    token_server,
    tokens,
)

pytestmark = [pytest.mark.real, pytest.mark.anyio]


# bodies that break


def breaks(positions: list[int], *, knows_ranges: bool, data: bytes = DATA) -> Answer:
    """Sends the data, and cuts the connection when the position next in the list was sent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        begin = begin_of(request) if knows_ranges else 0
        response = web.StreamResponse(status=206 if begin else 200)
        response.headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        response.content_length = len(data) - begin
        await response.prepare(request)
        end = positions.pop(0) if positions else len(data)
        await response.write(data[begin:end])
        if end < len(data):
            while request.transport and request.transport.get_write_buffer_size():  # noqa: ASYNC110 - there is no event
                await anyio.sleep(0.001)
            await anyio.sleep(0.02)
            cut(request)
        return response

    return answer


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("knows_ranges", [True, False])
async def test_d03_a_blob_is_resumed_where_it_broke(server: FaultRegistry, seed: int, knows_ranges: bool) -> None:
    draw = random.Random(seed)
    positions = sorted(draw.randrange(1, len(DATA)) for _ in range(TRIES - 1))
    server.answers["GET", BLOB] = breaks(positions, knows_ranges=knows_ranges)
    offset = draw.choice([0, 0, 7])
    assert await read(server, offset=offset) == DATA[offset:]
    assert len(server.seen) == TRIES
    begins = [int((each.range or "bytes=0-")[6:-1]) for each in server.seen]
    assert begins[0] == offset
    assert begins == sorted(begins)
    assert begins[-1] > offset


async def test_d03_a_blob_that_comes_on_may_break_more_often(server: FaultRegistry) -> None:
    data = DATA * 9
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    positions = list(range(1_100_000, len(data), 1_100_000))
    assert len(positions) > TRIES
    server.answers["GET", f"a/b/blobs/{digest}"] = breaks(positions, knows_ranges=True, data=data)
    async with talk(server) as registry:
        assert b"".join([chunk async for chunk in registry.read_blob(digest, len(data))]) == data


async def test_d03_a_blob_that_breaks_again_and_again_is_unavailable(server: FaultRegistry) -> None:
    server.answers["GET", BLOB] = claims(len(DATA), b"")
    with pytest.raises(errors.Unavailable, match=f"cannot read {DIGEST} in {server.host}/a/b: the connection .* broke"):
        await read(server)
    assert len(server.seen) == TRIES


async def test_d03_the_rest_of_a_blob_that_ends_early_is_requested(server: FaultRegistry) -> None:
    server.answers["GET", BLOB] = first(claims(None, DATA[:1000]), sends(DATA))
    assert await read(server) == DATA
    assert [each.range for each in server.seen] == [None, "bytes=1000-"]
    server.answers["GET", BLOB] = first(claims(None, DATA[:1000]), always(416))
    with pytest.raises(errors.Invalid, match="416"):
        await read(server)


async def test_d03_a_wrong_digest_is_reported_at_the_end(server: FaultRegistry) -> None:
    server.answers["GET", BLOB] = sends(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(errors.InvalidResponse, match=f"cannot read {DIGEST} .*: the content has the digest sha256:"):
        await read(server)


@pytest.mark.parametrize("length", [0, 1, len(DATA) - 1, len(DATA) + 1, 10 << 30])
async def test_d03_a_wrong_size_is_reported_at_once(server: FaultRegistry, length: int) -> None:
    server.answers["GET", BLOB] = claims(length, b"x" * min(length, 10))
    with pytest.raises(errors.InvalidResponse, match=f"it has {length} bytes where {len(DATA)} were promised"):
        await read(server)
    assert len(server.seen) == 1


async def test_d03_not_a_byte_more_than_promised_is_handed_on(server: FaultRegistry) -> None:
    server.answers["GET", BLOB] = sends_slowly(None, pause=0, piece=b"x" * 5000)
    came = 0
    async with talk(server) as registry:
        with pytest.raises(errors.InvalidResponse, match="more than the promised 100000 bytes"):  # noqa: PT012 - what came counts
            async for chunk in registry.read_blob(DIGEST, 100_000):
                came += len(chunk)
    assert came <= 100_000


@pytest.mark.parametrize("header", ["", "bytes 6-9/10", "bytes 0-4/10", "nonsense", "bytes 5-9/11"])
async def test_d03_a_range_that_was_not_requested_is_refused(server: FaultRegistry, header: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=206, body=b"x" * 5, headers={"Content-Range": header})

    server.answers["GET", BLOB] = answer
    if header == "bytes 0-4/10":  # begins too early, which would do, and ends too early, which does not
        with pytest.raises(errors.Unavailable, match="it ends after 5 of 10 bytes"):
            await read(server, 10, 5)
    else:
        with pytest.raises(errors.InvalidResponse, match=r"others come|11 bytes where 10"):
            await read(server, 10, 5)


# what dawdles


async def test_d03_a_blob_that_comes_slower_than_the_least_rate_is_stopped(server: FaultRegistry) -> None:
    server.answers["GET", BLOB] = sends_slowly(len(DATA))
    began = time.monotonic()
    with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1 sends less than 1024 bytes a second"):
        await read(server)
    assert time.monotonic() - began < TIMEOUT_SECONDS
    assert len(server.seen) == TRIES


async def test_d03_a_manifest_that_comes_slower_than_the_least_rate_is_stopped(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends_slowly(None)
    with pytest.raises(errors.Unavailable, match="sends less than 1024 bytes a second"):
        await resolve(server)


async def test_d03_a_slow_blob_that_keeps_to_the_least_rate_is_read(server: FaultRegistry) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, 12_000, 200):
            await response.write(DATA[start : start + 200])
            await anyio.sleep(0.02)
        return response

    server.answers["GET", BLOB] = answer
    async with talk(server) as registry:
        came = b"".join([chunk async for chunk in registry.read_blob(DIGEST, 12_000, 1)])
    assert came == DATA[1:12_000]


async def test_d03_a_reader_that_is_slow_is_no_fault_of_the_registry(server: FaultRegistry) -> None:
    server.answers["GET", BLOB] = sends(DATA)
    came = b""
    async with talk(server) as registry:
        async for chunk in registry.read_blob(DIGEST, len(DATA)):
            if not came:
                await anyio.sleep(3 * QUICK.registry_stall)
            came += chunk
    assert came == DATA
    assert len(server.seen) == 1


async def test_d05_a_registry_that_says_nothing_is_unavailable(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = silent
    with pytest.raises(errors.Unavailable, match=f"{server.host} does not answer in time"):
        await resolve(server)
    assert len(server.seen) == TRIES


# manifests


async def test_d03_a_manifest_may_claim_anything(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = claims(10 << 30, media_type=SCHEMA2)
    with pytest.raises(errors.InvalidResponse, match=f"more than {MANIFEST_BYTES} bytes"):
        await resolve(server)
    server.answers["GET", TAG] = sends_slowly(None, pause=0, piece=b" " * 100_000)
    with pytest.raises(errors.InvalidResponse, match=f"more than {MANIFEST_BYTES} bytes"):
        await resolve(server)


async def test_d03_a_manifest_that_is_cut_is_requested_again(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = first(claims(100, b"{"), claims(100, b"{"), sends(MANIFEST, SCHEMA2))
    assert await resolve(server) == MANIFEST
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("data", "media_type", "kind", "words"),
    [
        (b"{", SCHEMA2, errors.InvalidResponse, "it is not JSON"),
        (b"[" * 100_000, SCHEMA2, errors.InvalidResponse, "it is not JSON"),
        (b"[]", SCHEMA2, errors.InvalidResponse, "not a JSON object"),
        (b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", errors.Unsupported, r"v1\+prettyjws"),
        (b"{}", "text/html", errors.Unsupported, "text/html"),
        (b"{}", "application/json", errors.Unsupported, "unknown"),
        (MANIFEST, "application/vnd.oci.image.manifest.v1+json", errors.InvalidResponse, "another thing"),
    ],
)
async def test_d03_a_manifest_that_is_none_is_refused(
    server: FaultRegistry, data: bytes, media_type: str, kind: type[Exception], words: str
) -> None:
    server.answers["GET", TAG] = sends(data, media_type)
    with pytest.raises(kind, match=f"cannot read the manifest 1 in {server.host}/a/b: .*{words}"):
        await resolve(server)


async def test_d03_a_manifest_says_itself_what_it_is_where_the_header_does_not(server: FaultRegistry) -> None:
    for vague in ("application/json", "text/plain; charset=utf-8", "application/octet-stream"):
        server.answers["GET", TAG] = sends(MANIFEST, vague)
        async with talk(server) as registry:
            assert (await registry.resolve(here(server))).media_type == SCHEMA2


async def test_d03_a_manifest_with_another_digest_is_refused(server: FaultRegistry) -> None:
    for digest in (OTHER_DIGEST, f"sha512:{'0' * 128}"):
        server.answers["GET", f"a/b/manifests/{digest}"] = sends(MANIFEST, SCHEMA2)
        async with talk(server) as registry:
            with pytest.raises(errors.InvalidResponse, match=f"not {digest}"):
                await registry.read_manifest(digest)
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2, Docker_Content_Digest=OTHER_DIGEST)
    with pytest.raises(errors.InvalidResponse, match=f"the digest {MANIFEST_DIGEST}, not {OTHER_DIGEST}"):
        await resolve(server)
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2, Docker_Content_Digest="nonsense")
    assert await resolve(server) == MANIFEST


async def test_d04_a_registry_that_stores_another_manifest_is_reported(server: FaultRegistry) -> None:
    server.answers["PUT", TAG] = always(201, Docker_Content_Digest=OTHER_DIGEST)
    async with talk(server, access="push") as registry:
        with pytest.raises(errors.InvalidResponse, match=f"has stored {OTHER_DIGEST} instead of {MANIFEST_DIGEST}"):
            await registry.push_manifest("1", MANIFEST, SCHEMA2)


# refusals


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (400, errors.Invalid, 1),
        (401, errors.Unauthorized, 1),
        (403, errors.Denied, 1),
        (404, errors.NotFound, 1),
        (405, errors.Unsupported, 1),
        (418, errors.MoorageError, 1),
        (429, errors.Unavailable, TRIES),
        (500, errors.Unavailable, TRIES),
        (501, errors.Unavailable, 1),
        (502, errors.Unavailable, TRIES),
        (503, errors.Unavailable, TRIES),
        (504, errors.Unavailable, TRIES),
    ],
)
async def test_d05_a_refusal_keeps_its_kind_and_its_words(
    server: FaultRegistry, status: int, kind: type[Exception], tries: int
) -> None:
    server.answers["GET", TAG] = server.answers["GET", BLOB] = always(status, "what the\nregistry says\x1b[0m")
    words = rf"in {server.host}/a/b: {server.host} answers {status} .*: what the registry says\?\[0m"
    for call in (resolve, read):
        server.seen.clear()
        with pytest.raises(kind, match=words) as caught:
            await call(server)
        assert type(caught.value) is kind
        assert len(server.seen) == tries


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_d05_a_failed_check_for_a_blob_is_not_taken_for_an_answer(server: FaultRegistry, status: int) -> None:
    server.answers["HEAD", BLOB] = always(status)
    async with talk(server) as registry:
        with pytest.raises((errors.Unauthorized, errors.Denied, errors.Unavailable)):
            await registry.has_blob(DIGEST)


async def test_d05_a_storm_of_500_is_waited_out(server: FaultRegistry) -> None:
    storm = [always(status) for status in (500, 503, 502, 504)]
    server.answers["GET", TAG] = first(*storm, sends(MANIFEST, SCHEMA2))
    assert await resolve(server) == MANIFEST
    server.answers["GET", BLOB] = first(*storm, sends(DATA))
    assert await read(server) == DATA


@pytest.mark.parametrize("as_date", [False, True])
async def test_d05_retry_after_is_waited_for(server: FaultRegistry, as_date: bool) -> None:
    pause = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    server.answers["GET", TAG] = first(always(429, "slow down", Retry_After=pause), sends(MANIFEST, SCHEMA2))
    began = time.monotonic()
    assert await resolve(server) == MANIFEST
    assert time.monotonic() - began >= (0.9 if not as_date else 0.5)


async def test_d05_a_request_for_too_long_a_pause_is_reported_at_once(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = always(429, "come back tomorrow", Retry_After="86400")
    with pytest.raises(errors.Unavailable, match=r"come back tomorrow .it asks to wait 86400 s, over 60 s"):
        await resolve(server)
    assert len(server.seen) == 1


async def test_d05_an_unreachable_registry_is_reported_at_once(server: FaultRegistry) -> None:
    with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
        await resolve(
            FaultRegistry(port=1), timeouts=replace(QUICK, registry_retry_first=1e6, registry_retry_limit=1e6)
        )
    async with Registry(parse_reference("nowhere.invalid/a/b:1"), options=Options(environ={})) as registry:
        with pytest.raises(errors.Unavailable, match=r"nowhere\.invalid:443 cannot be reached"):
            await registry.resolve(parse_reference("nowhere.invalid/a/b:1"))


async def mail(stream: anyio.abc.SocketStream) -> None:
    await stream.send(b"220 mail.lan ESMTP\r\n")


async def dribble(stream: anyio.abc.SocketStream) -> None:
    """Begins an answer to what is no TLS, and never comes to the end of its headers."""
    if not (await stream.receive()).startswith(b"GET"):
        return
    await stream.send(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await stream.send(b"x")
        await anyio.sleep(0.05)


@pytest.mark.parametrize(("speak", "words"), [(mail, ""), (dribble, "does not answer in time")])
async def test_d05_a_server_that_does_not_speak_http_is_unavailable(
    speak: Callable[[anyio.abc.SocketStream], Awaitable[None]], words: str
) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await speak(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # the client has gone

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        with pytest.raises(errors.Unavailable, match=f"127.0.0.1:{port}.*{words}"):
            await resolve(FaultRegistry(port=port), timeouts=replace(QUICK, registry_connect=limit(1)))
        tasks.cancel_scope.cancel()


# tokens


PLUGIN, PLAIN = "repository(plugin):a/b:pull", "repository:a/b:pull"


@pytest.mark.parametrize(
    ("refused", "requested"),
    [
        ("", [[PLUGIN, PLAIN]]),
        ("(plugin)", [[PLUGIN, PLAIN], [PLAIN]]),
        ("repository:", [[PLUGIN, PLAIN], [PLAIN], [PLUGIN]]),
    ],
)
@pytest.mark.parametrize("status", [400, 403])
async def test_d05_a_token_is_got_whichever_class_is_refused(
    server: FaultRegistry, refused: str, requested: list[list[str]], status: int
) -> None:
    server.answers["GET", TAG], server.answers["GET", BLOB] = sends(MANIFEST, SCHEMA2), sends(DATA)
    tokens(server, f"{server.url}/token", token_server(refused, status))
    async with talk(server) as registry:
        await registry.resolve(here(server))
        await registry.resolve(here(server))
    assert [each.query["scope"] for each in server.seen if each.path == "/token"] == requested
    assert {each.authorization for each in server.seen if each.path == "/token"} == {"Basic bWU6c2VjcmV0"}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (always(401, "wrong password"), errors.Unauthorized, "wrong password"),
        (always(403, "not yours"), errors.Denied, "not yours"),
        (always(500, "broken"), errors.Unavailable, "broken"),
        (always(429, "slow", Retry_After="999"), errors.Unavailable, "asks to wait 999 s"),
        (always(302, Location="http://127.0.0.1:1/"), errors.Unavailable, "cannot be reached"),
        (always(200), errors.Unavailable, "without a token"),
        (claims(10 << 30), errors.Unavailable, "over 1048576 bytes"),
        (claims(10), errors.Unavailable, "broke"),
        (sends_slowly(None), errors.Unavailable, "less than 1024 bytes"),
        (silent, errors.Unavailable, "does not answer in time"),
    ],
)
async def test_d05_a_token_server_that_fails_is_reported(
    server: FaultRegistry, answer: Answer, kind: type[Exception], words: str
) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", answer)
    with pytest.raises(kind, match=f"cannot read the manifest 1 in {server.host}/a/b: .*{words}"):
        await resolve(server)


async def test_d05_a_token_server_that_stumbles_is_queried_again(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", first(always(503), claims(10), token_server()))
    assert await resolve(server) == MANIFEST


async def test_d05_an_identity_token_goes_to_the_token_server_only(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", token_server())

    async def exchange(request: web.Request) -> web.StreamResponse:
        return web.json_response({"access_token": "t"})

    server.answers["POST", "/token"] = exchange
    identity = credentials_for(server.host, Credentials(identity_token="refresh"))
    assert await resolve(server, credentials=identity) == MANIFEST
    assert [each.form for each in server.of("POST")] == [
        {
            "grant_type": "refresh_token",
            "refresh_token": "refresh",
            "client_id": "moorage",
            "service": "s",
            "scope": f"{PLUGIN} {PLAIN}",
        }
    ]
    assert {each.authorization for each in server.seen} == {None, "Bearer t"}


async def test_d05_a_token_that_ends_in_the_middle_is_fetched_again(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    given = iter(["t", "u"])

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"token": next(given)})

    tokens(server, f"{server.url}/token", answer)
    async with talk(server) as registry:
        await registry.resolve(here(server))
        server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
        tokens(server, f"{server.url}/token", answer, "Bearer u")
        await registry.resolve(here(server))


# elsewhere


@pytest.mark.parametrize(
    "realm", ["http://evil.test/token", "ftp://127.0.0.1/", "token", "http://[", "http://u:p@127.0.0.1/"]
)
async def test_d05_a_realm_that_is_not_safe_is_refused(server: FaultRegistry, realm: str) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, realm, token_server())
    with pytest.raises((errors.Unauthorized, errors.Unavailable), match=r"must be https|is no URL"):
        await resolve(server)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca") / "ca")


@pytest.fixture(scope="module")
def server_context(authority: Authority) -> ssl.SSLContext:
    pair = authority.issue("server", "IP:127.0.0.1,DNS:registry-1.docker.io")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.mark.needs("openssl")
async def test_d05_a_plain_realm_of_an_https_registry_gets_nothing(
    server: FaultRegistry, server_context: ssl.SSLContext
) -> None:
    async with serve_faults(server_context) as secure:
        secure.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
        tokens(secure, f"{server.url}/token", token_server())
        with pytest.raises(errors.Unauthorized, match=r"wants its token fetched at http://127\.0\.0\.1.*must be https"):
            await resolve(secure)
    assert server.seen == []


@pytest.mark.needs("openssl")
async def test_d06_what_spoke_tls_once_is_not_spoken_to_in_plain_http_in_the_same_operation(
    server_context: ssl.SSLContext,
) -> None:
    async with serve_faults(server_context) as secure:
        secure.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
        registry = talk(secure)
        await registry.__aenter__()
        await registry.resolve(here(secure))
    try:
        async with serve_faults(port=secure.port) as plain:
            plain.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
            with pytest.raises(errors.Unavailable, match="does not speak TLS"):
                await registry.resolve(here(secure))
            assert plain.seen == []
            assert await resolve(secure) == MANIFEST
            assert len(plain.seen) == 1
    finally:
        await registry.__aexit__(None, None, None)


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
async def test_d06_a_redirect_to_another_host_carries_no_credentials(server: FaultRegistry, scheme: str) -> None:
    async with serve_faults() as other:
        challenge = f'{scheme} realm="{server.url}/token"'
        shown = "Basic bWU6c2VjcmV0" if scheme == "Basic" else "Bearer t"

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") != shown:
                return refuse(401, WWW_Authenticate=challenge)
            if "again" not in request.query:
                return refuse(302, Location="?again=1")
            return refuse(307, Location=f"http://user:pass@127.0.0.1:{other.port}/v2/{BLOB}?X=%2B%3D")

        server.answers["GET", BLOB], server.answers["GET", "/token"] = answer, token_server()
        other.answers["GET", BLOB] = sends(DATA)
        assert await read(server) == DATA
        assert [each.authorization for each in other.seen] == [None]
        assert other.seen[0].query == {"X": ["+="]}
        assert server.seen[-1].authorization == shown
        elsewhere = f'Bearer realm="{other.url}/token"'
        other.answers["GET", BLOB] = always(401, "who are you", WWW_Authenticate=elsewhere)
        other.answers["GET", "/token"] = token_server()
        with pytest.raises(errors.Unauthorized, match="who are you"):
            await read(server)
        assert {(each.path, each.authorization) for each in other.seen} == {(f"/v2/{BLOB}", None)}


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (f"/v2/{TAG}", "redirects more than"),
        ("http://elsewhere.test/", "redirects to http://elsewhere.test, which is not https"),
        ("file:///etc/passwd", "redirects to nowhere"),
        ("http://[", "redirects to nowhere"),
    ],
)
async def test_d06_a_redirect_that_leads_nowhere_is_not_followed(
    server: FaultRegistry, location: str, words: str
) -> None:
    server.answers["GET", TAG] = always(302, Location=location)
    with pytest.raises(errors.Unavailable, match=words):
        await resolve(server)


# pushes


async def cut_in_the_middle(request: web.Request) -> web.StreamResponse:
    await request.content.readexactly(300_000)
    cut(request)
    return web.Response()


async def store_nothing(request: web.Request) -> web.StreamResponse:
    await request.read()
    return refuse(503)


@pytest.mark.parametrize("put", [cut_in_the_middle, store_nothing, always(500), always(429, Retry_After="0")])
async def test_d04_a_push_that_breaks_is_started_again(server: FaultRegistry, put: Answer) -> None:
    stored = takes(server, put)
    await push(server)
    assert stored == [DATA]
    assert len(server.of("POST")) == 2
    assert server.of("PUT")[-1].query == {"_state": ["a+b="], "digest": [DIGEST]}


async def test_d04_a_push_that_is_refused_early_is_reported(server: FaultRegistry) -> None:
    takes(server, always(413, "too large"))
    with pytest.raises(errors.Invalid, match=f"cannot push {DIGEST} in {server.host}/a/b: .*413.*: too large"):
        await push(server)


async def test_d04_a_registry_that_takes_nothing_is_unavailable(server: FaultRegistry) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield bytes(1 << 20)

    server.answers["POST", UPLOADS] = always(202, Location="/v2/a/b/up")
    server.answers["PUT", "a/b/up"] = silent
    async with talk(server, access="push") as registry:
        with pytest.raises(errors.Unavailable, match="takes less than 1024 bytes a second"):
            await registry.push_blob(DIGEST, 1 << 40, endless)
    assert len(server.of("PUT")) == TRIES


async def test_d04_a_registry_that_does_not_say_whether_it_has_stored_is_unavailable(server: FaultRegistry) -> None:
    async def swallow(request: web.Request) -> web.StreamResponse:
        await request.read()
        return await silent(request)

    server.answers["POST", UPLOADS] = always(202, Location="/v2/a/b/up")
    server.answers["PUT", "a/b/up"] = swallow
    with pytest.raises(errors.Unavailable, match="does not answer in time"):
        await push(server, timeouts=replace(QUICK, registry_commit=limit(0.3)))


async def test_d04_a_token_that_ends_before_a_push_is_fetched_again(server: FaultRegistry) -> None:
    given = iter(["t", "u"])

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"token": next(given)})

    challenge = f'Bearer realm="{server.url}/token"'
    stored = takes(server, always(401, WWW_Authenticate=challenge))
    server.answers["GET", "/token"] = answer
    inner = server.answers["POST", UPLOADS]

    async def begin(request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization")
        return await inner(request) if shown else refuse(401, WWW_Authenticate=challenge)

    server.answers["POST", UPLOADS] = begin
    await push(server)
    assert stored == [DATA]
    assert [each.authorization for each in server.of("PUT")] == ["Bearer t", "Bearer u"]


async def test_d06_an_upload_to_another_host_carries_no_credentials(server: FaultRegistry) -> None:
    async with serve_faults() as other:
        stored = takes(other, always(500))
        begin = always(202, Location=f"{other.url}/v2/a/b/up")
        server.answers["POST", UPLOADS] = first(always(401, WWW_Authenticate="Basic realm=x"), begin)
        await push(server)
        assert stored == [DATA]
        assert {each.authorization for each in other.seen} == {None}
        assert server.seen[-1].authorization == "Basic bWU6c2VjcmV0"


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("workspace", ["http://{host}/v2/a/b/up", "", "http://["])
async def test_d06_an_upload_in_plain_text_to_an_https_registry_is_refused(
    server_context: ssl.SSLContext, workspace: str
) -> None:
    async with serve_faults(server_context) as secure:
        takes(secure, always(500), workspace.format(host=secure.host))
        if not workspace:
            secure.answers["POST", UPLOADS] = always(202)
        with pytest.raises(errors.Unavailable, match=r"in plain text|no location to upload to"):
            await push(secure)
        assert secure.of("PUT") == []


async def test_d04_a_mount_that_is_refused_is_no(server: FaultRegistry) -> None:
    for status in (401, 403, 404, 405):
        server.answers["POST", UPLOADS] = always(status)
        async with talk(server, access="push") as registry:
            assert not await registry.mount_blob(DIGEST, "other/one")


# mirrors, and leaving


@asynccontextmanager
async def with_mirror(
    mirror: FaultRegistry, context: ssl.SSLContext, authority: Authority, folder: Path
) -> AsyncIterator[tuple[FaultRegistry, Registry]]:
    """What answers for docker.io, and a client that asks this mirror first."""
    certificates = anyio.Path(folder / "certs.d" / "registry-1.docker.io")
    await certificates.mkdir(parents=True)
    await (certificates / "ca.crt").write_bytes(await anyio.Path(authority.pair.certificate).read_bytes())
    async with serve_faults(context) as hub, serve_proxy(hub.port) as proxy:
        options = Options(
            mirrors=(mirror.url,),
            certificate_directories=(folder / "certs.d",),
            environ={"HTTPS_PROXY": proxy.url},
        )
        me = credentials_for("docker.io", Credentials("me", "secret"))
        async with Registry(HUB, options=options, timeouts=QUICK, credentials=me) as registry:
            yield hub, registry
        assert {each.authorization for each in mirror.seen} == {None}


HUB = parse_reference("a/b:1")


@pytest.mark.needs("openssl")
async def test_d06_a_blob_goes_on_at_docker_io_where_its_mirror_broke(
    server: FaultRegistry, server_context: ssl.SSLContext, authority: Authority, tmp_path: Path
) -> None:
    server.answers["GET", BLOB] = first(claims(len(DATA), DATA[:1000]), always(404))
    async with with_mirror(server, server_context, authority, tmp_path) as (hub, registry):
        hub.answers["GET", BLOB] = sends(DATA)
        assert b"".join([chunk async for chunk in registry.read_blob(DIGEST, len(DATA))]) == DATA
        assert [each.range for each in hub.seen] == [server.seen[-1].range]


@pytest.mark.needs("openssl")
async def test_d06_a_mirror_that_lies_is_left(
    server: FaultRegistry, server_context: ssl.SSLContext, authority: Authority, tmp_path: Path
) -> None:
    server.answers["GET", BLOB] = sends(bytes(len(DATA)))
    server.answers["GET", TAG] = sends(b"<html>", "text/html")
    async with with_mirror(server, server_context, authority, tmp_path) as (hub, registry):
        hub.answers["GET", BLOB], hub.answers["GET", TAG] = sends(DATA), sends(MANIFEST, SCHEMA2)
        with pytest.raises(errors.Unavailable, match="the content from a mirror has the digest"):
            assert [chunk async for chunk in registry.read_blob(DIGEST, len(DATA))]
        assert b"".join([chunk async for chunk in registry.read_blob(DIGEST, len(DATA))]) == DATA
    async with with_mirror(server, server_context, authority, tmp_path / "2") as (hub, registry):
        hub.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
        assert (await registry.resolve(HUB)).data == MANIFEST
        hub.answers["GET", TAG] = always(404, "gone")
        with pytest.raises(errors.NotFound, match=r"docker\.io answers 404 .*: gone"):
            await registry.resolve(HUB)


async def test_d03_what_is_no_digest_and_no_tag_is_not_requested(server: FaultRegistry) -> None:
    async with talk(server, access="push") as registry:
        for digest in (
            "",
            "sha256:",
            "sha256:" + "0" * 63,
            "md5:" + "0" * 32,
            f"{DIGEST}/../x",
            DIGEST.upper(),
            "a/../b",
        ):
            calls: list[Awaitable[object]] = [
                registry.has_blob(digest),
                anext(registry.read_blob(digest, 5, 1)),
                registry.mount_blob(digest, "x"),
                registry.push_blob(digest, 5, chunks),
                registry.read_manifest(digest),
                registry.push_manifest(digest, b"", SCHEMA2),
            ]
            for call in calls:
                with pytest.raises(errors.Invalid, match=r"as a digest|as a tag"):
                    await call
    assert server.seen == []


Operation = Callable[[FaultRegistry], Awaitable[object]]


@pytest.mark.parametrize("call", [resolve, read, push])
async def test_d08_a_cancelled_operation_ends_at_once_and_leaves_no_connection(
    server: FaultRegistry, call: Operation
) -> None:
    server.answers["POST", UPLOADS] = always(202, Location="/v2/a/b/up")
    server.answers["GET", TAG] = silent
    server.answers["GET", BLOB] = sends_slowly(len(DATA), piece=b"x" * 1000)

    async def takes_all_and_says_nothing(request: web.Request) -> web.StreamResponse:
        await request.read()  # a server that has stopped reading does not notice that we are gone
        return await silent(request)

    server.answers["PUT", "a/b/up"] = takes_all_and_says_nothing

    async def patiently() -> None:
        await (lambda: call(server))()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(patiently)
        await eventually(lambda: server.under_way == 1)
        await anyio.sleep(0.1)
        began = time.monotonic()
        tasks.cancel_scope.cancel()
    assert time.monotonic() - began < limit(10)  # what is under way would take longer
    await eventually(lambda: server.under_way == 0)

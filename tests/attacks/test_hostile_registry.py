"""A registry that attacks its clients: with redirects, with answers that never end, with what it says of others.

At 70b8c43 a manifest just above the least rate was read on and on, a chain of slow redirects blocked an operation for
as long as it liked (S12), and a redirect from https to http was followed to loopback (S13). The rest was withstood
then.
"""

import gzip
import hashlib
import json
import resource
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache

import anyio
import anyio.abc
import pytest
from aiohttp import web

from moorage import errors
from moorage.oci.limits import MANIFEST_BYTES
from moorage.oci.manifest import check_plugin, parse_manifest
from moorage.packages.pull import resolve_package
from moorage.registry._body import AVERAGE_RATE, MINIMUM_RATE, TimeBudget
from moorage.registry._retry import TRIES
from moorage.registry.credentials import Credentials, credentials_for
from moorage.timeouts import DEFAULT
from support.fault_registry import FaultRegistry, always, cut, refuse, sends, sends_slowly, serve_faults
from support.limits import limit
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
    here,
    push,
    read,
    resolve,
    takes,
    talk,
    token_server,
    tokens,
)

pytestmark = [pytest.mark.anyio]

HASTY = replace(QUICK, registry_connect=limit(1), registry_document=limit(1.5), registry_answer=limit(3))
"""Bounds as they are, only in seconds that a test can wait for."""


@pytest.fixture(scope="module")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    pair = Authority(tmp_path_factory.mktemp("ca") / "ca").issue("server", "IP:127.0.0.1,DNS:localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


# S12: how long an answer may take


def test_s12_the_bounds_of_a_download_are_seconds_and_not_hours() -> None:
    assert MINIMUM_RATE >= 1024
    assert TimeBudget(DEFAULT).seconds <= 60
    assert TimeBudget(DEFAULT, 100 << 20).seconds == TimeBudget(DEFAULT).seconds + (100 << 20) / AVERAGE_RATE
    assert DEFAULT.registry_answer <= 120


async def test_s12_a_download_of_a_manifest_at_two_bytes_a_second_is_refused(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends_slowly(None, 0.05, b" ")
    with pytest.raises(errors.Unavailable, match=r"sends less than 1024 bytes a second|does not send all of it within"):
        await resolve(server, timeouts=HASTY)


async def test_s12_a_download_that_keeps_just_above_the_least_rate_ends_all_the_same(server: FaultRegistry) -> None:
    server.answers["GET", TAG] = sends_slowly(None, 0.02, b" " * 200)  # 10 KiB a second: 4 MiB would take seven minutes
    with pytest.raises(
        errors.Unavailable,
        match=rf"cannot read the manifest 1 .*does not send all of it within {TimeBudget(HASTY).seconds:.0f} s",
    ):
        await resolve(server, timeouts=HASTY)
    assert len(server.seen) == 1


async def test_s12_a_download_of_a_blob_has_a_time_in_all_for_all_its_tries(server: FaultRegistry) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = 8000
        await response.prepare(request)
        for _ in range(20):
            await response.write(DATA[:100])
            await anyio.sleep(limit(0.03))
        cut(request)
        return response

    server.answers["GET", BLOB] = answer
    timeouts = replace(HASTY, registry_document=limit(0.7))
    text = f"does not send all of it within {TimeBudget(timeouts, 8000).seconds:.0f} s"
    with pytest.raises(errors.Unavailable, match=text):
        await read(server, 8000, timeouts=timeouts)
    assert len(server.seen) < TRIES


@pytest.mark.sampled(1)
@pytest.mark.parametrize("status", [200, 401, 500])
async def test_s12_a_download_of_a_token_or_of_its_refusal_is_bounded(server: FaultRegistry, status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        while True:
            await response.write(b" " * 100)
            await anyio.sleep(0.02)

    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", answer)
    with pytest.raises((errors.Unavailable, errors.Unauthorized), match="token server"):
        await resolve(server, timeouts=HASTY)


async def test_s12_a_download_that_is_led_in_circles_slowly_is_bounded_together(server: FaultRegistry) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        await anyio.sleep(limit(0.8))
        return refuse(307, Location=f"/v2/{TAG}")

    server.answers["GET", TAG] = slowly
    with pytest.raises(
        errors.Unavailable, match=f"does not answer within {limit(3):g} s, redirects and log-in included"
    ):
        await resolve(server, timeouts=replace(HASTY, registry_stall=limit(2)))
    assert len(server.seen) <= 5


@asynccontextmanager
async def dribbling(line: bytes, pause: float) -> AsyncIterator[int]:
    """A server that begins an answer with this line and sends a byte of a header after each pause, forever."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                if not (await stream.receive()).startswith(b"GET"):
                    return
                await stream.send(line)
                while True:
                    await stream.send(b"x")
                    await anyio.sleep(pause)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # the client has gone

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 ", b"H"])
async def test_s12_a_download_whose_headers_come_byte_by_byte_is_stopped(line: bytes) -> None:
    async with dribbling(line, 0.05) as port:
        with pytest.raises(errors.Unavailable, match=f"127.0.0.1:{port}"):
            await resolve(FaultRegistry(port=port), timeouts=HASTY)


# S13: from TLS to plain text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("path", [TAG, BLOB])
async def test_s13_a_redirect_from_https_to_http_is_refused_also_to_loopback(
    server: FaultRegistry, server_context: ssl.SSLContext, host: str, path: str
) -> None:
    server.answers["GET", TAG], server.answers["GET", BLOB] = sends(MANIFEST, SCHEMA2), sends(DATA)
    async with serve_faults(server_context) as secure:
        secure.answers["GET", path] = always(307, Location=f"http://{host}:{server.port}/v2/{path}")
        with pytest.raises(errors.Unavailable, match=rf"http://{host}:.*from https to http is never followed"):
            await (resolve if path == TAG else read)(secure)
        assert len(secure.seen) == 1
    assert server.seen == []


async def test_s13_a_redirect_of_a_push_from_https_to_http_is_refused(
    server: FaultRegistry, server_context: ssl.SSLContext
) -> None:
    stored = takes(server, always(503))
    async with serve_faults(server_context) as secure:
        for begin in (
            always(307, Location=f"{server.url}/v2/{UPLOADS}"),
            always(202, Location=f"{server.url}/v2/a/b/up"),
            always(202, Location="/v2/a/b/up"),
        ):
            secure.answers["POST", UPLOADS] = begin
            secure.answers["PUT", "a/b/up"] = always(308, Location=f"{server.url}/v2/a/b/up")
            with pytest.raises(errors.Unavailable, match=r"https to http is never followed|in plain text"):
                await push(secure)
    assert (stored, server.seen) == ([], [])


async def test_s13_a_redirect_of_a_token_request_from_https_to_http_is_refused(
    server: FaultRegistry, server_context: ssl.SSLContext
) -> None:
    server.answers["GET", "/token"] = token_server()
    async with serve_faults(server_context) as secure:
        secure.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
        tokens(secure, f"{secure.url}/token", always(307, Location=f"{server.url}/token"))
        with pytest.raises(errors.Unavailable, match="https to http is never followed"):
            await resolve(secure)
    assert server.seen == []


# withstood before, and to stay so


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
async def test_credentials_are_not_carried_over_a_redirect_to_another_server(
    server: FaultRegistry, other: FaultRegistry, scheme: str, status: int
) -> None:
    shown = "Basic bWU6c2VjcmV0" if scheme == "Basic" else "Bearer t"

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != shown:
            return refuse(401, WWW_Authenticate=f'{scheme} realm="{server.url}/token"')
        return refuse(status, Location=f"http://me:secret@127.0.0.1:{other.port}/v2/x")

    server.answers["GET", BLOB] = server.answers["GET", TAG] = answer
    server.answers["GET", "/token"] = token_server()
    challenge = f'{scheme} realm="{other.url}/token"'
    other.answers["GET", "/token"] = token_server()
    other.answers["GET", "x"] = sends(DATA)
    assert await read(server) == DATA
    other.answers["GET", "x"] = always(401, "who are you", WWW_Authenticate=challenge)
    with pytest.raises(errors.Unauthorized, match="who are you"):
        await read(server)
    assert {(each.path, each.authorization) for each in other.seen} == {("/v2/x", None)}


async def test_an_identity_token_is_not_carried_over_a_redirect_of_the_token_server(
    server: FaultRegistry, other: FaultRegistry
) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", always(307, Location=f"{other.url}/token"))
    other.answers["POST", "/token"] = other.answers["GET", "/token"] = token_server()
    identity = credentials_for(server.host, Credentials(identity_token="refresh"))
    with pytest.raises(errors.Unavailable, match="is another server and gets no credentials"):
        await resolve(server, credentials=identity)
    assert other.seen == []


async def test_a_password_goes_to_no_server_that_a_token_server_redirects_to(
    server: FaultRegistry, other: FaultRegistry
) -> None:
    server.answers["GET", TAG] = sends(MANIFEST, SCHEMA2)
    tokens(server, f"{server.url}/token", always(307, Location=f"{other.url}/token"))

    async def token(request: web.Request) -> web.StreamResponse:
        return web.json_response({"token": "t"})

    other.answers["GET", "/token"] = token
    assert await resolve(server) == MANIFEST
    assert {each.authorization for each in other.seen} == {None}


async def test_the_urls_in_descriptors_are_not_followed(server: FaultRegistry, other: FaultRegistry) -> None:
    config = json.dumps({"interface": {"types": [], "socket": "s"}, "entrypoint": ["/x"]}).encode()
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    urls = [f"{other.url}/v2/evil", "http://169.254.169.254/latest", "file:///etc/passwd"]
    gzipped = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    server.answers["GET", f"a/b/blobs/{digest}"] = sends(config)
    server.answers["GET", BLOB] = sends(DATA)
    for layer_type in (gzipped, foreign):
        blob = {"mediaType": "application/vnd.docker.plugin.v1+json", "digest": digest, "size": len(config)}
        layer = {"mediaType": layer_type, "digest": DIGEST, "size": len(DATA), "urls": urls}
        document = {"schemaVersion": 2, "mediaType": SCHEMA2, "config": {**blob, "urls": urls}, "layers": [layer]}
        server.answers["GET", TAG] = sends(json.dumps(document).encode(), SCHEMA2)
        async with talk(server) as registry:
            if layer_type == foreign:
                manifest = await registry.resolve(here(server))
                with pytest.raises(errors.Invalid, match=r"foreign.* cannot be unpacked"):
                    check_plugin(parse_manifest(manifest, "it"), "it")
            else:
                found = await resolve_package(registry, here(server))
                (layer_found,) = found.manifest.layers
                async for _ in registry.read_blob(layer_found.digest, layer_found.size_bytes):
                    pass
    assert other.seen == []


@cache
def make_bomb() -> bytes:
    """Half a gigabyte of zeros, made in pieces."""
    compressor, piece = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16), bytes(1 << 20)
    return b"".join(compressor.compress(piece) for _ in range(1 << 9)) + compressor.flush()


@pytest.mark.parametrize("path", [TAG, "/token", BLOB])
async def test_a_gzip_bomb_in_an_answer_is_not_unpacked(server: FaultRegistry, path: str) -> None:
    bomb = make_bomb()
    assert len(bomb) < MANIFEST_BYTES

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": SCHEMA2})

    server.answers["GET", TAG], server.answers["GET", BLOB] = sends(MANIFEST, SCHEMA2), sends(DATA)
    if path == "/token":
        tokens(server, f"{server.url}/token", answer)
    else:
        server.answers["GET", path] = answer
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((errors.InvalidResponse, errors.Unavailable)):
        await (read if path == BLOB else resolve)(server)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


async def test_a_small_answer_that_says_it_is_gzipped_is_taken_as_it_is(server: FaultRegistry) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(MANIFEST), headers={"Content-Encoding": "gzip", "Content-Type": SCHEMA2})

    server.answers["GET", TAG] = answer
    with pytest.raises(errors.InvalidResponse, match="it is not JSON"):
        await resolve(server)


async def test_no_cookie_of_a_registry_comes_back(server: FaultRegistry) -> None:
    cookies: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(body=MANIFEST, content_type=SCHEMA2, headers={"Set-Cookie": "a=b; Path=/"})

    server.answers["GET", TAG] = answer
    async with talk(server) as registry:
        await registry.resolve(here(server))
        await registry.resolve(here(server))
    assert cookies == [None, None]

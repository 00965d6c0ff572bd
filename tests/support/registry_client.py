"""The registry client as tests of a registry that fails or attacks use it: quick to give up, one blob, one manifest."""

import hashlib
import json
import random
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from moorage.plugins import Reference, parse_reference
from moorage.registry.credentials import Credentials, credentials_for
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from moorage.timeouts import Timeouts
from support.fault_registry import Answer, FaultRegistry, always, first, refuse
from support.limits import limit

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
DATA = random.Random(1).randbytes(1_000_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": SCHEMA2}).encode()
MANIFEST_DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
OTHER_DIGEST = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
QUICK = Timeouts(
    registry_stall=limit(0.4), registry_commit=limit(5), registry_retry_first=0.01, registry_retry_limit=0.02
)
TAG, BLOB, UPLOADS = "a/b/manifests/1", f"a/b/blobs/{DIGEST}", "a/b/blobs/uploads/"


def here(server: FaultRegistry) -> Reference:
    return parse_reference(f"{server.host}/a/b:1")


def talk(server: FaultRegistry, **how: Any) -> Registry:
    """A client with short timeouts that logs in as me."""
    me = credentials_for(server.host, Credentials("me", "secret"))
    return Registry(here(server), **{"timeouts": QUICK, "options": Options(environ={}), "credentials": me, **how})


async def resolve(server: FaultRegistry, **how: Any) -> bytes:
    async with talk(server, **how) as registry:
        return (await registry.resolve(here(server))).data


async def read(server: FaultRegistry, size_bytes: int = len(DATA), offset: int = 0, **how: Any) -> bytes:
    async with talk(server, **how) as registry:
        return b"".join([chunk async for chunk in registry.read_blob(DIGEST, size_bytes, offset)])


async def chunks() -> AsyncGenerator[bytes, None]:
    for start in range(0, len(DATA), 50_000):
        yield DATA[start : start + 50_000]


async def push(server: FaultRegistry, **how: Any) -> None:
    async with talk(server, access="push", **how) as registry:
        await registry.push_blob(DIGEST, len(DATA), chunks)


def tokens(server: FaultRegistry, realm: str, answer: Answer, accepted: str = "Bearer t") -> None:
    """Ask for a token of this realm before anything is shown; ``answer`` is the token server."""
    challenge = f'Bearer realm="{realm}",service="s",scope="repository:a/b:pull"'

    def guarded(inner: Answer) -> Answer:
        async def guard(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") == accepted:
                return await inner(request)
            return refuse(401, "authentication required", WWW_Authenticate=challenge)

        return guard

    server.answers = {key: guarded(inner) for key, inner in server.answers.items()}
    server.answers["GET", "/token"] = server.answers["POST", "/token"] = answer


def token_server(refused: str = "", status: int = 400) -> Answer:
    """Grants ``t`` unless the scopes have this in them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if refused and any(refused in scope for scope in request.query.getall("scope")):
            return refuse(status, "no such class")
        return web.json_response({"token": "t"})

    return answer


def takes(server: FaultRegistry, put: Answer, workspace: str = "/v2/a/b/up?_state=a%2Bb%3D") -> list[bytes]:
    """Let uploads begin, and end at a path of the server; what was stored."""
    stored: list[bytes] = []

    async def store(request: web.Request) -> web.StreamResponse:
        stored.append(await request.read())
        return refuse(201)

    server.answers["POST", UPLOADS] = always(202, Location=workspace)
    server.answers["PUT", "a/b/up"] = first(put, store)
    return stored

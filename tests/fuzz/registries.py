"""Targets: what registries and token servers answer, and the credentials that others keep for them."""

import asyncio
import base64
import json
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from random import Random

from fuzz.environment import loop, scratch
from fuzz.harness import CrashError, Target
from fuzz.mutation import mutate_bytes, mutate_json, mutate_lines
from moorage import errors
from moorage.plugins import parse_reference
from moorage.registry._authorization import Authorizer, Challenge, Scope, TokenReply, TokenRequest, parse_challenges
from moorage.registry._retry import retry_after
from moorage.registry.credentials import Credentials, credentials_for, decode_registry_auth
from moorage.registry.docker_config import DockerConfig, read_reply
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry
from moorage.timeouts import DEFAULT
from support.limits import limit

SECRET = "a-very-secret-password"
TOKEN = "a-token-for-the-registry-alone"
_SCOPES = frozenset((Scope("a/b", "pull"),))
_TIMEOUTS = replace(
    DEFAULT, registry_connect=limit(2.0), registry_stall=0.05, registry_retry_first=0.001, registry_retry_limit=0.002,
    registry_retry_after=0.01, cleanup=limit(2.0),
)  # fmt: skip
_KINDS = (
    errors.Invalid, errors.InvalidResponse, errors.Unauthorized, errors.Denied, errors.NotFound, errors.Conflict, errors.Unsupported, errors.Unavailable,
    errors.MoorageError,
)  # fmt: skip


# --------------------------------------------------------------------------------------------------- challenges


def read_challenges(data: bytes) -> None:
    """Headers WWW-Authenticate and Retry-After."""
    text = data.decode("utf-8", "surrogateescape")
    for each in parse_challenges(text.split("\n")):
        if not each.scheme or each.scheme != each.scheme.lower():
            raise CrashError("a challenge without a scheme")
    retry_after(text, now=1.7e9)


def read_token(data: bytes) -> None:
    """The realm that a registry names, and what its token server answers."""
    realm, _, body = data.partition(b"\n")
    challenge = Challenge(
        "bearer", {"realm": realm.decode("utf-8", "surrogateescape"), "service": "x", "scope": "a:b:c"}
    )

    async def send(request: TokenRequest) -> TokenReply:
        str(request.url).encode()
        return TokenReply(200, body)

    async def authorize() -> None:
        authorizer = Authorizer("registry", Credentials("me", SECRET), send)
        header = await authorizer.answer([challenge], _SCOPES, None)
        if header is not None and not (header.isascii() and header.isprintable()):
            raise CrashError("a header that cannot be sent")

    loop().run_until_complete(authorize())


# -------------------------------------------------------------------------------------------------- credentials


def read_docker_config(data: bytes) -> None:
    """``config.json`` of docker login, what a credential helper prints, and X-Registry-Auth."""
    path = scratch() / "docker-config.json"
    path.write_bytes(data)
    for host in ("docker.io", "localhost:5000"):
        with suppress(errors.Invalid, errors.MoorageError):
            _check(loop().run_until_complete(DockerConfig(path)(host)))
    with suppress(errors.MoorageError):
        _check(read_reply(data, "helper", "server"))
    for header in (data.decode("utf-8", "surrogateescape"), base64.b64encode(data).decode()):
        with suppress(errors.Invalid):
            _check(decode_registry_auth(header))


def _check(found: Credentials) -> None:
    shown = repr(found).replace(f"docker-credential-{SECRET}", "")  # the name of a helper is no secret
    if SECRET in shown and SECRET not in found.username:
        raise CrashError("a secret is shown")
    if found.basic is not None:
        found.basic.encode("ascii")


# ----------------------------------------------------------------------------------------------------- registry


class Scripted:
    """Two servers: a registry that answers what it is given, and a second server that records what it gets."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.leaked = False
        self.port = self.stranger = 0

    async def start(self) -> "Scripted":
        registry = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        stranger = await asyncio.start_server(self._note, "127.0.0.1", 0)
        self.port, self.stranger = (each.sockets[0].getsockname()[1] for each in (registry, stranger))
        return self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while self.answers:
                if await reader.readexactly(1) == b"\x16":
                    break  # TLS, which is not spoken here
                await reader.readuntil(b"\r\n\r\n")
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for name, port in ((b"@REGISTRY@", self.port), (b"@STRANGER@", self.stranger)):
                    answer = answer.replace(name, b"127.0.0.1:%d" % port)
                writer.write(answer)
                await writer.drain()
                if b"Content-Length" not in answer:
                    break
        writer.close()

    async def _note(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.leaked |= TOKEN.encode() in head
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()


@cache
def _scripted() -> Scripted:
    return loop().run_until_complete(Scripted().start())


def talk_to_registry(data: bytes) -> None:
    """Answers of a registry to a client that reads a manifest and a blob; a registry token goes nowhere else."""
    servers = _scripted()
    servers.answers = data.split(b"\n----\n")[:8]
    host = f"127.0.0.1:{servers.port}"
    reference = parse_reference(f"{host}/a/b:c")

    async def read() -> None:
        credentials = credentials_for(
            host, Credentials("me", SECRET, registry_token=TOKEN if data[-1:] == b"\n" else "")
        )
        options = Options(insecure=("127.0.0.1",), environ={})
        async with Registry(reference, credentials=credentials, options=options, timeouts=_TIMEOUTS) as registry:
            manifest = await registry.resolve(reference)
            str(manifest).encode()
            async for _ in registry.read_blob(manifest.digest, len(manifest.data)):
                pass

    try:
        loop().run_until_complete(asyncio.wait_for(read(), limit(10)))  # noqa: TID251 - no test may hang
    except TimeoutError as error:
        raise CrashError("the conversation does not end") from error
    except errors.MoorageError as error:
        str(error).encode(errors="surrogateescape")
        if SECRET in str(error) or TOKEN in str(error):
            raise CrashError("a secret is shown") from error
    finally:
        if servers.leaked:
            servers.leaked = False
            raise CrashError("a stranger got the registry's token")


_OCI = "application/vnd.oci.image.manifest.v1+json"
_MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": _OCI, "layers": []}).encode()


def _answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_GOOD = _answer("200 OK", f"Content-Type: {_OCI}", body=_MANIFEST)
_BEARER = 'WWW-Authenticate: Bearer realm="http://@REGISTRY@/token",service="r",scope="repository:a/b:pull"'
_CONVERSATIONS = tuple(
    b"\n----\n".join(each)
    for each in (
        (_GOOD, _GOOD),
        (_answer("401 Unauthorized", _BEARER), _answer("200 OK", body=b'{"token":"x","expires_in":60}'), _GOOD, _GOOD),
        (_answer("401 Unauthorized", 'WWW-Authenticate: Basic realm="r"'), _GOOD, _GOOD),
        (_answer("307 Temporary Redirect", "Location: http://@STRANGER@/x"), _GOOD + b"\n"),
        (_answer("307 Temporary Redirect", "Location: /v2/../x"), _GOOD, _GOOD),
        (_answer("404 Not Found", body=b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}'),),
        (_answer("503 Service Unavailable", "Retry-After: 1"), _GOOD),
        (_GOOD, _answer("206 Partial Content", "Content-Range: bytes 0-1/2", body=b"{}")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",),
    )
)
_WORDS = (
    b"Location: http://@STRANGER@/", b"Location: https://@STRANGER@/", b"Location: //", b"Location: file:///etc/passwd", b"http://[", b"%",
    b"WWW-Authenticate: ", b"Bearer ", b'realm="', b"Docker-Content-Digest: sha256:0", b"Content-Range: bytes ", b"Retry-After: ", b"307", b"401",
    b"206", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"\xff", b"@REGISTRY@", b"Set-Cookie: a=b", b"\r\n ", b"99999999999999999999",
)  # fmt: skip


def _mutate_conversation(data: bytes, random: Random) -> bytes:
    if random.random() < 0.2:
        parts = data.split(b"\n----\n")
        random.shuffle(parts)
        return b"\n----\n".join(parts)
    return (mutate_lines if random.random() < 0.3 else partial(mutate_bytes, words=_WORDS))(data, random)


def _mutate_token(data: bytes, random: Random) -> bytes:
    realm, _, body = data.partition(b"\n")
    if random.random() < 0.4:
        return mutate_bytes(realm, random, _WORDS) + b"\n" + body
    return realm + b"\n" + mutate_json(body, random, ("token", "access_token", "expires_in", "issued_at"))


_AUTHS = {
    "auths": {
        "https://index.docker.io/v1/": {"auth": "bWU6" + base64.b64encode(SECRET.encode()).decode()},
        "localhost:5000": {"username": "me", "password": SECRET},
    }
}
_LOGIN = (
    json.dumps(_AUTHS).encode(), json.dumps({"Username": "me", "Secret": SECRET}).encode(),
    json.dumps({"username": "me", "password": SECRET, "identitytoken": "x", "registrytoken": "y"}).encode(),
    b'{"credHelpers":{"localhost:5000":"../x"},"credsStore":"none-such"}',
)  # fmt: skip

TARGETS = (
    Target(
        "challenge", "headers WWW-Authenticate and Retry-After", read_challenges,
        (b'Bearer realm="https://a/token",service="r",scope="repository:a/b:pull"', b'Basic realm="a \\"b\\"", Negotiate YWJj==', b"Wed, 21 Oct 2026 07:28:00 GMT"),
        dictionary=(b"Bearer ", b"realm=", b'"', b"\\", b",", b"=", b"\t", b" "), executions=3000,
    ),
    Target(
        "token", "answers of token servers", read_token, (b'https://a/token\n{"token":"abc","expires_in":300}',), _mutate_token,
        kinds=(errors.Unavailable, errors.Denied, errors.Unauthorized), executions=1000,
    ),
    Target(
        "credentials", "config.json of docker login, credential helpers, X-Registry-Auth", read_docker_config, _LOGIN,
        partial(mutate_json, keys=("auths", "auth", "username", "password", "identitytoken", "registrytoken", "credHelpers", "credsStore", "Username", "Secret")),
        executions=400,
    ),
    Target("registry", "HTTP of registries: redirects, challenges, manifests, blobs", talk_to_registry, _CONVERSATIONS, _mutate_conversation, kinds=_KINDS, executions=150),
)  # fmt: skip

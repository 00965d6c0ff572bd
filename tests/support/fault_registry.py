"""A registry that answers whatever a test wants, also nonsense, on a loopback port."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """A request as it was received."""

    method: str
    path: str
    authorization: str | None
    range: str | None
    query: dict[str, list[str]]
    form: dict[str, str]


@dataclass
class FaultRegistry:
    """Answers by ``answers[method, path below /v2/]``, else with 404; to ``/v2/`` with 200."""

    port: int = 0
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    under_way: int = 0
    scheme: str = "http"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def of(self, method: str) -> list[Seen]:
        return [each for each in self.seen if each.method == method]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/" and ("GET", "") not in self.answers:
            return web.Response()
        is_form = request.content_type == "application/x-www-form-urlencoded"
        form = {key: str(value) for key, value in (await request.post()).items()} if is_form else {}
        query = {key: request.query.getall(key) for key in request.query}
        headers = request.headers
        self.seen.append(
            Seen(request.method, request.path, headers.get("Authorization"), headers.get("Range"), query, form)
        )
        answer = self.answers.get((request.method, request.path.removeprefix("/v2/")))
        if answer is None:
            return refuse(404, "the test knows no such thing")
        self.under_way += 1
        try:
            return await answer(request)
        finally:
            self.under_way -= 1


@asynccontextmanager
async def serve_faults(context: ssl.SSLContext | None = None, *, port: int = 0) -> AsyncIterator[FaultRegistry]:
    """Until the end of the block; with a context in TLS."""
    registry = FaultRegistry(scheme="https" if context else "http")
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", registry.handle)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        max_line_size=1 << 20,  # the limits under test are the client's
        max_field_size=1 << 20,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    registry.port = runner.addresses[0][1]
    try:
        yield registry
    finally:
        await runner.cleanup()


def refuse(status: int, message: str = "", **headers: str) -> web.Response:
    body = {"errors": [{"code": "X", "message": message}]} if message else {}
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return web.json_response(body, status=status, headers=names)


def always(status: int, message: str = "", **headers: str) -> Answer:
    """The same answer to each request."""

    async def answer(request: web.Request) -> web.Response:
        return refuse(status, message, **headers)

    return answer


def first(*answers: Answer) -> Answer:
    """One answer after another; the last one stays."""
    waiting = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(request)

    return answer


def sends(data: bytes, media_type: str = "application/octet-stream", **headers: str) -> Answer:
    """These bytes, and ranges of them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        names["Content-Type"] = media_type
        if begin := begin_of(request):
            names["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return web.Response(body=data[begin:], status=206 if begin else 200, headers=names)

    return answer


def begin_of(request: web.Request) -> int:
    return int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def claims(length: int | None, data: bytes = b"", *, media_type: str = "application/octet-stream") -> Answer:
    """A body that says it has ``length`` bytes (None: chunked), has these, and is cut where that is not the end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": media_type})
        response.content_length = length
        await response.prepare(request)
        await response.write(data)
        if length is not None and len(data) < length:
            cut(request)
        return response

    return answer


def cut(request: web.Request) -> None:
    """Reset the connection under a request."""
    assert request.transport is not None
    request.transport.abort()


def sends_slowly(length: int | None, pause: float = 0.05, piece: bytes = b"x", **headers: str) -> Answer:
    """A body that never ends, a piece after each pause."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        response.content_length = length
        await response.prepare(request)
        while True:
            await response.write(piece)
            await anyio.sleep(pause)

    return answer


async def silent(request: web.Request) -> web.StreamResponse:
    """No answer at all."""
    await anyio.sleep_forever()
    raise AssertionError("never comes here")

"""Targets: requests to the API, through its real server on a unix socket; the engine behind it is in memory."""

import asyncio
import json
import logging
from contextlib import AsyncExitStack, suppress
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from aiohttp.http import HttpProcessingError

from fuzz.environment import loop, scratch
from fuzz.harness import CrashError, Target
from fuzz.mutation import mutate_bytes, mutate_json, mutate_lines
from moorage.api.http.query import boolean, instant, integer, json_body, parse_filters, seconds, truth
from moorage.api.routes import ROUTES
from moorage.api.server import serve_api
from moorage.plugins import parse_config, parse_reference
from support.api_client import CONFIG, package
from support.fake_backend import FakeBackend

_IDLE = 0.005  # seconds without another byte until an answer that does not end is left
_BYTES = 1 << 20


class Failures(logging.Handler):
    """What the server logs of requests that fail unexpectedly."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((record.exc_info and record.exc_info[1]) or record.getMessage())


class Served:
    """The API for the life of this process."""

    def __init__(self) -> None:
        self.path = scratch() / "m.sock"
        self.failures = Failures()
        self._until = AsyncExitStack()
        for name in ("moorage", "aiohttp", "asyncio"):
            logging.getLogger(name).addHandler(self.failures)

    async def start(self) -> "Served":
        await self.renew()
        return self

    async def renew(self) -> None:
        """Serve another engine, with two plugins."""
        await self._until.aclose()
        backend = FakeBackend()
        for name in ("on:latest", "off:latest"):
            backend.add(name, parse_config(json.dumps(CONFIG).encode()).config)
        await backend.enable("on", 0)
        there = parse_reference("localhost:5000/a/b").with_default_tag()
        backend.packages.there[str(there)] = parse_config(json.dumps(CONFIG).encode()).config
        await self._until.enter_async_context(serve_api(backend, self.path, None))


@cache
def _served() -> Served:
    return loop().run_until_complete(Served().start())


async def _request(path: Path, data: bytes) -> bytes:
    """Send it, and take what comes until the end of the answer, or until nothing comes any more."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=_BYTES)
    taken = b""
    try:
        with suppress(OSError):
            writer.write(data)
            await writer.drain()
            within = 0.2 if b"\r\n\r\n" in data else _IDLE
            while len(taken) < _BYTES:
                piece = await asyncio.wait_for(reader.read(65536), within)  # noqa: TID251 - as the reader's own limit
                if not piece:
                    break
                taken += piece
                within = _IDLE
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    return taken


_executions = 0


def request_api(data: bytes) -> None:
    """One connection with these bytes."""
    global _executions
    _executions += 1
    served = _served()
    if _executions % 2000 == 0:
        loop().run_until_complete(served.renew())
    served.failures.found.clear()
    answer = loop().run_until_complete(_request(served.path, data))
    failures, served.failures.found = served.failures.found, []
    for failure in failures:
        if isinstance(failure, HttpProcessingError):
            continue  # answered with 400, and logged by aiohttp
        if isinstance(failure, BaseException):
            raise failure
        raise CrashError(f"the server logged: {failure}")
    if answer and not answer.startswith(b"HTTP/"):
        raise CrashError(f"an answer that is no HTTP: {answer[:80]!r}")


def read_query(data: bytes) -> None:
    """Values of queries, and a JSON body, by themselves: faster than through the server."""
    text = data.decode("utf-8", "surrogateescape")
    filters = frozenset({"enabled", "capability"})
    tries: tuple[Any, ...] = (
        lambda: boolean(text),
        lambda: integer(text),
        lambda: seconds(text, "timeout"),
        lambda: instant(text, "since"),
        lambda: truth(parse_filters(text, filters), "enabled"),
        lambda: json.dumps(json_body(data, "application/json", has_body=True), ensure_ascii=False).encode(),
        lambda: json_body(b"{}", text, has_body=True),
    )
    from moorage import errors

    for one in tries:
        with suppress(errors.Invalid):
            one()


_BODIES: dict[str, bytes] = {"json": b'["DEBUG=1"]', "tar": package(CONFIG), "any": b"{}", "": b""}
_VALUES = {
    "name": "new", "remote": "localhost:5000/a/b", "timeout": "0", "force": "1", "tail": "3", "since": "1", "until": "2", "follow": "0",
    "method": "Plugin.Activate", "to": "other", "path": "/x", "command": '%5B%22x%22%5D', "env": '%5B%22A=b%22%5D', "tty": "1", "rows": "24",
    "columns": "80", "filters": '%7B%22enabled%22:%7B%22true%22:true%7D%7D', "attached": "0", "restart": "1",
}  # fmt: skip
_OWN_BODIES = {
    "policy": b'{"restarts":"never","most":3,"stop_timeout":2}', "set": b'{"assignments":["DEBUG=1"],"secrets":["DEBUG=2"]}',
    "holders": b'{"owner":"me"}', "save": b'{"names":["on"]}', "pull": b'{"privileges":[],"settings":["DEBUG=1"],"secrets":[],"attended":true}',
}  # fmt: skip


def _seed(route: Any) -> bytes:
    path = route.template.replace("{name}", "off" if route.method != "GET" else "on").replace("{token}", "t")
    query = "&".join(f"{key}={_VALUES.get(key, '1')}" for key in route.query)
    kind = route.takes if route.takes in ("tar", "any") else "" if route.takes is None else "json"
    body = _BODIES[kind]
    if "/moorage/" in path and kind == "json":
        body = _OWN_BODIES.get(path.rpartition("/")[2], _OWN_BODIES["pull"])
    elif path.endswith(("pull", "upgrade")):
        body = b"[]"
    media_type = {"json": "application/json", "tar": "application/x-tar"}.get(kind, "")
    head = [
        f"{route.method} {path}{'?' + query if query else ''} HTTP/1.1",
        "Host: m",
        *([f"Content-Type: {media_type}"] if media_type else []),
    ]
    return "\r\n".join([*head, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body


_WORDS = (
    b"%2F", b"%2e%2e/", b"..", b"%00", b"%0a", b"//", b"?", b"&", b"#", b"/v1.99", b"/v1.24", b"/v0.0", b"*", b"on", b"off:latest", b"HTTP/1.0",
    b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"X-Registry-Auth: e30=\r\n", b"X-Registry-Auth: W10=\r\n", b"X-Registry-Auth: \xff\r\n", b"Content-Type: text/plain\r\n", b"Accept: ;,;\r\n",
    b"Content-Encoding: gzip\r\n", b"Cookie: \xff=\r\n", b"Range: bytes=0-\r\n", b"\r\n\r\n", b"HEAD ", b"PUT ", b"DELETE ", b"PATCH ", b"POST ",
    b"%ff", b"%", b"5\r\n12345\r\n", b"0\r\n\r\n", b"http://x/", b"\xe2\x80\xae", b"tail=99999999999999999999", b"since=1e400", b"timeout=nan",
    b'filters={"enabled":{"true":1}}', b"command=[[[[", b"name=", b"name=..%2f..", b"Host: \r\n", b"Sec-WebSocket-Key: x\r\n",
)  # fmt: skip


def _mutate_request(data: bytes, random: Random) -> bytes:
    head, gap, body = data.partition(b"\r\n\r\n")
    if gap and body and random.random() < 0.35:
        body = mutate_json(
            body, random, ("privileges", "settings", "restarts", "most", "owner", "Name", "Value", "stop_timeout")
        )
        lines = [each for each in head.split(b"\r\n") if not each.lower().startswith(b"content-length")]
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + gap + body
    if random.random() < 0.5:
        line, _, rest = data.partition(b"\r\n")
        return mutate_bytes(line, random, _WORDS) + b"\r\n" + rest
    return (mutate_lines if random.random() < 0.3 else partial(mutate_bytes, words=_WORDS))(data, random)


TARGETS = (
    Target("api", "requests to the API, every route", request_api, tuple(map(_seed, ROUTES)), _mutate_request, executions=600),
    Target(
        "query", "queries and JSON bodies of the API", read_query,
        (b"1", b"2026-01-01T00:00:00.5Z", b"1.7e9", b'{"enabled":{"true":true},"capability":["volumedriver"]}', b'["A=b"]'), mutate_json,
        executions=2000,
    ),
)  # fmt: skip

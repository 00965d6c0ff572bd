"""Requests to an API on a unix socket, as they are written: no part of a path is encoded again."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from support.limits import limit

_LARGE = 2**20

CONFIG: dict[str, Any] = {
    "description": "says nothing",
    "entrypoint": ["/plugin"],
    "interface": {"types": ["docker.volumedriver/1.0", "docker.logdriver/1.0"], "socket": "p.sock"},
    "env": [{"name": "DEBUG", "settable": ["value"], "value": "0"}, {"name": "FIXED", "value": "1"}],
}


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        document = self.json
        assert set(document) == {"message"}
        return str(document["message"])


class ApiClient:
    """A client of the API at a socket."""

    def __init__(self, socket: Path, session: aiohttp.ClientSession) -> None:
        self.socket = socket
        self.session = session

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is no bytes and no stream is sent as JSON."""
        async with self.open(method, path, body, **headers) as response:
            return Answer(response.status, response.headers, await response.read())

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request whose answer is read in the block."""
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if isinstance(body, dict | list):
            body, sent["Content-Type"] = json.dumps(body), "application/json"
        if isinstance(body, bytes) and len(body) > _LARGE:
            body = io.BytesIO(body)  # aiohttp does not want to write that at once
        skip = {"Content-Type"}
        url = URL(f"http://api.moby.localhost{path}", encoded=True)
        async with self.session.request(method, url, data=body, headers=sent, skip_auto_headers=skip) as response:
            yield response

    async def create(self, name: str, config: dict[str, Any] | None = None) -> str:
        """Make a plugin; its id."""
        answer = await self.request("POST", f"/plugins/create?name={quote(name, safe='')}", package(config or CONFIG))
        assert answer.status == 204, answer.body
        return str((await self.request("GET", f"/plugins/{name}/json")).json["Id"])


@asynccontextmanager
async def api_client(socket: Path) -> AsyncIterator[ApiClient]:
    """A client with connections of its own."""
    timeout = aiohttp.ClientTimeout(total=limit(20))
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=timeout) as session:
        yield ApiClient(socket, session)


def package(config: dict[str, Any]) -> bytes:
    """A package with this config and an empty root file system."""
    stream, raw = io.BytesIO(), json.dumps(config).encode()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("config.json")
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))
        folder = tarfile.TarInfo("rootfs")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
    return stream.getvalue()

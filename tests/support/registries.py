"""Registries to talk to: Debian's docker-registry on a loopback port, certificates of the test's own, a proxy."""

import base64
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from support.limits import limit

START_SECONDS = limit(20.0)

USER, PASSWORD = "me", "secret"
_HTPASSWD = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"  # bcrypt of PASSWORD


@dataclass(frozen=True)
class Served:
    """A registry that runs: its port, and the file with its output."""

    port: int
    log: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def serve_registry(folder: Path, **sections: Mapping[str, Any]) -> Iterator[Served]:
    """Debian's docker-registry until the end of the block; ``sections`` go into its config (``auth``, ``tls``)."""
    folder.mkdir(parents=True)
    port = _free_port()
    http = {"addr": f"127.0.0.1:{port}", "secret": "s", **({"tls": sections.pop("tls")} if "tls" in sections else {})}
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}}
    config = {"version": "0.1", "log": {"level": "debug"}, "storage": storage, "http": http, **sections}
    (folder / "config.yml").write_text(json.dumps(config))
    served = Served(port, folder / "log")
    with served.log.open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        _wait_for_port(process, served)
        yield served
    finally:
        process.kill()
        process.wait()


def htpasswd(folder: Path) -> dict[str, Any]:
    """The config section for a log-in as ``USER`` with ``PASSWORD``."""
    path = folder / "htpasswd"
    path.write_text(_HTPASSWD)
    return {"htpasswd": {"realm": 'a "quoted", realm', "path": str(path)}}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for_port(process: subprocess.Popen[bytes], served: Served) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while time.monotonic() < ends_at and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", served.port), timeout=1).close()
        except OSError:
            time.sleep(0.02)  # it is not ready yet, and there is no event for it
        else:
            return
    raise AssertionError(f"docker-registry does not start: {served.text()}")


# certificates


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    """A private CA in a folder; also one as made by hand, without key identifiers in any certificate."""

    def __init__(self, folder: Path, *, has_key_identifiers: bool = True) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.pair = Pair(folder / "ca.crt", folder / "ca.key")
        identifiers = "" if has_key_identifiers else "subjectKeyIdentifier=none\nauthorityKeyIdentifier=none\n"
        (folder / "ca.cnf").write_text(
            "[req]\ndistinguished_name=name\nx509_extensions=ca\n[name]\n[ca]\nbasicConstraints=critical,CA:TRUE\n"
            f"keyUsage=critical,keyCertSign,digitalSignature\n{identifiers or _IDENTIFIERS}"
        )
        self._extensions = identifiers
        subject = ("-config", folder / "ca.cnf", "-subj", "/CN=moorage test CA")
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self.pair.key, "-out", self.pair.certificate, *subject)

    def issue(self, name: str, alternatives: str) -> Pair:
        """A certificate, for ``DNS:...,IP:...``."""
        pair = Pair(self.folder / f"{name}.cert", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n{self._extensions}")
        _openssl("req", *_NEW_KEY, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
        signer = ("-CA", self.pair.certificate, "-CAkey", self.pair.key, "-CAcreateserial", "-days", "2")
        _openssl("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-out", pair.certificate)
        return pair

    def sign_token(self, claims: Mapping[str, Any]) -> str:
        """A JSON web token of this CA, as docker-registry takes it."""
        der = _openssl("x509", "-in", self.pair.certificate, "-outform", "der")
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        signed = b".".join(_part(json.dumps(each).encode()) for each in (head, claims))
        signature = _openssl("dgst", "-sha256", "-sign", self.pair.key, input=signed)
        return b".".join((signed, _part(signature))).decode()


_IDENTIFIERS = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
_NEW_KEY = ("-newkey", "rsa:2048", "-nodes", "-sha256")


def _part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _openssl(*arguments: str | Path, input: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *arguments], input=input, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


# a proxy


@dataclass
class Proxy:
    """Leads everything to one port, whatever name is requested, and notes the first lines of requests."""

    port: int
    target: int
    lines: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", self.target) as server:
            first = await client.receive()
            line = first.split(b"\r\n", 1)[0].decode()
            self.lines.append(line)
            if line.startswith("CONNECT"):
                await client.send(b"HTTP/1.1 200 go on\r\n\r\n")
            else:
                await server.send(first)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_pump, client, server)
                tasks.start_soon(_pump, server, client)


async def _pump(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send(data)
        await sink.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        pass  # a closed end; the other one is closed with it


@asynccontextmanager
async def serve_proxy(target: int) -> AsyncIterator[Proxy]:
    """A proxy until the end of the block."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)
    proxy = Proxy(port, target, [])
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()

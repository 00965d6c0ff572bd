"""``docker login`` against our socket and against a real dockerd: the same registries accept the same credentials."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from peers.dockerd import Dockerd
from peers.test_docker_cli import clis
from support.engines import EngineProcess, Refused
from support.fault_registry import Answer, FaultRegistry, always, refuse
from support.limits import limit
from support.registries import PASSWORD, USER, Authority, Served, htpasswd, serve_registry
from support.registry_faults import fault_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "docker-registry", "openssl")]


@dataclass(frozen=True)
class Registries:
    """One of each kind."""

    open: Served
    """Without a log-in."""
    basic: Served
    tls: Served
    """In TLS, with a certificate that the engine does not know; on loopback."""
    token: FaultRegistry
    """With a token server that grants identity tokens."""


def token_server(realm: str) -> tuple[Answer, Answer]:
    """What ``/v2/`` and the token server answer."""

    async def base(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Bearer t":
            return web.json_response({})
        return refuse(401, "authentication required", WWW_Authenticate=f'Bearer realm="{realm}",service="s"')

    async def token(request: web.Request) -> web.StreamResponse:
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.headers.get("Authorization") != basic:
            return refuse(401, "wrong password")
        identity = {"refresh_token": "identity"} if request.query.get("offline_token") == "true" else {}
        return web.json_response({"token": "t", **identity})

    return base, token


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    folder = tmp_path_factory.mktemp("registries")
    pair = Authority(folder / "ca").issue("server", "IP:127.0.0.1")
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    with (
        serve_registry(folder / "open") as open_,
        serve_registry(folder / "basic", auth=htpasswd(folder)) as basic,
        serve_registry(folder / "tls", tls=tls, auth=htpasswd(folder)) as secure,
        fault_registry() as token,
    ):
        token.answers["GET", ""], token.answers["GET", "/token"] = token_server(f"{token.url}/token")
        yield Registries(open_, basic, secure, token)


def login(cli: str, socket: Path, home: Path, host: str, password: str = PASSWORD) -> tuple[int, str, Any]:
    """The exit status of the command, what it prints, and what it stores for the host."""
    home.mkdir(exist_ok=True)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "DOCKER_HOST": f"unix://{socket}"}
    command = [cli, "login", "--username", USER, "--password-stdin", host]
    done = subprocess.run(command, input=password, capture_output=True, text=True, env=environment, timeout=limit(60))
    path = home / ".docker/config.json"
    stored = json.loads(path.read_text())["auths"].get(host) if path.exists() else None
    return done.returncode, done.stdout + done.stderr, stored


@pytest.mark.parametrize("cli", clis())
@pytest.mark.parametrize("kind", ["open", "basic", "tls", "token"])
def test_case_250_docker_login_works_as_with_dockerd(
    cli: str, kind: str, dockerd: Dockerd, house: EngineProcess, registries: Registries, tmp_path: Path
) -> None:
    host = getattr(registries, kind).host
    moorage = login(cli, house.socket, tmp_path / "ours", host)
    docker = login(cli, dockerd.address, tmp_path / "theirs", host)
    assert moorage[0] == docker[0] == 0, (moorage, docker)
    assert "Login Succeeded" in moorage[1]
    assert moorage[2] == docker[2]
    assert (moorage[2].get("identitytoken") == "identity") == (kind == "token")


@pytest.mark.parametrize("cli", clis())
@pytest.mark.parametrize("kind", ["basic", "tls", "token"])
def test_case_250_docker_login_refuses_a_wrong_password_as_with_dockerd(
    cli: str, kind: str, dockerd: Dockerd, house: EngineProcess, registries: Registries, tmp_path: Path
) -> None:
    host = getattr(registries, kind).host
    moorage = login(cli, house.socket, tmp_path / "ours", host, "wrong")
    docker = login(cli, dockerd.address, tmp_path / "theirs", host, "wrong")
    assert moorage[0] == docker[0] == 1, (moorage, docker)
    assert moorage[2] is docker[2] is None
    assert "401" in moorage[1]
    assert "nauthorized" in moorage[1]


@pytest.mark.parametrize("cli", clis())
def test_case_250_a_login_is_used_and_nothing_is_stored_for_an_unavailable_registry(
    cli: str, dockerd: Dockerd, house: EngineProcess, registries: Registries, tmp_path: Path
) -> None:
    for socket in (house.socket, dockerd.address):
        status, text, stored = login(cli, socket, tmp_path / "away", "127.0.0.1:1")
        assert (status, stored) == (1, None), text
    assert login(cli, house.socket, tmp_path / "home", registries.basic.host)[0] == 0
    remote = f"{registries.basic.host}/t/nothing:1"
    environment = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "DOCKER_HOST": f"unix://{house.socket}"}
    command = [cli, "plugin", "install", "--grant-all-permissions", remote]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit(60))
    assert "404" in done.stderr, "the credentials were accepted, and there is no such plugin"


def test_case_244_auth_answers_as_the_daemons_does(
    dockerd: Dockerd, house: EngineProcess, registries: Registries
) -> None:
    bodies = {"username": USER, "password": PASSWORD, "serveraddress": registries.basic.host}
    expected = {"IdentityToken": "", "Status": "Login Succeeded"}
    assert house.request_json("POST", "/auth", bodies) == house.request_json("POST", "/v1.30/auth", bodies) == expected
    for address in (f"http://{registries.basic.host}/v2/", f"https://{registries.basic.host}"):
        assert house.request_json("POST", "/auth", {**bodies, "serveraddress": address}) == expected
    encoded = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), "serveraddress": registries.basic.host}
    assert house.request_json("POST", "/auth", encoded) == expected
    status, raw = house.request("POST", "/auth", json.dumps(bodies).encode())
    assert (status, json.loads(raw)) == (200, expected), "whatever the type of the body"


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"username": USER, "password": "wrong"}, 401),
        ({"username": USER}, 401),
        ({"username": 1}, 400),
        ({"serveraddress": 1}, 400),
        ({"serveraddress": "me:secret@h"}, 400),
        ({"auth": "%"}, 400),
        ([], 400),
        ("x", 400),
        (None, 400),
    ],
)
def test_case_244_auth_refuses_by_kind(
    house: EngineProcess, registries: Registries, document: Any, status: int
) -> None:
    body = {"serveraddress": registries.basic.host, **document} if isinstance(document, dict) else document
    raw = None if body is None else json.dumps(body).encode()
    with pytest.raises(Refused) as caught:
        house.request_json("POST", "/auth", raw, headers={"Content-Type": "application/json"})
    assert caught.value.status == status
    assert "wrong" not in caught.value.message
    assert "secret" not in caught.value.message or "me:secret@h" in caught.value.message


def test_case_244_an_engine_behind_a_registry_that_fails_says_so(house: EngineProcess, registries: Registries) -> None:
    body = {"username": USER, "password": PASSWORD, "serveraddress": registries.token.host}
    before = registries.token.answers["GET", "/token"]
    registries.token.answers["GET", "/token"] = always(403, "locked")
    try:
        with pytest.raises(Refused, match=r"token server .* answers 403 .* to a log-in: locked") as caught:
            house.request_json("POST", "/auth", body)
    finally:
        registries.token.answers["GET", "/token"] = before
    assert caught.value.status == 403

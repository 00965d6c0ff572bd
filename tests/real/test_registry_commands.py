"""Registries as users of the command meet them: a whole engine, the command as a process, registries that misbehave."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from support.engines import EngineProcess, config, engine
from support.fault_registry import Answer, FaultRegistry, always, refuse, sends_slowly
from support.limits import limit
from support.packages import SCHEMA2, make
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry
from support.registry_faults import fault_registry, offer

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("static-cc", "docker-registry"),
    pytest.mark.usefixtures("nothing_else"),
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    quick = {
        "registry_stall": limit(1.0),
        "registry_document": limit(2.0),
        "registry_retry_first": 0.01,
        "registry_retry_limit": 0.1,
    }
    with engine(tmp_path_factory.mktemp("engine"), timeouts=quick) as made:
        yield made


@pytest.fixture(scope="module")
def with_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("registries")
    with serve_registry(folder / "login", auth=htpasswd(folder)) as served:
        yield served


@pytest.fixture
def registry() -> Iterator[FaultRegistry]:
    with fault_registry() as made:
        yield made


def moorage(house: EngineProcess, home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, of a user with this home."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited, "HOME": str(home), **environment}, timeout=limit(120)
    )


def store(home: Path, document: dict[str, Any]) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker/config.json").write_text(json.dumps(document))


def auth_of(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def takes_pushes(registry: FaultRegistry, path: str = "t/p") -> dict[str, bytes]:
    """Let any blob and manifest be pushed to a repository; what was stored, by digest or tag."""
    stored: dict[str, bytes] = {}

    async def put(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        name = request.query.get("digest") or request.path.rpartition("/")[2]
        stored[name] = body
        return refuse(201)

    registry.answers["POST", f"{path}/blobs/uploads/"] = always(202, Location=f"/v2/{path}/up")
    registry.answers["PUT", f"{path}/up"] = registry.answers["PUT", f"{path}/manifests/1"] = put
    return stored


def refuses_heads(registry: FaultRegistry, answer: Answer, digests: list[str], path: str = "t/p") -> None:
    for digest in digests:
        registry.answers["HEAD", f"{path}/blobs/{digest}"] = answer


def blobs_of(house: EngineProcess, registry: FaultRegistry, home: Path, name: str) -> list[str]:
    """The digests of a plugin's blobs, from a push to a repository of its own."""
    stored = takes_pushes(registry, "t/look")
    done = moorage(house, home, "push", name, f"{registry.host}/t/look:1")
    assert done.returncode == 0, done.stderr
    return [digest for digest in stored if digest.startswith("sha256:")]


@pytest.mark.parametrize("status", [403, 405, 500])
def test_case_205_a_push_goes_on_where_the_registry_cannot_say_what_it_has(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path, status: int
) -> None:
    house.create("a:1", config())
    digests = blobs_of(house, registry, tmp_path, "a:1")
    refuses_heads(registry, always(status), digests)
    stored = takes_pushes(registry)
    done = moorage(house, tmp_path, "push", "a:1", f"{registry.host}/t/p:1")
    assert done.returncode == 0, done.stderr
    assert set(stored) == {*digests, "1"}
    assert all(digest == f"sha256:{hashlib.sha256(stored[digest]).hexdigest()}" for digest in digests)


def test_case_205_the_refusal_of_the_upload_is_that_of_the_push(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path
) -> None:
    house.create("a:1", config())
    registry.answers["POST", "t/p/blobs/uploads/"] = always(403, "this repository is read-only")
    done = moorage(house, tmp_path, "push", "a:1", f"{registry.host}/t/p:1")
    assert done.returncode == 1
    assert "answers 403 (forbidden): this repository is read-only" in done.stderr


@pytest.mark.parametrize("status", [409, 500])
def test_case_206_a_push_goes_on_where_a_mount_fails(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path, status: int
) -> None:
    house.create("a:1", config())
    digests = blobs_of(house, registry, tmp_path, "a:1")
    stored = takes_pushes(registry)
    begin = registry.answers["POST", "t/p/blobs/uploads/"]

    async def begin_or_fail(request: web.Request) -> web.StreamResponse:
        return refuse(status, "no mounts") if "mount" in request.query else await begin(request)

    registry.answers["POST", "t/p/blobs/uploads/"] = begin_or_fail
    done = moorage(house, tmp_path, "push", "a:1", f"{registry.host}/t/p:1")
    assert done.returncode == 0, done.stderr
    assert any("mount" in each.query for each in registry.of("POST"))
    assert set(stored) == {*digests, "1"}


@pytest.mark.parametrize("status", [307, 308])
def test_case_210_a_push_whose_uploads_are_redirected_arrives(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path, status: int
) -> None:
    house.create("a:1", config())
    with fault_registry() as storage:
        stored = takes_pushes(storage)
        manifests = takes_pushes(registry)
        begin = f"{registry.url.replace('http://127', 'HTTP://127')}/v2/t/begin"
        registry.answers["POST", "t/p/blobs/uploads/"] = always(status, Location=begin)
        registry.answers["POST", "t/begin"] = always(202, Location="/v2/t/here")

        async def elsewhere(request: web.Request) -> web.StreamResponse:
            return refuse(status, Location=f"{storage.url}/v2/t/p/up?{request.query_string}")

        registry.answers["PUT", "t/here"] = elsewhere
        done = moorage(house, tmp_path, "push", "a:1", f"{registry.host}/t/p:1")
    assert done.returncode == 0, done.stderr
    assert all(digest == f"sha256:{hashlib.sha256(data).hexdigest()}" for digest, data in stored.items())
    assert len(stored) == 2
    assert list(manifests) == ["1"]


def test_case_209_a_registry_written_differently_is_the_same_one(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path
) -> None:
    offer(registry, make())
    written = (f"localhost:{registry.port}/t/p", f"LOCALHOST:{registry.port}/t/p")
    install = ("install", "--grant-all-permissions", "--disable", "--alias", "p")
    assert moorage(house, tmp_path, *install, written[0]).returncode == 0
    again = moorage(house, tmp_path, *install, "--ensure", written[1])
    assert again.returncode == 0, again.stderr
    upgrade = moorage(house, tmp_path, "upgrade", "--grant-all-permissions", "p", written[1])
    assert upgrade.returncode == 0, upgrade.stderr


def test_case_202_a_plugin_is_installed_over_long_redirects(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path
) -> None:
    reference = offer(registry, make())
    for key, answer in list(registry.answers.items()):
        registry.answers["GET", f"signed/{key[1]}"] = answer
        registry.answers[key] = always(307, Location=f"/v2/signed/{key[1]}?signature={'s' * 12_000}")
    done = moorage(house, tmp_path, "install", "--grant-all-permissions", "--disable", reference)
    assert done.returncode == 0, done.stderr


def test_case_202_an_answer_over_the_limit_names_it(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path
) -> None:
    registry.answers["GET", "t/p/manifests/1"] = always(200, X="x" * 70_000)
    done = moorage(house, tmp_path, "privileges", f"{registry.host}/t/p:1")
    assert done.returncode == 1
    assert "header of more than 65536 bytes (64 KiB)" in done.stderr


def test_s12_a_download_at_two_bytes_a_second_is_refused(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path
) -> None:
    registry.answers["GET", "t/p/manifests/1"] = sends_slowly(None, 0.5, b" ", Content_Type=SCHEMA2)
    done = moorage(house, tmp_path, "privileges", f"{registry.host}/t/p:1")
    assert done.returncode == 1
    assert "bytes a second" in done.stderr or "does not send all of it within" in done.stderr


def test_case_207_auths_are_used_where_the_helper_is_missing(
    house: EngineProcess, with_login: Served, tmp_path: Path
) -> None:
    house.create("a:1", config())
    target = f"{with_login.host}/t/a:1"
    auths = {with_login.host: auth_of(USER, PASSWORD)}
    store(tmp_path, {"credsStore": "nowhere", "auths": auths})
    done = moorage(house, tmp_path, "push", "a:1", target)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    store(tmp_path, {"credsStore": "nowhere"})
    done = moorage(house, tmp_path, "push", "a:1", target)
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert "warning: cannot get credentials for" in warning
    assert "docker-credential-nowhere" in warning
    assert "answers 401" in error
    assert "docker-credential-nowhere" in error


@pytest.mark.parametrize("damage", ["helper", "file", "entry", "environment"])
def test_case_208_a_public_plugin_is_installed_without_credentials_and_that_is_said(
    house: EngineProcess, registry: FaultRegistry, tmp_path: Path, damage: str
) -> None:
    reference, environment = offer(registry, make()), {}
    helper = tmp_path / "docker-credential-broken"
    helper.write_text("#!/bin/sh\necho the keyring is locked >&2\nexit 1\n")
    helper.chmod(0o755)
    store(tmp_path, {"credsStore": "broken"} if damage == "helper" else {})
    if damage == "file":
        (tmp_path / ".docker/config.json").write_text("{")
    if damage == "entry":
        store(tmp_path, {"auths": {registry.host: {"auth": "%"}}})
    if damage == "environment":
        environment = {"DOCKER_AUTH_CONFIG": "["}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    words = ("install", "--grant-all-permissions", "--disable", reference)
    done = moorage(house, tmp_path, *words, **environment)
    assert done.returncode == 0, done.stderr
    assert f"continuing without credentials for {registry.host}" in done.stderr
    said = {"helper": "the keyring is locked", "file": "config.json", "entry": "auths of", "environment": "DOCKER_AUTH"}
    assert said[damage] in done.stderr
    assert {each.authorization for each in registry.seen} == {None}


def test_case_211_each_repository_gets_the_account_of_its_part(
    house: EngineProcess, with_login: Served, tmp_path: Path
) -> None:
    house.create("a:1", config())
    auths = {f"{with_login.host}/good": auth_of(USER, PASSWORD), f"{with_login.host}/bad": auth_of(USER, "wrong")}
    store(tmp_path, {"auths": auths})
    assert moorage(house, tmp_path, "push", "a:1", f"{with_login.host}/good/a:1").returncode == 0
    for path in ("bad/a:1", "other/a:1"):
        done = moorage(house, tmp_path, "push", "a:1", f"{with_login.host}/{path}")
        assert done.returncode == 1
        assert "401" in done.stderr


def test_case_212_docker_auth_config_is_used(house: EngineProcess, with_login: Served, tmp_path: Path) -> None:
    house.create("a:1", config())
    given = json.dumps({"auths": {with_login.host: auth_of(USER, PASSWORD)}})
    words = ("push", "a:1", f"{with_login.host}/t/a:1")
    assert moorage(house, tmp_path, *words).returncode == 1
    store(tmp_path, {"auths": {with_login.host: auth_of(USER, "old")}})
    done = moorage(house, tmp_path, *words, DOCKER_AUTH_CONFIG=given)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr

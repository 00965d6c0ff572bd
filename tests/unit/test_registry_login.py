"""The credentials that ``docker login`` keeps, from its file and from helpers."""

import base64
import json
from pathlib import Path

import pytest

from moorage import errors
from moorage.distribution.auth import ANONYMOUS, Credentials
from moorage.distribution.docker_config import DOCKER_HUB_KEY, DockerConfig, docker_config_path
from moorage.timeouts import Timeouts

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

ME = base64.b64encode(b"me:secret").decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def write(config: Path, document: object) -> None:
    config.write_text(document if isinstance(document, str) else json.dumps(document))


async def find(config: Path, document: object, host: str = "registry.lan") -> Credentials:
    write(config, document)
    return await DockerConfig(config)(host)


def helper(config: Path, monkeypatch: pytest.MonkeyPatch, script: str, mode: int = 0o755) -> None:
    """A credential helper in the PATH, which has the server in ``$server``."""
    program = config.parent / "docker-credential-test"
    program.write_text(f"#!/bin/sh\nread -r server\n{script}\n")
    program.chmod(mode)
    monkeypatch.setenv("PATH", f"{config.parent}:/usr/bin:/bin")


def prints(document: object, status: int = 0) -> str:
    return f"cat <<'END'\n{document if isinstance(document, str) else json.dumps(document)}\nEND\nexit {status}"


def test_d05_the_file_is_where_dockers_cli_has_it() -> None:
    assert docker_config_path({"HOME": "/h"}) == Path("/h/.docker/config.json")
    assert docker_config_path({"HOME": "/h", "DOCKER_CONFIG": "/d"}) == Path("/d/config.json")


@pytest.mark.parametrize("document", ["", " \n", {}, {"auths": {}}, {"auths": None}, {"credsStore": ""}])
async def test_d05_a_file_without_a_login_is_anonymous(unblocked: None, config: Path, document: object) -> None:
    assert await find(config, document) == ANONYMOUS
    assert await DockerConfig(config / "not" / "there")("registry.lan") == ANONYMOUS


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.lan", "registry.lan"),
        ("registry.lan:5000", "registry.lan:5000"),
        ("https://registry.lan", "registry.lan"),
        ("http://registry.lan/v1/", "registry.lan"),
        (DOCKER_HUB_KEY, "docker.io"),
        ("https://index.docker.io/v2/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
async def test_d05_a_login_is_found_by_its_host(config: Path, key: str, host: str) -> None:
    document = {"auths": {"other.lan": {}, key: {"auth": ME}}}
    assert await find(config, document, host) == Credentials("me", "secret")
    assert await find(config, document, "registry.lan:1") == ANONYMOUS


async def test_d05_the_exact_key_goes_before_one_that_only_has_the_host(config: Path) -> None:
    other = base64.b64encode(b"other:one").decode()
    found = await find(config, {"auths": {"https://registry.lan/v1/": {"auth": other}, "registry.lan": {"auth": ME}}})
    assert found == Credentials("me", "secret")


async def test_d05_an_identity_token_of_the_file_is_read(config: Path) -> None:
    document = {"auths": {"registry.lan": {"auth": ME, "identitytoken": "refresh"}}}
    assert await find(config, document) == Credentials("me", "secret", "refresh")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "cannot read .*config.json"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "cannot read"),
        (" " * (1 << 20) + "{}", "larger than"),
        ({"auths": []}, "auths is not an object"),
        ({"auths": {"registry.lan": 1}}, "no object for registry.lan"),
        ({"auths": {"registry.lan": {"auth": "%"}}}, "auths of registry.lan: auth is not base64"),
        ({"credHelpers": 1}, "credHelpers is not an object"),
        ({"credsStore": "../evil"}, "helper that cannot be one"),
    ],
)
async def test_d05_a_file_that_cannot_be_understood_is_told_of(config: Path, document: object, words: str) -> None:
    with pytest.raises(errors.Invalid, match=words):
        await find(config, document)


async def test_d05_a_file_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(errors.MoorageError, match=r"cannot read /.*: Is a directory"):
        await DockerConfig(tmp_path)("registry.lan")


async def test_d05_a_helper_is_asked_for_a_host(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, """printf '{"Username": "%s", "Secret": "of %s"}' "$1" "$server" """)
    store = {"credsStore": "test", "auths": {"registry.lan": {}}}
    assert await find(config, store) == Credentials("get", "of registry.lan")
    assert await find(config, store, "docker.io") == Credentials("get", f"of {DOCKER_HUB_KEY}")
    special = {"credHelpers": {"registry.lan": "test"}, "credsStore": "missing"}
    assert await find(config, special) == Credentials("get", "of registry.lan")
    assert await find(config, special, "other.lan") == ANONYMOUS


async def test_d05_a_helper_may_have_an_identity_token(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, prints({"Username": "<token>", "Secret": "refresh"}))
    assert await find(config, {"credsStore": "test"}) == Credentials(identity_token="refresh")


@pytest.mark.parametrize(
    "script",
    [
        prints("credentials not found in native keychain", 1),
        "echo 'Error: credentials not found' >&2; exit 1",
    ],
)
async def test_d05_a_helper_that_has_nothing_is_anonymous(
    config: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    helper(config, monkeypatch, script)
    assert await find(config, {"credsStore": "test"}) == ANONYMOUS


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (prints("the keyring\nis locked", 1), "docker-credential-test ends with 1 and says: the keyring is locked"),
        ("exit 3", "ends with 3 and says: nothing"),
        (prints("nonsense"), "docker-credential-test prints no credentials"),
        (prints({"Username": "me"}), "prints no credentials"),
        (prints({"Username": 1, "Secret": "x"}), "prints no credentials"),
    ],
)
async def test_d05_a_helper_that_fails_is_told_of(
    config: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    helper(config, monkeypatch, script)
    with pytest.raises(errors.MoorageError, match=f"cannot get credentials for registry.lan: .*{words}"):
        await find(config, {"credsStore": "test"})


async def test_d05_a_helper_that_hangs_is_ended(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, "exec sleep 1000000")
    write(config, {"credsStore": "test"})
    with pytest.raises(errors.Unavailable, match=r"takes over 0\.2 s"):
        await DockerConfig(config, Timeouts(credential_helper=0.2))("registry.lan")


async def test_d05_a_helper_that_cannot_be_run_is_told_of(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, "", mode=0o644)
    with pytest.raises(errors.MoorageError, match="cannot run docker-credential-test: Permission denied"):
        await find(config, {"credsStore": "test"})

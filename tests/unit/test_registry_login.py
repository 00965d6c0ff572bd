"""The credentials that ``docker login`` keeps, from its file and from helpers."""

import base64
import json
import os
import re
from pathlib import Path

import pytest

from moorage.registry.credentials import ANONYMOUS, Credentials, decode_registry_auth, encode_registry_auth
from moorage.registry.docker_config import DOCKER_HUB_KEY, DockerConfig, docker_config_path
from moorage.timeouts import Timeouts

pytestmark = [pytest.mark.quick, pytest.mark.anyio]

ME = base64.b64encode(b"me:secret").decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def write(config: Path, document: object) -> None:
    config.write_text(document if isinstance(document, str) else json.dumps(document))


async def find(config: Path, document: object, host: str = "registry.lan", path: str = "") -> Credentials:
    write(config, document)
    return await DockerConfig(config)(host, path)


def refused(found: Credentials, words: str) -> bool:
    """Whether there are no credentials, for this reason."""
    return found.is_anonymous and re.search(words, found.reason_absent) is not None


def auth_of(name: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:secret".encode()).decode()}


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
async def test_case_208_a_file_that_cannot_be_parsed_means_no_credentials_and_a_reason(
    config: Path, document: object, words: str
) -> None:
    assert refused(await find(config, document), words)


async def test_case_208_a_file_that_cannot_be_read_means_no_credentials_and_a_reason(tmp_path: Path) -> None:
    assert refused(await DockerConfig(tmp_path)("registry.lan"), r"cannot read /.*: Is a directory")


async def test_case_208_one_damaged_entry_does_not_hide_the_others(config: Path) -> None:
    document = {"credHelpers": 1, "auths": {"https://registry.lan/v1/": 1, "registry.lan": auth_of("me")}}
    assert await find(config, document) == Credentials("me", "secret")


async def test_d05_a_helper_is_queried_for_a_host(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, """printf '{"Username": "%s", "Secret": "of %s"}' "$1" "$server" """)
    store = {"credsStore": "test", "auths": {"registry.lan": {}}}
    assert await find(config, store) == Credentials("get", "of registry.lan")
    assert await find(config, store, "docker.io") == Credentials("get", f"of {DOCKER_HUB_KEY}")
    special = {"credHelpers": {"registry.lan": "test"}, "credsStore": "missing"}
    assert await find(config, special) == Credentials("get", "of registry.lan")
    assert refused(await find(config, special, "other.lan"), "docker-credential-missing, .* is not installed")


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
        (prints("the keyring\nis locked", 1), "docker-credential-test exits with 1 and says: the keyring is locked"),
        ("exit 3", "exits with 3 and says: nothing"),
        (prints("nonsense"), "docker-credential-test prints no credentials"),
        (prints({"Username": "me"}), "prints no credentials"),
        (prints({"Username": 1, "Secret": "x"}), "prints no credentials"),
    ],
)
async def test_case_208_a_helper_that_fails_means_no_credentials_and_a_reason(
    config: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    helper(config, monkeypatch, script)
    assert refused(await find(config, {"credsStore": "test"}), f"cannot get credentials for registry.lan: .*{words}")
    entry = {"credsStore": "test", "auths": {"registry.lan": auth_of("me")}}
    assert await find(config, entry) == Credentials("me", "secret")


async def test_case_208_a_helper_that_does_not_read_its_input_fails_as_itself(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(config, monkeypatch, "")
    program = config.parent / "docker-credential-test"
    for script, words in (
        ("exec <&-; echo locked >&2; exit 1", "exits with 1 and says: locked"),
        ("exit 0", "prints no"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        assert refused(await find(config, {"credsStore": "test"}), words)


async def test_d05_a_helper_that_hangs_is_stopped(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, "exec sleep 1000000")
    write(config, {"credsStore": "test"})
    found = await DockerConfig(config, Timeouts(credential_helper=0.2))("registry.lan")
    assert refused(found, r"takes over 0\.2 s")


async def test_case_208_a_helper_that_cannot_be_run_means_no_credentials_and_a_reason(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(config, monkeypatch, "", mode=0o644)
    found = await find(config, {"credsStore": "test"})
    assert refused(found, "cannot run docker-credential-test: Permission denied")


async def test_case_207_auths_count_where_the_helper_is_not_installed(config: Path) -> None:
    auths = {"registry.lan": auth_of("me")}
    for helpers in ({"credsStore": "missing"}, {"credHelpers": {"registry.lan": "missing"}}):
        assert await find(config, {**helpers, "auths": auths}) == Credentials("me", "secret")
        assert refused(
            await find(config, helpers), f"docker-credential-missing, which {config} names, is not installed"
        )


async def test_case_207_auths_count_where_the_helper_has_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, prints("credentials not found in native keychain", 1))
    document = {"credsStore": "test", "auths": {"registry.lan": auth_of("me"), "other.lan": {}}}
    assert await find(config, document) == Credentials("me", "secret")
    assert await find(config, document, "other.lan") == ANONYMOUS


async def test_case_207_a_config_that_is_a_named_pipe_is_not_waited_for(config: Path) -> None:
    os.mkfifo(config)
    assert refused(await DockerConfig(config)("registry.lan", ""), "it is not a file")


def test_case_207_the_reason_for_missing_credentials_goes_to_the_engine() -> None:
    assert encode_registry_auth(ANONYMOUS) == ""
    absent = Credentials(reason_absent="docker-credential-x is not installed")
    assert decode_registry_auth(encode_registry_auth(absent)) == absent
    assert absent.is_anonymous


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("team/a", "team"),
        ("team/a/b", "deep"),
        ("team/a/bc", "team"),
        ("team/a/b/c/d", "deep"),
        ("teams/a", "host"),
        ("library/x", "host"),
        ("", "host"),
    ],
)
async def test_case_211_the_longest_part_of_a_path_counts_then_the_host(config: Path, path: str, name: str) -> None:
    auths = {
        "registry.lan:5000/team": auth_of("team"),
        "Registry.LAN:5000/team/a/b": auth_of("deep"),
        "registry.lan:5000": auth_of("host"),
        "registry.lan/team/a/b": auth_of("other"),
        "registry.lan:5000/team/a/b/c": {},
    }
    assert (await find(config, {"auths": auths}, "registry.lan:5000", path)).username == name


async def test_case_211_an_account_for_a_part_is_for_no_other_part(config: Path) -> None:
    auths = {"registry.lan/a": auth_of("a"), "docker.io/team": auth_of("hub"), "registry.lan/v1/": auth_of("old")}
    assert (await find(config, {"auths": auths}, "docker.io", "team/x")).username == "hub"
    assert await find(config, {"auths": auths}, "docker.io", "library/x") == ANONYMOUS
    assert (await find(config, {"auths": auths}, "registry.lan", "a/b")).username == "a"
    assert (await find(config, {"auths": auths}, "registry.lan", "b/a")).username == "old"


async def test_case_211_an_account_for_a_part_goes_before_a_helper_for_the_host(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(config, monkeypatch, prints({"Username": "helped", "Secret": "x"}))
    document = {"credsStore": "test", "auths": {"registry.lan/a": auth_of("a"), "registry.lan": auth_of("host")}}
    assert (await find(config, document, "registry.lan", "a/b")).username == "a"
    assert (await find(config, document, "registry.lan", "b")).username == "helped"


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("REGISTRY.lan", "registry.lan"),
        ("registry.lan:443", "registry.lan"),
        ("https://Registry.lan:443/v2/", "registry.lan"),
        ("registry.lan", "Registry.LAN:443"),
        ("[::1]:5000", "[0:0::1]:5000"),
    ],
)
async def test_case_209_a_login_is_found_however_its_host_is_written(config: Path, key: str, host: str) -> None:
    assert await find(config, {"auths": {key: auth_of("me")}}, host) == Credentials("me", "secret")
    assert await find(config, {"auths": {key: auth_of("me")}}, "registry.lan:80") == ANONYMOUS


async def test_case_212_the_environment_goes_before_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(config, monkeypatch, prints({"Username": "helped", "Secret": "x"}))
    write(config, {"credsStore": "test", "auths": {"registry.lan": auth_of("file")}})
    auths = {"registry.lan": auth_of("environment"), DOCKER_HUB_KEY: auth_of("hub"), "empty.lan": {}}
    given = DockerConfig(config, environ={"DOCKER_AUTH_CONFIG": json.dumps({"auths": auths})})
    assert (await given("registry.lan", "a/b")).username == "environment"
    assert (await given("docker.io", "library/x")).username == "hub"
    assert (await given("other.lan")).username == "helped"
    assert (await given("empty.lan")).username == "helped"


@pytest.mark.parametrize("value", ["{", "[]", '{"auths": {"registry.lan": {"auth": "%"}}}', '{"auths": 1}'])
async def test_case_212_a_variable_that_cannot_be_understood_is_reported_and_passed_over(
    config: Path, value: str
) -> None:
    given = DockerConfig(config, environ={"DOCKER_AUTH_CONFIG": value})
    write(config, {"auths": {"registry.lan": auth_of("file")}})
    assert (await given("registry.lan")).username == "file"
    write(config, {})
    assert refused(await given("registry.lan"), "cannot read DOCKER_AUTH_CONFIG")


def test_case_207_a_user_without_home_and_without_an_entry_has_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    path = docker_config_path({})
    assert path.is_absolute()  # never what lies in the working directory
    assert not path.exists()

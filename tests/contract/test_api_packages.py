"""Packages over the API: what clients see of an installation while it runs, when it fails, and when they leave."""

import base64
import json
from typing import Any

import pytest

from moorage import errors
from moorage.plugins import parse_config
from support.api_client import CONFIG, Answer, ApiClient
from support.conditions import eventually
from support.fake_backend import FakeBackend

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]

REMOTE = "docker.io/a/b:latest"
NEEDY = {**CONFIG, "network": {"type": "host"}}
REQUESTED = [{"Name": "network", "Description": "permissions to access a network", "Value": ["host"]}]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def backend() -> FakeBackend:
    made = FakeBackend()
    made.packages.there = {
        REMOTE: parse_config(json.dumps(CONFIG).encode()).config,
        "docker.io/a/needy:1": parse_config(json.dumps(NEEDY).encode()).config,
    }
    return made


def lines(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body.endswith(b"\r\n")
    return [json.loads(line) for line in answer.body.split(b"\r\n") if line]


async def test_case_244_auth_checks_credentials(api: ApiClient) -> None:
    body = {"username": "me", "password": "secret", "serveraddress": "reg.lan"}
    answer = await api.request("POST", "/auth", body, **JSON)
    assert (answer.status, answer.json) == (200, {"IdentityToken": "token-of-me", "Status": "Login Succeeded"})
    assert (await api.request("POST", "/auth", {**body, "password": "wrong"}, **JSON)).status == 401
    assert (await api.request("POST", "/auth", {"Username": "me", "ServerAddress": ""}, **JSON)).json[
        "IdentityToken"
    ] == ""
    bodies: tuple[Any, ...] = (b"", b"{", [], {"serveraddress": 1})
    for wrong in bodies:
        assert (await api.request("POST", "/auth", wrong, **JSON)).status == 400


@pytest.mark.parametrize("body", [None, [], b"null"], ids=["none", "empty", "null"])
async def test_case_059_no_grants_are_said_in_three_ways(api: ApiClient, body: Any) -> None:
    assert (await api.request("GET", "/plugins/privileges?remote=a/b")).json == []
    answer = await api.request("POST", "/plugins/pull?remote=a/b&name=", body, **(JSON if body else {}))
    assert lines(answer)[0] == {"status": "Pulling from a/b", "id": "latest"}


async def test_case_089_the_name_comes_before_the_first_byte(api: ApiClient, backend: FakeBackend) -> None:
    backend.packages.stuck = True
    async with api.open("POST", "/plugins/pull?remote=a/b&name=c", []) as response:
        assert response.headers["Docker-Plugin-Name"] == "c:latest"
        assert b"Pulling from" in await response.content.readline()


async def test_d08_a_client_that_leaves_ends_its_pull(api: ApiClient, backend: FakeBackend) -> None:
    backend.packages.stuck = True
    async with api.open("POST", "/plugins/pull?remote=a/b", []) as response:
        await response.content.readline()
        assert backend.packages.under_way == 1
    await eventually(lambda: backend.packages.under_way == 0)
    assert (await api.request("GET", "/plugins")).json == []


async def test_case_090_a_failure_after_the_first_byte_is_the_last_line(api: ApiClient, backend: FakeBackend) -> None:
    backend.packages.failure = errors.Unavailable("the line broke")
    progress = lines(await api.request("POST", "/plugins/pull?remote=a/b", []))
    assert progress[-1] == {"errorDetail": {"code": 503, "message": "the line broke"}, "error": "the line broke"}
    assert (await api.request("GET", "/plugins")).json == []


async def test_case_090_an_internal_error_is_reported_without_its_traceback(
    api: ApiClient, backend: FakeBackend
) -> None:
    backend.packages.failure = ZeroDivisionError("inside")
    progress = lines(await api.request("POST", "/plugins/pull?remote=a/b", []))
    assert progress[-1]["errorDetail"]["code"] == 500
    assert "inside" not in progress[-1]["error"]


async def test_a04_a_failure_before_the_first_byte_has_its_status(api: ApiClient, backend: FakeBackend) -> None:
    answer = await api.request("POST", "/plugins/pull?remote=a/needy:1", [])
    assert answer.status == 403
    assert answer.message.startswith("incorrect privileges")
    assert "Docker-Plugin-Name" not in answer.headers


async def test_d08_of_a_thousand_counts_few_are_written(api: ApiClient) -> None:
    progress = lines(await api.request("POST", "/plugins/pull?remote=a/needy:1", REQUESTED))
    counts = [line["progressDetail"] for line in progress if line["status"] == "Downloading"]
    assert 1 <= len(counts) < 10
    assert counts[-1] == {"current": 1000, "total": 1000}
    assert progress[-1] == {"status": "Complete", "progressDetail": {}, "id": "0123456789ab"}


async def test_d05_the_credentials_are_those_of_the_header(api: ApiClient, backend: FakeBackend) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"username": "me", "password": "secret"}).encode()).decode()
    await api.create("p")
    for method, path in (
        ("GET", "/plugins/privileges?remote=a/b"),
        ("POST", "/plugins/pull?remote=a/b"),
        ("POST", "/plugins/p/upgrade?remote=a/b"),
        ("POST", "/moorage/v1/ensure?remote=a/b&name=d"),
        ("POST", "/moorage/v1/plugins/p/upgrade?remote=a/b"),
    ):
        assert (await api.request(method, path, X_Registry_Auth=header)).status == 200, path
        assert (backend.packages.requests[-1][2].username, backend.packages.requests[-1][2].password) == (
            "me",
            "secret",
        )


async def test_own_calls_take_settings_and_options(api: ApiClient, backend: FakeBackend) -> None:
    body = {"settings": ["A=1"], "secrets": ["B=2"], "attended": True}
    lines(await api.request("POST", "/moorage/v1/ensure?remote=a/b", body))
    terms = backend.packages.requests[-1][1]
    assert terms is not None
    assert (terms.granted, terms.assignments, terms.secrets) == (None, ("A=1",), ("B=2",))
    assert terms.is_attended
    assert terms.once
    lines(await api.request("POST", "/moorage/v1/pull?remote=a/b&name=c", {"privileges": []}))
    terms = backend.packages.requests[-1][1]
    assert terms is not None
    assert (terms.granted, terms.once, terms.is_attended) == ((), False, False)


async def test_d07_upgrade_of_an_enabled_plugin_needs_the_restart(api: ApiClient) -> None:
    await api.create("p")
    await api.request("POST", "/plugins/p/enable")
    answer = await api.request("POST", "/plugins/p/upgrade?remote=a/b", [])
    assert (answer.status, answer.message) == (
        409,
        "plugin must be disabled before upgrading: plugin p:latest is enabled",
    )
    answer = await api.request("POST", "/moorage/v1/plugins/p/upgrade?remote=a/b&restart=1")
    assert answer.headers["Docker-Plugin-Name"] == "p:latest"
    lines(answer)

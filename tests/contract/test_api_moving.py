"""Packages that are here, over the API: pushes, names, archives, the disk; failures early, late and by leaving."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from moorage import errors
from moorage.api.server import serve_api
from support.api_client import ApiClient, api_client
from support.conditions import eventually
from support.fake_backend import FakeBackend

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]


@pytest.fixture
async def api(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[ApiClient]:
    path = tmp_path / "m.sock"
    async with serve_api(backend, path, None), api_client(path) as client:
        await client.create("p")
        yield client


async def test_d04_a_push_reports_what_it_did_at_its_end_with_the_callers_credentials(
    api: ApiClient, backend: FakeBackend
) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"username": "me", "password": "secret"}).encode()).decode()
    answer = await api.request("POST", "/plugins/p/push?to=reg.lan/a/b:2", X_Registry_Auth=header)
    lines = [json.loads(line) for line in answer.body.split(b"\r\n") if line]
    assert lines[0] == {"status": "The push refers to repository [reg.lan/a/b]"}
    assert lines[-1] == {"progressDetail": {}, "aux": {"Tag": "2", "Digest": "sha256:0", "Size": 1}}
    target, credentials = backend.transfers.pushed[0]
    assert (target, credentials.username, credentials.password) == ("reg.lan/a/b:2", "me", "secret")


async def test_a04_a_push_that_fails_later_says_so_in_its_last_line(api: ApiClient, backend: FakeBackend) -> None:
    backend.transfers.failure = errors.Denied("the registry says no")
    answer = await api.request("POST", "/plugins/p/push")
    last = json.loads(answer.body.split(b"\r\n")[-2])
    assert (answer.status, last["error"], last["errorDetail"]["code"]) == (200, "the registry says no", 403)


@pytest.mark.parametrize("path", ["/plugins/p/push", "/moorage/v1/create?name=q", "/moorage/v1/load"])
async def test_d08_a_client_that_leaves_ends_what_it_requested(api: ApiClient, backend: FakeBackend, path: str) -> None:
    backend.transfers.stuck = True
    with pytest.raises(TimeoutError):
        async with api.session.post(f"http://moorage{path}", timeout=aiohttp.ClientTimeout(0.5)) as response:
            await response.read()
    await eventually(lambda: backend.transfers.under_way == 0)


async def test_d09_an_archive_that_breaks_off_is_no_whole_answer(api: ApiClient, backend: FakeBackend) -> None:
    assert (await api.request("GET", "/moorage/v1/save?name=p&name=p")).body == b"an archive"
    backend.transfers.failure = errors.NotFound("a blob is gone")
    with pytest.raises(aiohttp.ClientPayloadError):
        await api.request("GET", "/moorage/v1/save?name=p")


async def test_a05_our_calls_answer_in_json(api: ApiClient) -> None:
    usage = (await api.request("GET", "/moorage/v1/df")).json
    assert usage["Plugins"][0]["Name"] == "p:latest"
    assert (await api.request("POST", "/moorage/v1/prune")).json == {"FreedBytes": 7, "Uploads": 1, "UnderWay": 0}
    (loaded,) = (await api.request("POST", "/moorage/v1/load", b"an archive")).json
    assert (loaded["Name"], loaded["New"], loaded["Privileges"]) == ("p:latest", False, [])
    made = await api.request("POST", "/moorage/v1/create?name=q", b"a tar")
    assert json.loads(made.body)["aux"]["Name"] == "q:latest"


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/plugins/p/push?to=UPPER", 400, "repository name must be lowercase"),
        ("POST", "/plugins/no:1/push", 404, 'plugin "no:1" not found'),
        ("POST", "/moorage/v1/plugins/p/tag", 400, "give the name"),
        ("POST", "/moorage/v1/plugins/p/tag?to=p", 409, "already exists"),
        ("POST", "/moorage/v1/plugins/no:1/tag?to=q", 404, "not found"),
        ("GET", "/moorage/v1/save", 400, "cannot save nothing"),
        ("GET", "/moorage/v1/save?name=no", 404, "not found"),
        ("POST", "/moorage/v1/load", 400, "it is no tar"),
        ("POST", "/moorage/v1/create?name=UPPER", 400, "repository name must be lowercase"),
        ("POST", "/moorage/v1/df", 404, "page not found"),
    ],
)
async def test_a02_a_wrong_call_is_reported(api: ApiClient, method: str, path: str, status: int, said: str) -> None:
    answer = await api.request(method, path)
    assert (answer.status, said in answer.message) == (status, True), answer.body

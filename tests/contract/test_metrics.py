"""Metrics as a scraper sees them, on the API's socket and on a port, of an engine in memory."""

import json
import logging
import socket
from pathlib import Path

import aiohttp
import pytest

from moorage import errors
from moorage.api.metrics import serve_metrics
from moorage.api.server import serve_api
from support.api_client import api_client
from support.fake_backend import FakeBackend

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]

LOCAL = "127.0.0.1:0"


async def send(method: str, url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


@pytest.mark.parametrize(("accept", "kind"), [("", "text/plain"), ("application/openmetrics-text", "application/open")])
async def test_both_addresses_answer_in_the_format_that_is_accepted(tmp_path: Path, accept: str, kind: str) -> None:
    backend = FakeBackend()
    async with (
        serve_api(backend, tmp_path / "s", None),
        serve_metrics(backend, LOCAL) as url,
        api_client(tmp_path / "s") as api,
    ):
        status, content_type, body = await send("GET", url, Accept=accept)
        assert (status, content_type.startswith(kind)) == (200, True)
        assert 'moorage_plugins{state="ready"} 0.0' in body
        assert body.endswith("# EOF\n") is (kind != "text/plain")
        async with api.session.get("http://x/v1.40/moorage/v1/metrics", headers={"Accept": accept}) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
            assert await answer.text() == body


async def test_the_listener_serves_nothing_but_get_of_metrics() -> None:
    async with serve_metrics(FakeBackend(), LOCAL) as url:
        for path in ("/", "/plugins", "/moorage/v1/metrics", "/metrics/x", "/_ping"):
            assert (await send("GET", url.replace("/metrics", path)))[0] == 404, path
        for method in ("POST", "HEAD", "PUT", "DELETE", "OPTIONS"):
            assert (await send(method, url))[0] == 405, method


async def test_without_an_address_there_is_no_listener_and_after_the_block_neither() -> None:
    async with serve_metrics(FakeBackend(), None) as url:
        assert url == ""
    async with serve_metrics(FakeBackend(), "[::1]:0") as url:
        assert url.startswith("http://[::1]:")
        assert (await send("GET", url))[0] == 200
    with pytest.raises(aiohttp.ClientConnectorError):
        await send("GET", url)


async def test_a_port_that_is_taken_is_a_conflict_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(errors.Conflict, match=f"cannot serve metrics on {address}: another program listens there"):
            async with serve_metrics(FakeBackend(), address):
                raise AssertionError


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0:0", r"it is 0\.0\.0\.0, which other machines can reach"),
        ("no-such-host.invalid:0", "cannot serve metrics on no-such-host.invalid:0: "),
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("a..b:0", "cannot serve metrics on"),
    ],
)
async def test_an_unusable_metrics_address_is_refused(address: str, reason: str) -> None:
    with pytest.raises(errors.Invalid, match=reason):
        async with serve_metrics(FakeBackend(), address):
            raise AssertionError


@pytest.mark.parametrize(("address", "is_open"), [("0.0.0.0:0", True), ("127.1:0", False), ("localhost:0", False)])
async def test_an_address_that_others_reach_is_served_as_given_with_a_warning(
    address: str, is_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "moorage"):
        async with serve_metrics(FakeBackend(), address) as url:
            assert (await send("GET", url))[0] == 200
    assert [each for each in caplog.messages if "without a password" in each] == (
        [f"other machines can read the metrics on {address}, without a password"] if is_open else []
    )


async def test_a_failure_is_reported_as_the_api_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()

    async def fail() -> None:
        raise errors.Unavailable("not now")

    monkeypatch.setattr(backend, "metrics", fail)
    async with serve_metrics(backend, LOCAL) as url:
        status, _, body = await send("GET", url)
        assert (status, json.loads(body)) == (503, {"message": "not now"})

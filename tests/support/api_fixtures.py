"""Fixtures with the API over an engine in memory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moorage.api.server import serve_api
from support.api_client import ApiClient, api_client
from support.fake_backend import FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    """An engine in memory."""
    return FakeBackend()


@pytest.fixture
async def api(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[ApiClient]:
    """A client of the API over that engine."""
    path = tmp_path / "m.sock"
    async with serve_api(backend, path, None), api_client(path) as client:
        yield client

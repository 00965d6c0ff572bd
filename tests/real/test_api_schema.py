"""Random calls made from the API's own document, to a real engine: none is a fault of the engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from moorage.api.openapi import make_document
from moorage.api.routes import ROUTES
from support.engines import EngineProcess, UnixConnection, config, engine

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NEEDS_A_REGISTRY = (
    "/auth",
    "/plugins/pull",
    "/plugins/privileges",
    "/plugins/{name}/push",
    "/plugins/{name}/upgrade",
    "/moorage/v1/pull",
    "/moorage/v1/ensure",
    "/moorage/v1/plugins/{name}/upgrade",
)
"""These would ask the registries of made-up names."""


@schemathesis.serializer("application/x-tar")
def send_as_it_is(_: Any, value: Any) -> Any:
    return value.to_bytes() if hasattr(value, "to_bytes") else str(value).encode()


SCHEMA = schemathesis.openapi.from_dict(make_document(ROUTES))
RESULTS: list[Any] = list(SCHEMA.get_all_operations())
OPERATIONS = [result.ok() for result in RESULTS if result.ok().path not in NEEDS_A_REGISTRY]


class _Adapter(HTTPAdapter):
    """Every host is this socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        return _Pool(self._path)


class _Pool(urllib3.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> Any:
        made = UnixConnection(self._path, 60)
        made.connect()
        connection: Any = super()._new_conn()
        connection.sock, made.sock = made.sock, None
        connection.connect = lambda: None
        return connection


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("on", config(env=[{"name": "A", "settable": ["value"]}]))
        made.create("off")
        made.enable("on")
        yield made
        for plugin in made.plugins():
            made.remove(plugin["Name"], force=True)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda it: f"{it.method} {it.path}".replace("/", "."))
def test_a02_a05_no_call_that_the_document_allows_is_a_fault(house: EngineProcess, operation: Any) -> None:
    session = requests.Session()
    session.mount("http://", _Adapter(house.socket))
    names = st.sampled_from(["on", "off", "on:latest", None])

    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), name=names)
    def ask(case: Any, name: str | None) -> None:
        if name is not None and "name" in case.path_parameters:
            case.path_parameters["name"] = name
        if case.path == "/events":
            case.query["until"] = "1"  # it would wait for what happens next
        case.query.pop("follow", None)
        case.call_and_validate(base_url="http://localhost", session=session, timeout=60, checks=CHECKS)

    with session:
        ask()

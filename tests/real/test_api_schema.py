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

from moorage.api.routes import ROUTES
from moorage.api.schema.openapi import make_document
from support.engines import EngineProcess, UnixConnection, config, engine
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]

DEAD_PROXY = "http://127.0.0.1:9"
"""The engine asks every registry through it: no made-up name is looked up outside, and each is unreachable at once."""
UNREACHABLE = "cannot be reached"
QUICK = {"registry_retry_first": 0.001, "registry_retry_limit": 0.001}


@schemathesis.serializer("application/x-tar")
def send_as_it_is(_: Any, value: Any) -> Any:
    return value.to_bytes() if hasattr(value, "to_bytes") else str(value).encode()


SCHEMA = schemathesis.openapi.from_dict(make_document(ROUTES))
RESULTS: list[Any] = list(SCHEMA.get_all_operations())
OPERATIONS = [result.ok() for result in RESULTS]


def check_no_fault(context: Any, response: Any, case: Any) -> bool | None:
    """A registry that cannot be reached is no fault of the engine."""
    if response.status_code == 503 and UNREACHABLE in response.json()["message"]:
        return None
    return not_a_server_error(context, response, case)


CHECKS = [
    check_no_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


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
    prefix = ["env", f"HTTPS_PROXY={DEAD_PROXY}", f"HTTP_PROXY={DEAD_PROXY}", "NO_PROXY="]
    with engine(tmp_path_factory.mktemp("engine"), prefix=prefix, timeouts=QUICK) as made:
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
    def send(case: Any, name: str | None) -> None:
        if name is not None and "name" in case.path_parameters:
            case.path_parameters["name"] = name
        if case.path == "/events":
            case.query["until"] = "1"  # it would wait for what happens next
        case.query.pop("follow", None)
        case.call_and_validate(base_url="http://localhost", session=session, timeout=limit(60), checks=CHECKS)

    with session:
        send()

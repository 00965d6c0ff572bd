"""Real answers of every route against the schemas of the OpenAPI document, which allow no other field."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any
from urllib.parse import quote

import jsonschema_rs
import pytest

from moorage.api.routes import ROUTES
from moorage.api.schema.openapi import make_document
from support.drivers import create_driver, driver_config
from support.engines import EngineProcess, UnixConnection, actor, config, engine, package
from support.layouts import Layout, layer_tar
from support.packages import make, push
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

DOCUMENT = make_document(ROUTES)
ONE = "/moorage/v1/plugins/{name}"


def strict(schema: dict[str, Any]) -> Any:
    """A validator of a schema of the document, to which no field may be added."""
    components = deepcopy(DOCUMENT["components"])
    for each in components["schemas"].values():
        each["additionalProperties"] = False
    return jsonschema_rs.Draft202012Validator({**schema, "components": components})


def validate(method: str, path: str, status: int, content_type: str, raw: bytes) -> None:
    """Compare an answer with what the document has for it."""
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    assert str(status) in responses, (status, raw)
    content = responses[str(status)].get("content")
    if content is None:
        assert path.endswith("/call") or not raw
        return
    kind = content_type.partition(";")[0]
    assert kind in content
    if "schema" in content[kind]:
        strict(content[kind]["schema"]).validate(json.loads(raw))
    elif "x-item-schema" in content[kind]:
        lines = raw.decode().splitlines()
        assert lines
        for line in lines:
            strict(content[kind]["x-item-schema"]).validate(json.loads(line))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("registry")
    authorization = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    with serve_registry(folder / "r", auth=htpasswd(folder)) as served:
        for tag in ("1", "2"):
            push(served.host, "t/p", tag, make(config(**_everything())), authorization=authorization)
        yield served


def _everything() -> dict[str, Any]:
    """Fields of a config that are not always shown."""
    return {
        "description": "everything",
        "env": [{"name": "A", "settable": ["value"]}],
        "args": {"name": "words", "settable": ["value"], "value": []},
        "linux": {"capabilities": ["CAP_CHOWN"], "devices": [{"name": "null", "path": "/dev/null"}]},
        "mounts": [{"name": "etc", "source": "/etc", "destination": "/e", "type": "bind", "options": ["rbind", "ro"]}],
        "interface": {
            "socket": "p.sock",
            "types": ["docker.volumedriver/1.0"],
            "protocolScheme": "moby.plugins.http/v1",
        },
        "user": {"uid": 0, "gid": 1},
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("on", config("out=hello", env=[{"name": "A", "settable": ["value"]}]))
        made.create("off", config(env=[{"name": "A", "settable": ["value"]}]))
        made.enable("on")
        create_driver(made, "d", driver_config("volume", tmp_path_factory.mktemp("data")))
        made.wait_until(lambda: made.logs("on"), "its output")
        yield made
        for plugin in made.plugins():
            made.remove(plugin["Name"], force=True)


class Caller:
    """Calls routes and compares each answer with the document."""

    def __init__(self, house: EngineProcess) -> None:
        self._house = house
        self.called: set[tuple[str, str]] = set()

    def __call__(
        self,
        method: str,
        path: str,
        name: str = "on",
        *,
        query: str = "",
        body: Any = None,
        token: str = "",
        **headers: str,
    ) -> bytes:
        """The body of the answer."""
        self.called.add((method, path))
        target = path.replace("{name}", name).replace("{token}", token) + (f"?{query}" if query else "")
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if isinstance(body, dict | list):
            body, sent["Content-Type"] = json.dumps(body), "application/json"
        with closing(UnixConnection(self._house.socket, 60)) as connection:
            connection.request(method, target, body, sent)
            answer = connection.getresponse()
            raw = answer.read()
        assert answer.status < 400, (method, target, raw)
        validate(method, path, answer.status, answer.headers.get("Content-Type", ""), raw)
        return raw

    def stream(self, path: str, body: dict[str, Any], query: str) -> Any:
        """A connection to a stream that does not end, and its answer."""
        connection = UnixConnection(self._house.socket, 60)
        target = f"{path.replace('{name}', 'on')}?{query}"
        connection.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()


def call_packages(call: Caller, registry: Served) -> None:
    """Routes that ask a registry."""
    login = {"username": USER, "password": PASSWORD}
    auth = base64.urlsafe_b64encode(json.dumps(login).encode()).decode()
    first, second = (quote(f"{registry.host}/t/p:{tag}", safe="") for tag in ("1", "2"))
    call("POST", "/auth", body={**login, "serveraddress": registry.host})
    granted = json.loads(call("GET", "/plugins/privileges", query=f"remote={first}", X_Registry_Auth=auth))
    call("POST", "/moorage/v1/privileges", query=f"remote={first}", body={}, X_Registry_Auth=auth)
    call("POST", "/plugins/pull", query=f"remote={first}&name=docker", body=granted, X_Registry_Auth=auth)
    terms = {"settings": ["A=1"]}
    for verb in ("pull", "ensure"):
        call("POST", f"/moorage/v1/{verb}", query=f"remote={first}&name={verb}", body=terms, X_Registry_Auth=auth)
    call("POST", "/plugins/{name}/upgrade", "docker", query=f"remote={second}", body=granted, X_Registry_Auth=auth)
    call("POST", f"{ONE}/upgrade", "pull", query=f"remote={second}", body={}, X_Registry_Auth=auth)
    call("POST", "/plugins/{name}/push", "pull", query=f"to={second}", X_Registry_Auth=auth)
    call("POST", f"{ONE}/tag", "pull", query="to=tagged")
    call("GET", "/plugins/{name}/json", "pull")
    call("POST", f"{ONE}/grant", "pull", body={})
    call("POST", "/moorage/v1/fetch", query=f"remote={first}", X_Registry_Auth=auth)
    body = {"enabled": False, "policy": {"restarts": "never"}}
    call("POST", f"{ONE}/apply", "pull", query=f"remote={second}", body=body, X_Registry_Auth=auth)
    call("DELETE", "/plugins/{name}", "docker")


def call_archives(call: Caller) -> None:
    layout = Layout()
    layout.list(layout.image([layer_tar({"actor": (actor(), 0o755)})]))
    image = layout.tar(config_json=json.dumps(config()).encode())
    call("POST", "/plugins/create", query="name=made", body=package(config()), Content_Type="application/x-tar")
    call("POST", "/moorage/v1/create", query="name=image", body=image, Content_Type="application/x-tar")
    archive = call("GET", "/moorage/v1/save", query="name=image")
    call("POST", "/moorage/v1/save", body={"names": ["off", "made"]})
    call("DELETE", "/plugins/{name}", "image")
    call("POST", f"{ONE}/package", "made", body=package(config()), Content_Type="application/x-tar")
    call("POST", f"{ONE}/rename", "made", query="name=renamed")
    copy = call("GET", f"{ONE}/archive", query="path=/actor")
    call("PUT", f"{ONE}/archive", query="path=/", body=copy, Content_Type="application/x-tar")
    call("POST", "/moorage/v1/load", body=archive, Content_Type="application/x-tar")
    call("GET", "/moorage/v1/df")
    call("POST", "/moorage/v1/prune")


def call_plugin(call: Caller) -> None:
    for verb in ("stats", "policy", "holders", "logs"):
        call("GET", f"{ONE}/{verb}")
    call("GET", f"{ONE}/path", query="path=/")
    call("POST", f"{ONE}/call", query="method=env")
    call("PUT", f"{ONE}/policy", body={"restarts": "always", "stop_timeout": 5, "cpus": 1})
    call("POST", f"{ONE}/set", "off", body={"secrets": ["A=2"]})
    call("POST", "/plugins/{name}/set", "off", body=["A=1"])
    call("POST", "/plugins/{name}/enable", "off", query="timeout=30")
    call("POST", "/plugins/{name}/disable", "off")
    call("PUT", f"{ONE}/labels", body={"add": {"tier": "one"}, "remove": ["none"]})
    call("POST", f"{ONE}/kill", query="signal=URG")
    call("POST", f"{ONE}/restart")
    call("POST", f"{ONE}/wait", query="timeout=30")
    call("GET", "/plugins")
    call("GET", "/plugins/{name}/json")


def call_consumers(call: Caller) -> None:
    call("POST", f"{ONE}/publish", "d", body={"names": ["a05"]})
    call("GET", "/plugins/{name}/json", "d")
    call("POST", f"{ONE}/unpublish", "d", query="force=1")
    volumes = "/moorage/v1/volumes"
    call("POST", volumes, body={"name": "v", "driver": "d"})
    call("GET", volumes)
    call("POST", f"{volumes}/{{name}}/mount", "v", body={})
    call("GET", f"{volumes}/{{name}}", "v")
    call("POST", f"{volumes}/{{name}}/unmount", "v", body={})
    call("DELETE", f"{volumes}/{{name}}", "v")


def call_streams(call: Caller) -> None:
    """Routes whose answers continue until the client, or a process, ends them."""
    holder = json.loads(call("POST", f"{ONE}/holders", body={"owner": "volume v1"}))
    call("GET", f"{ONE}/holders")
    call("DELETE", f"{ONE}/holders/{{token}}", token=holder["Token"])
    connection, answer = call.stream(f"{ONE}/holders", {"owner": "attached"}, "attached=1")
    with closing(connection):
        validate("POST", f"{ONE}/holders", answer.status, answer.headers["Content-Type"], answer.readline())
    command = quote(json.dumps(["/actor", "never=1"]))
    connection, answer = call.stream(f"{ONE}/exec", {}, f"command={command}")
    with closing(connection):
        call.called.add(("POST", f"{ONE}/exec"))
        assert answer.headers["Content-Type"] in DOCUMENT["paths"][f"{ONE}/exec"]["post"]["responses"]["200"]["content"]
        head = answer.read(5)
        started = json.loads(answer.read(int.from_bytes(head[1:], "big")))
        strict({"$ref": "#/components/schemas/ExecStarted"}).validate(started)
        call("POST", f"{ONE}/exec/{{token}}/resize", token=started["Id"], query="rows=10&columns=10")


def test_a05_every_route_answers_as_the_document_says(house: EngineProcess, registry: Served) -> None:
    call = Caller(house)
    for path in ("/_ping", "/version", "/info", "/plugins"):
        call("GET", path)
    call("HEAD", "/_ping")
    for path in ("info", "stats", "metrics", "openapi.json"):
        call("GET", f"/moorage/v1/{path}")
    call_packages(call, registry)
    call_archives(call)
    call_plugin(call)
    call_consumers(call)
    call_streams(call)
    call("GET", "/events", query=f"since=1&until={time.time():.6f}")
    assert call.called == {(route.method, route.template) for route in ROUTES}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"Name": 1}, "not of type"), ({"More": 1}, "Additional properties"), ({"Moorage": None}, "not of type")],
)
def test_a05_an_answer_that_is_not_as_the_document_says_is_noticed(
    house: EngineProcess, change: dict[str, Any], message: str
) -> None:
    plugin = {**house.inspect("on"), **change}
    with pytest.raises(jsonschema_rs.ValidationError, match=message):
        validate("GET", "/plugins/{name}/json", 200, "application/json", json.dumps(plugin).encode())


def test_a05_an_error_is_as_the_document_says(house: EngineProcess) -> None:
    status, raw = house.request("GET", "/plugins/none/json")
    assert status == 404
    strict({"$ref": "#/components/schemas/ErrorResponse"}).validate(json.loads(raw))

"""The API over its socket on a real engine: wrong calls by status and text, lookups, headers, streams, the document."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from moorage._version import __version__
from moorage.api.routes import ROUTES
from moorage.api.schema.openapi import make_document
from support.engines import EngineProcess, Refused, actor, config, engine, package
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

JSON = {"Content-Type": "application/json"}
OWN = "/moorage/v1/plugins"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with two plugins: ``on`` is enabled, ``off`` is not, and ``held`` is enabled and in use by v1."""
    with engine(tmp_path_factory.mktemp("engine")) as made:
        env = [{"name": "A", "settable": ["value"]}, {"name": "B", "value": "1"}]
        for name in ("on", "off", "held"):
            made.create(name, config(env=env))
        made.enable("on")
        made.enable("held")
        made.request_own("POST", "held", "holders", {"owner": "v1"})
        yield made
        for name in ("on", "off", "held"):
            made.remove(name, force=True)


TAR = {"Content-Type": "application/x-tar"}
Wrong = tuple[str, str, Any, dict[str, str], int, str]
WRONG: tuple[Wrong, ...] = (
    ("GET", "/nope", None, {}, 404, "page not found"),
    ("GET", "/", None, {}, 404, "page not found"),
    ("POST", "/plugins", None, {}, 404, "page not found"),
    ("PUT", "/_ping", None, {}, 404, "page not found"),
    ("GET", "/moorage/v2/info", None, {}, 404, "page not found"),
    ("GET", "/v1.23/plugins", None, {}, 400, "client version 1.23 is too old. Minimum supported API version is 1.24"),
    ("GET", "/v1.99/plugins", None, {}, 400, "client version 1.99 is too new. Maximum supported API version is 1.55"),
    ("GET", "/v2.0/_ping", None, {}, 400, "too new"),
    ("GET", "/plugins?filters=x", None, {}, 400, "invalid filter"),
    ("GET", "/plugins?filters=[]", None, {}, 400, "invalid filter"),
    ("GET", '/plugins?filters={"foo":["x"]}', None, {}, 400, "invalid filter 'foo'"),
    ("GET", '/plugins?filters={"enabled":["maybe"]}', None, {}, 400, "invalid filter 'enabled=[maybe]'"),
    ("GET", '/plugins?filters={"enabled":["1","0"]}', None, {}, 400, "invalid filter 'enabled=[0 1]'"),
    ("GET", '/plugins?filters={"enabled":3}', None, {}, 400, "invalid filter"),
    ("GET", '/events?filters={"enabled":["1"]}', None, {}, 400, "invalid filter 'enabled'"),
    ("GET", "/events?since=yesterday", None, {}, 400, "neither seconds since 1970 nor RFC 3339"),
    ("GET", "/events?until=x", None, {}, 400, "cannot read until"),
    ("GET", "/plugins/nope/json", None, {}, 404, 'plugin "nope" not found'),
    ("GET", "/plugins/UPPER/json", None, {}, 404, 'plugin "UPPER" not found'),
    ("GET", "/plugins/on@sha256:00/json", None, {}, 404, "not found"),
    ("GET", f"/plugins/{'f' * 64}/json", None, {}, 404, "not found"),
    ("GET", "/plugins/on:v2/json", None, {}, 404, 'plugin "on:v2" not found'),
    ("POST", "/plugins/nope/enable?timeout=1", None, {}, 404, "not found"),
    ("POST", "/plugins/on/enable?timeout=", None, {}, 409, "plugin already enabled"),
    ("POST", "/plugins/off/enable?timeout=1.5", None, {}, 400, 'strconv.Atoi: parsing "1.5": invalid syntax'),
    ("POST", "/plugins/off/enable?timeout=x", None, {}, 400, "invalid syntax"),
    ("POST", "/plugins/off/enable?timeout=99999999999999999999", None, {}, 400, "value out of range"),
    ("POST", "/plugins/off/enable?timeout=-1", None, {}, 400, "negative timeout"),
    ("POST", "/plugins/on/enable?timeout=1", None, {}, 409, "plugin already enabled: plugin on:latest is enabled"),
    ("POST", "/plugins/nope/disable", None, {}, 404, "not found"),
    ("POST", "/plugins/off/disable", None, {}, 409, "plugin is already disabled: plugin off:latest found but disabled"),
    ("POST", "/plugins/off/disable?force=1", None, {}, 409, "already disabled"),
    ("POST", "/plugins/held/disable", None, {}, 409, "plugin held:latest is in use by v1"),
    ("DELETE", "/plugins/held", None, {}, 409, "plugin held:latest is in use by v1"),
    ("DELETE", "/plugins/on", None, {}, 409, "plugin on:latest is enabled"),
    ("DELETE", "/plugins/nope", None, {}, 404, "not found"),
    ("DELETE", "/plugins/nope?force=1", None, {}, 404, "not found"),
    ("POST", "/plugins/nope/set", b'["A=1"]', JSON, 404, "not found"),
    ("POST", "/plugins/on/set", b'["A=1"]', JSON, 409, "cannot set on an active plugin, disable plugin before setting"),
    ("POST", "/plugins/off/set", b'["NOPE=1"]', JSON, 400, 'setting "NOPE" not found in the plugin configuration'),
    ("POST", "/plugins/off/set", b'["B=1"]', JSON, 400, '"B" is not settable; what can be set: A'),
    ("POST", "/plugins/off/set", b'["=x"]', JSON, 400, "invalid format, must be <name>[.<field>][=<value>]"),
    ("POST", "/plugins/off/set", b'["A=1","NOPE"]', JSON, 400, "not found"),
    ("POST", "/plugins/off/set", b"{", JSON, 400, "invalid JSON"),
    ("POST", "/plugins/off/set", b"[] x", JSON, 400, "unexpected content after JSON"),
    ("POST", "/plugins/off/set", b"  ", JSON, 400, "invalid JSON: got EOF while reading request body"),
    ("POST", "/plugins/off/set", b'{"A":"1"}', JSON, 400, "must be a list of texts"),
    ("POST", "/plugins/off/set", b"[1]", JSON, 400, "must be a list of texts"),
    ("POST", "/plugins/off/set", b"\xff", JSON, 400, "invalid JSON"),
    ("POST", "/plugins/off/set", b"[]", {"Content-Type": "text/plain"}, 400, "unsupported Content-Type header"),
    ("POST", "/plugins/off/set", b"[]", {}, 400, "malformed Content-Type header ()"),
    ("POST", "/plugins/off/set", b"[" + b" " * 5_000_000 + b"]", JSON, 400, "more than 4194304 bytes"),
    ("POST", "/plugins/create", package(config()), TAR, 400, "it has no name"),
    ("POST", "/plugins/create?name=UPPER", package(config()), TAR, 400, "repository name must be lowercase"),
    ("POST", f"/plugins/create?name=a@sha256:{'0' * 64}", package(config()), TAR, 400, "cannot use digest"),
    ("POST", "/plugins/create?name=on", package(config()), TAR, 409, "plugin on:latest already exists"),
    ("POST", "/plugins/create?name=x", b"", TAR, 400, "no whole tar stream"),
    ("POST", "/plugins/create?name=x", b"garbage" * 1000, TAR, 400, "no whole tar stream"),
    ("POST", "/plugins/create?name=x", package(config())[:5000], TAR, 400, "no whole tar stream"),
    ("POST", "/plugins/create?name=x", package(b"{"), TAR, 400, "config.json"),
    ("POST", "/plugins/create?name=x", package(b'{"entrypoint": 1}'), TAR, 400, "entrypoint"),
    ("POST", "/plugins/create?name=x", package(config(linux={"devices": [{}, {"path": 3}]})), TAR, 400, "[1].path"),
    ("GET", "/plugins/privileges?remote=UPPER", None, {}, 400, "must be lowercase"),
    ("POST", "/plugins/pull?remote=127.0.0.1:1/b", b"[]", JSON, 503, "127.0.0.1:1"),
    ("POST", "/plugins/pull?remote=a/b", b"[", JSON, 400, "invalid JSON"),
    ("POST", "/plugins/nope/upgrade?remote=a/b", b"[]", JSON, 404, "not found"),
    ("POST", "/plugins/nope/push", None, {}, 404, "not found"),
    ("POST", "/plugins/off/push?to=UPPER", None, {}, 400, "must be lowercase"),
    ("GET", "/moorage/v1/save", None, {}, 400, "cannot save nothing"),
    ("POST", "/moorage/v1/load", b"nonsense" * 100, TAR, 400, "it is no tar"),
    ("GET", f"{OWN}/nope/logs", None, {}, 404, "not found"),
    ("GET", f"{OWN}/on/logs?tail=x", None, {}, 400, "invalid syntax"),
    ("GET", f"{OWN}/on/logs?tail=-1", None, {}, 400, "cannot show -1 lines"),
    ("GET", f"{OWN}/on/logs?since=x", None, {}, 400, "cannot read since"),
    ("POST", f"{OWN}/off/call?method=x", None, {}, 409, "cannot call plugin off:latest: it is disabled"),
    ("POST", f"{OWN}/on/call", None, {}, 400, "without a method"),
    ("POST", f"{OWN}/on/call?method=x&timeout=y", None, {}, 400, "no number of seconds"),
    ("POST", f"{OWN}/nope/call?method=x", None, {}, 404, "not found"),
    ("POST", f"{OWN}/off/restart", None, {}, 409, "cannot restart plugin off:latest: it is disabled"),
    ("PUT", f"{OWN}/off/policy", {"restarts": "sometimes"}, {}, 400, "one of always, on-failure, never"),
    ("PUT", f"{OWN}/off/policy", {"most": -1}, {}, 400, "cannot restart -1 times"),
    ("PUT", f"{OWN}/off/policy", {"stop_timeout": 1e9}, {}, 400, "0 to 3600 are possible"),
    ("PUT", f"{OWN}/off/policy", {"stop": 1}, {}, 400, "there is no field 'stop' here"),
    ("PUT", f"{OWN}/off/policy", {"most": "3"}, {}, 400, "the field 'most' is of a wrong type"),
    ("PUT", f"{OWN}/off/policy", [1], {}, 400, "the body must be an object"),
    ("POST", f"{OWN}/off/set", {"assignments": [1]}, {}, 400, "the field 'assignments' is of a wrong type"),
    ("POST", f"{OWN}/off/holders", {"owner": "x"}, {}, 409, "cannot add a holder to plugin off:latest: it is disabled"),
    ("POST", f"{OWN}/on/holders", {"owner": " "}, {}, 400, "missing field 'owner'"),
    ("POST", f"{OWN}/nope/holders", {"owner": "x"}, {}, 404, "not found"),
    ("DELETE", f"{OWN}/on/holders/nope", None, {}, 404, "has no holder with this token"),
)  # fmt: skip


def test_a02_there_are_enough_wrong_calls() -> None:
    assert len(WRONG) >= 60


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "text"), WRONG, ids=lambda value: str(value)[:40]
)
def test_a02_a_wrong_call_has_its_status_and_says_what_is_wrong(
    house: EngineProcess, method: str, path: str, body: Any, headers: dict[str, str], status: int, text: str
) -> None:
    got, raw = house.request(method, path.replace(" ", "%20").replace('"', "%22"), body, headers=headers)
    message = json.loads(raw)["message"]
    assert (got, text in message) == (status, True), message
    assert "Traceback" not in message
    names = [plugin["Name"] for plugin in house.plugins()]
    assert names == ["held:latest", "off:latest", "on:latest"]
    assert [house.state(name) for name in names] == ["ready", "disabled", "ready"]
    assert house.inspect("off")["Settings"]["Env"] == ["B=1"]


def test_a01_headers_and_ping(house: EngineProcess) -> None:
    def head_of(method: str, path: str) -> tuple[bytes, bytes]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(house.socket))
            client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            raw = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, body = raw.partition(b"\r\n\r\n")
        return head, body

    for path in ("/_ping", "/v1.24/_ping", "/v1.47/_ping"):
        head, body = head_of("GET", path)
        assert body == b"OK"
        for header in (
            "Api-Version: 1.55", "Ostype: linux", "Docker-Experimental: false", "Builder-Version: 1", "Swarm: inactive",
            f"Server: Docker/{__version__} (linux)", "Cache-Control: no-cache, no-store, must-revalidate",
            "Pragma: no-cache",
        ):  # fmt: skip
            assert header.encode() in head
        head, body = head_of("HEAD", path)
        assert body == b""
        assert b"Content-Length: 0" in head
    head, _ = head_of("GET", "/plugins/nope/json")
    assert re.search(rb"\r\nContent-Type: application/json\r\n", head + b"\r\n")
    assert b"Api-Version: 1.55" in head


def test_the_socket_is_for_root_and_its_group(house: EngineProcess) -> None:
    assert house.socket.stat().st_mode & 0o777 == 0o660


def test_a03_case_091_names_that_resemble_routes(house: EngineProcess) -> None:
    names = ("localhost:5000/a/json:v1", "x/enable:latest", "deadbeef:latest")
    for name in names:
        house.create(name)
    try:
        for name in names:
            id = house.inspect(name)["Id"]
            for form in (name, quote(name, safe=""), id, id[:12], name.removesuffix(":latest")):
                assert house.inspect(form)["Name"] == name
            house.request_json("POST", f"/v1.30/plugins/{name}/set", [])
            assert house.request_own("GET", name, "policy")["Restarts"] == "always"
    finally:
        for name in names:
            house.remove(name)


def test_a04_case_093_no_list_is_null(house: EngineProcess) -> None:
    lists = {"args": None, "env": None, "mounts": None, "linux": None}
    house.create("minimal", {"entrypoint": ["/p"], "interface": {"socket": "p.sock", "types": []}, **lists})
    found = house.inspect("minimal")
    house.remove("minimal")
    config, settings = found["Config"], found["Settings"]
    for value in (
        config["Env"], config["Mounts"], config["Linux"]["Devices"], config["Linux"]["Capabilities"],
        config["Entrypoint"], config["Args"]["Value"], config["Args"]["Settable"], config["Interface"]["Types"],
        *settings.values(),
    ):  # fmt: skip
        assert isinstance(value, list)


def test_a02_case_007_a_client_that_disconnects_while_it_creates_leaves_nothing(house: EngineProcess) -> None:
    body = package(config())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.socket))
        head = f"POST /plugins/create?name=gone HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[: len(body) // 2])
    # the name is free again as soon as the end of the client is noticed
    house.wait_until(lambda: house.request("POST", "/plugins/create?name=gone", body)[0] == 204, "the name")
    house.remove("gone")


def test_m17_an_attached_holder_goes_with_its_connection(house: EngineProcess) -> None:
    owner = b'{"owner": "attached"}'
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.socket))
        head = f"POST {OWN}/on/holders?attached=1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(owner)}\r\n\r\n".encode() + owner)
        client.settimeout(limit(10))
        seen = b""
        while b'"Token"' not in seen:
            seen += client.recv(65536)
        with pytest.raises(Refused, match="in use by attached"):
            house.disable("on")
    house.wait_until(lambda: house.more("on")["Holders"] == [], "the holder is gone")


def test_logs_can_be_followed(house: EngineProcess) -> None:
    house.create("talks", config("flood=20000"))
    house.enable("talks")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(limit(10))
        client.connect(str(house.socket))
        client.sendall(f"GET {OWN}/talks/logs?follow=1&tail=0 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        seen = b""
        while seen.count(b'"stream": "stdout"') < 20:
            seen += client.recv(65536)
    house.remove("talks", force=True)


def test_events_are_sent_as_they_come(house: EngineProcess) -> None:
    seen: list[bytes] = []

    def listen() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(limit(20))
            client.connect(str(house.socket))
            filters = quote('{"type":{"plugin":true},"event":{"create":true,"remove":true}}')
            client.sendall(f"GET /v1.41/events?filters={filters} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while b"remove" not in b"".join(seen):
                seen.append(client.recv(65536))

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(0.3)
    house.create("seen")
    house.remove("seen")
    listener.join(limit(20))
    actions = re.findall(rb'"Action": "(\w+)"', b"".join(seen))
    assert actions == [b"create", b"remove"]


def test_a05_the_document_has_every_route_and_no_other(house: EngineProcess) -> None:
    document = house.request_json("GET", "/moorage/v1/openapi.json")
    assert document == make_document(ROUTES)
    rows = {(route.method.lower(), route.template) for route in ROUTES}
    assert {(method, path) for path, item in document["paths"].items() for method in item} == rows


def test_the_command_line_does_what_the_api_does(house: EngineProcess, tmp_path: Path) -> None:
    def moorage(*words: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60))
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    directory = tmp_path / "p"
    (directory / "rootfs").mkdir(parents=True)
    env = [{"name": "A", "settable": ["value"]}, {"name": "TOKEN", "settable": ["value"]}]
    (directory / "config.json").write_text(json.dumps(config("out=hello", env=env)))
    (directory / "rootfs/actor").write_bytes(actor())
    (directory / "rootfs/actor").chmod(0o755)
    (tmp_path / "secret").write_text("s3cr3t\n")
    assert moorage("create", "cli/p", str(directory)) == "cli/p\n"
    assert "already exists" in moorage("create", "cli/p", str(directory), status=1)
    moorage("set", "cli/p", "A=1", "--secret", f"TOKEN=@{tmp_path / 'secret'}")
    assert moorage("enable", "cli/p") == "cli/p\n"
    assert {"A=1", "TOKEN=s3cr3t"} <= set(moorage("call", "cli/p", "env").splitlines())
    assert "s3cr3t" not in moorage("inspect", "cli/p")
    assert "VolumeDriver" in moorage("probe", "cli/p")
    row = next(line for line in moorage("ls").splitlines() if "cli/p" in line)
    assert re.search(r"cli/p:latest +ready +\d+ (second|minute)", row)
    assert json.loads(moorage("ls", "--json", "--filter", "enabled=true").splitlines()[0])["Name"] == "cli/p:latest"
    assert re.search(r"stdout \| hello$", moorage("logs", "cli/p", "-n", "1").strip())
    assert "on-failure, at most 3 times" in moorage("policy", "cli/p", "--restart", "on-failure", "--max", "3")
    moorage("restart", "cli/p")
    assert "is enabled" in moorage("rm", "cli/p", status=1)
    assert "not found" in moorage("rm", "nope", status=1)
    moorage("disable", "cli/p")
    assert moorage("rm", "cli/p") == "cli/p\n"
    assert (
        "start it with: moorage serve"
        in subprocess.run(
            [sys.executable, "-m", "moorage", "--host", "/nowhere/x.sock", "ls"], capture_output=True, text=True
        ).stderr
    )
    wait_until(lambda: "remove" in events(house), "the event")


def events(house: EngineProcess) -> str:
    return house.request("GET", f"/events?since=1&until={time.time():.6f}")[1].decode()

"""The API over a real unix socket: what every client of it can see."""

import json
import logging
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

from moorage import errors
from moorage.api.server import serve_api
from support.api_client import CONFIG, ApiClient, api_client, package
from support.conditions import eventually
from support.fake_backend import FakeBackend
from support.limits import limit

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]

OWN = "/moorage/v1/plugins"


# ---------------------------------------------------------------------------------------- wrong calls, A02

NO = 'plugin "no:1" not found'
JSON = {"Content_Type": "application/json"}
TEXT = {"Content_Type": "text/plain"}

WRONG: list[tuple[str, str, Any, dict[str, str], int, str]] = [
    # no such page
    ("GET", "/", None, {}, 404, "page not found"),
    ("GET", "/nonsense", None, {}, 404, "page not found"),
    ("GET", "/non%0Asense", None, {}, 404, "page not found"),
    ("GET", "/plugins/a%0Ab/json", None, {}, 404, "not found"),
    ("GET", "/containers/json", None, {}, 404, "page not found"),
    ("GET", "/v1.47/containers/json", None, {}, 404, "page not found"),
    ("PUT", "/plugins", None, {}, 404, "page not found"),
    ("PATCH", "/plugins/on/json", None, {}, 404, "page not found"),
    ("GET", "/plugins/on/enable", None, {}, 404, "page not found"),
    ("GET", "/plugins/on", None, {}, 404, "page not found"),
    ("GET", "/plugins//json", None, {}, 404, "page not found"),
    ("HEAD", "/version", None, {}, 404, ""),
    ("GET", "/v1.x/version", None, {}, 404, "page not found"),
    ("GET", "/moorage/v2/info", None, {}, 404, "page not found"),
    ("GET", f"{OWN}/on/figures", None, {}, 404, "page not found"),
    ("GET", f"{OWN}/no:1/stats", None, {}, 404, NO),
    ("GET", f"{OWN}/off/stats", None, {}, 409, "does not run: it is disabled"),
    ("GET", f"{OWN}/no:1/path?path=/x", None, {}, 404, NO),
    ("GET", f"{OWN}/off/path?path=/x", None, {}, 409, "cannot find /x of plugin"),
    ("POST", f"{OWN}/off/exec?command=%5B%22x%22%5D", None, {}, 409, "does not run"),
    # versions
    ("GET", "/v1.23/version", None, {}, 400, "client version 1.23 is too old. Minimum supported API version is 1.24"),
    ("GET", "/v1.56/version", None, {}, 400, "client version 1.56 is too new. Maximum supported API version is 1.55"),
    ("GET", "/v2.0/plugins", None, {}, 400, "client version 2.0 is too new. Maximum supported API version is 1.55"),
    ("POST", "/v1.25/plugins/on/upgrade?remote=a", None, {}, 400,
     "POST /plugins/{name:.*}/upgrade requires minimum API version 1.26"),
    # unknown plugins
    ("GET", "/plugins/no:1/json", None, {}, 404, NO),
    ("GET", "/plugins/UPPER/json", None, {}, 404, 'plugin "UPPER" not found'),
    ("GET", "/plugins/%00/json", None, {}, 404, "not found"),
    ("POST", "/plugins/no:1/enable?timeout=30", None, {}, 404, NO),
    ("POST", "/plugins/no:1/disable", None, {}, 404, NO),
    ("POST", "/plugins/no:1/set", ["A=b"], {}, 404, NO),
    ("POST", "/plugins/no:1/upgrade?remote=a", None, {}, 404, NO),
    ("POST", "/plugins/no:1/push", None, {}, 404, NO),
    ("DELETE", "/plugins/no:1", None, {}, 404, NO),
    ("GET", f"{OWN}/no:1/logs", None, {}, 404, NO),
    ("POST", f"{OWN}/no:1/call?method=Echo", None, {}, 404, NO),
    ("POST", f"{OWN}/no:1/restart", None, {}, 404, NO),
    ("GET", f"{OWN}/no:1/policy", None, {}, 404, NO),
    ("PUT", f"{OWN}/no:1/policy", {"restarts": "never"}, {}, 404, NO),
    ("POST", f"{OWN}/no:1/set", {"assignments": ["A=b"]}, {}, 404, NO),
    ("GET", f"{OWN}/no:1/holders", None, {}, 404, NO),
    ("POST", f"{OWN}/no:1/holders", {"owner": "me"}, {}, 404, NO),
    ("DELETE", f"{OWN}/no:1/holders/t", None, {}, 404, NO),
    ("DELETE", f"{OWN}/on/holders/t", None, {}, 404, "has no holder with this token"),
    # wrong states
    ("POST", "/plugins/on/enable?timeout=0", None, {}, 409, "plugin already enabled: plugin on:latest is enabled"),
    ("POST", "/plugins/off/disable", None, {}, 409,
     "plugin is already disabled: plugin off:latest found but disabled"),
    ("DELETE", "/plugins/on", None, {}, 409, "plugin on:latest is enabled"),
    ("DELETE", "/plugins/on?force=false", None, {}, 409, "plugin on:latest is enabled"),
    ("POST", "/plugins/on/set", ["DEBUG=1"], {}, 409, "cannot set on an active plugin"),
    ("POST", "/plugins/create?name=on", b"", {}, 409, "plugin on:latest already exists"),
    ("POST", f"{OWN}/off/restart", None, {}, 409, "it is disabled"),
    ("POST", f"{OWN}/off/call?method=Echo", None, {}, 409, "it is disabled"),
    ("POST", f"{OWN}/off/holders", {"owner": "me"}, {}, 409, "it is disabled"),
    # wrong input
    ("POST", "/plugins/create", b"", {}, 400, "failed to parse reference"),
    ("POST", "/plugins/create?name=UPPER/x", b"", {}, 400, "repository name must be lowercase"),
    ("POST", "/plugins/create?name=new", b"no tar", {}, 400, "cannot read the package"),
    ("POST", "/plugins/create?name=new", package({"entrypoint": "/p"}), {}, 400, "entrypoint: must be a list"),
    ("POST", "/plugins/on/enable?timeout=", None, {}, 409, "plugin already enabled"),
    ("POST", "/plugins/off/enable?timeout=x", None, {}, 400, 'strconv.Atoi: parsing "x": invalid syntax'),
    ("POST", "/plugins/off/enable?timeout=1.5", None, {}, 400, 'strconv.Atoi: parsing "1.5": invalid syntax'),
    ("POST", f"/plugins/off/enable?timeout={'9' * 30}", None, {}, 400, "value out of range"),
    ("POST", f"/plugins/off/enable?timeout={'9' * 5000}", None, {}, 400, "value out of range"),
    ("POST", "/plugins/off/enable?timeout=-1", None, {}, 400, "negative"),
    ("POST", "/plugins/off/set", ["NOPE=1"], {}, 400, 'setting "NOPE" not found in the plugin configuration'),
    ("POST", "/plugins/off/set", ["FIXED=1"], {}, 400, '"FIXED" is not settable'),
    ("POST", "/plugins/off/set", ["=1"], {}, 400, "invalid format, must be <name>[.<field>][=<value>]"),
    ("POST", "/plugins/off/set", {"DEBUG": "1"}, {}, 400, "invalid JSON"),
    ("POST", "/plugins/off/set", [1], {}, 400, "invalid JSON"),
    ("POST", "/plugins/off/set", b'["A', JSON, 400, "invalid JSON: "),
    ("POST", "/plugins/off/set", b'["\\ud800"]', JSON, 400, "invalid JSON: "),
    ("POST", "/plugins/off/set", b"[" * 100_000, JSON, 400, "invalid JSON: "),
    ("POST", "/plugins/off/set", b" ", JSON, 400, "invalid JSON: got EOF while reading request body"),
    ("POST", "/plugins/off/set", b"[] []", JSON, 400, "unexpected content after JSON"),
    ("POST", "/plugins/off/set", b"[]", TEXT, 400,
     "unsupported Content-Type header (text/plain): must be 'application/json'"),
    ("POST", "/plugins/off/set", b"[]", {}, 400, "malformed Content-Type header ():"),
    ("POST", "/plugins/off/set", b" " * (4 * 1024 * 1024 + 1), JSON, 400, "more than 4194304 bytes"),
    ("GET", "/plugins?filters=x", None, {}, 400, "invalid filter"),
    ("GET", "/plugins?filters=[]", None, {}, 400, "invalid filter"),
    ("GET", '/plugins?filters={"foo":{"x":true}}', None, {}, 400, "invalid filter 'foo'"),
    ("GET", '/plugins?filters={"enabled":{"maybe":true}}', None, {}, 400, "invalid filter 'enabled=[maybe]'"),
    ("GET", '/plugins?filters={"enabled":"true"}', None, {}, 400, "invalid filter"),
    ("GET", '/events?filters={"foo":["x"]}', None, {}, 400, "invalid filter 'foo'"),
    ("GET", "/events?since=yesterday", None, {}, 400, "cannot read since"),
    ("GET", "/events?until=-5", None, {}, 400, "cannot read until"),
    ("GET", "/events?since=20&until=10", None, {}, 400, "`since` time (20) cannot be after `until` time (10)"),
    ("GET", f"{OWN}/on/logs?tail=x", None, {}, 400, "strconv.Atoi"),
    ("GET", f"{OWN}/on/logs?tail=-1", None, {}, 400, "cannot show -1 lines"),
    ("GET", f"{OWN}/on/logs?since=x", None, {}, 400, "cannot read since"),
    ("POST", f"{OWN}/on/call", None, {}, 400, "without a method"),
    ("POST", f"{OWN}/on/call?method=Echo&timeout=soon", None, {}, 400, "no number of seconds"),
    ("PUT", f"{OWN}/on/policy", {"restarts": "sometimes"}, {}, 400, "sometimes"),
    ("PUT", f"{OWN}/on/policy", {"most": -1}, {}, 400, "cannot restart -1 times"),
    ("PUT", f"{OWN}/on/policy", {"most": 10**30}, {}, 400, "cannot restart"),
    ("PUT", f"{OWN}/on/policy", {"most": True}, {}, 400, "of a wrong type"),
    ("PUT", f"{OWN}/on/policy", {"seccomp": "x"}, {}, 400, "the field 'seccomp' is invalid: Invalid enum value 'x'"),
    ("PUT", f"{OWN}/on/policy", {"capabilities": ""}, {}, 400, "the field 'capabilities' is invalid: "),
    ("PUT", f"{OWN}/on/policy", {"pids": -1}, {}, 400, "pids"),
    ("PUT", f"{OWN}/on/policy", {"seccomp": "off"}, {}, 400, "seccomp"),
    ("PUT", f"{OWN}/on/policy", {"pids": True}, {}, 400, "pids"),
    ("PUT", f"{OWN}/on/policy", {"pids": 3}, {}, 400, "cannot limit pids to 3"),
    ("PUT", f"{OWN}/on/policy", {"memory_bytes": 4096}, {}, 400, "cannot limit memory to 4096"),
    ("PUT", f"{OWN}/on/policy", {"nice": 20}, {}, 400, "cannot set nice to 20"),
    ("PUT", f"{OWN}/on/policy", {"rlimits": {"files": [1, 1]}}, {}, 400, "cannot set rlimit 'files'"),
    ("PUT", f"{OWN}/on/policy", {"rlimits": {"nofile": [2, 1]}}, {}, 400, "soft must be at most hard"),
    ("PUT", f"{OWN}/on/policy", {"nonsense": 1}, {}, 400, "there is no field 'nonsense'"),
    ("PUT", f"{OWN}/on/policy", b'{"stop_timeout": NaN}', JSON, 400, "character 'N' looking for beginning of value"),
    ("POST", f"{OWN}/off/set", {"secrets": ["DEBUG"], "assignments": "A=b"}, {}, 400, "of a wrong type"),
    ("POST", f"{OWN}/off/set", {"assignments": [1]}, {}, 400, "the field 'assignments' is of a wrong type"),
    ("POST", f"{OWN}/on/holders", {}, {}, 400, "missing field 'owner'"),
    ("POST", f"{OWN}/on/holders", ["me"], {}, 400, "must be an object"),
    ("GET", "/plugins/privileges?remote=vieux/sshfs", None, {}, 404, "cannot read vieux/sshfs"),
    ("GET", "/plugins/privileges?remote=a", None, {"X_Registry_Auth": "!"}, 400, "cannot read X-Registry-Auth"),
    ("GET", "/plugins/privileges?remote=UPPER", None, {}, 400, "repository name must be lowercase"),
    ("GET", "/plugins/privileges", None, {}, 400, "invalid reference format"),
    ("POST", "/plugins/pull?remote=vieux/sshfs", [], {}, 404, "cannot read vieux/sshfs"),
    ("POST", "/plugins/pull?remote=vieux/sshfs", {}, {}, 400, "they must be a list"),
    ("POST", "/moorage/v1/pull?remote=a", [], {}, 400, "must be an object"),
    ("POST", "/moorage/v1/ensure?remote=a", {"nonsense": 1}, {}, 400, "there is no field 'nonsense'"),
    ("POST", "/moorage/v1/ensure?remote=a", {"settings": [1]}, {}, 400, "the field 'settings' is of a wrong type"),
    ("POST", "/moorage/v1/ensure?remote=a", {"privileges": {}}, {}, 400, "of a wrong type"),
    ("POST", "/plugins/pull?remote=vieux/sshfs", b"[]", TEXT, 400, "unsupported Content-Type header"),
    ("POST", "/plugins/pull?remote=!", [], {}, 400, "invalid reference format"),
    ("POST", "/plugins/off/upgrade?remote=vieux/sshfs", [], {}, 404, "cannot read vieux/sshfs"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[0]} {wrong[1][:60]} {str(wrong[2])[:20]}")
async def test_a02_case_056_a_wrong_call_gets_its_status_and_its_words(
    api: ApiClient, wrong: tuple[str, str, Any, dict[str, str], int, str]
) -> None:
    method, path, body, headers, status, text = wrong
    await api.create("off")
    await api.create("on")
    await api.request("POST", "/plugins/on/enable")
    answer = await api.request(method, path, body, **headers)
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    if method != "HEAD":
        assert text in answer.message
        assert "Traceback" not in answer.message


def test_a02_the_table_has_at_least_sixty_wrong_calls() -> None:
    assert len(WRONG) >= 60


async def test_a02_an_unexpected_failure_is_one_sentence_for_the_client_and_whole_in_the_log(
    api: ApiClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failure = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = await api.request("GET", "/plugins/p/json")
    assert answer.status == 500
    assert "Traceback" not in answer.message
    assert "secret" not in answer.message
    assert any(record.exc_info for record in caplog.records)


async def test_a02_a_failure_without_a_kind_keeps_its_words(api: ApiClient, backend: FakeBackend) -> None:
    backend.failure = errors.MoorageError("cannot do it: the disk is full")
    answer = await api.request("GET", "/plugins/p/json")
    assert (answer.status, answer.message) == (500, "cannot do it: the disk is full")


# ---------------------------------------------------------------------------------------- headers, ping, versions


@pytest.mark.parametrize(
    "path", ["/_ping", "/version", "/v1.24/version", "/plugins/no/json", "/nonsense", "/v1.99/info"]
)
async def test_a01_every_answer_names_the_server(api: ApiClient, path: str) -> None:
    headers = (await api.request("GET", path)).headers
    assert headers["Server"].startswith("Docker/")
    assert headers["Server"].endswith(" (linux)")
    assert (headers["Api-Version"], headers["Ostype"], headers["Docker-Experimental"]) == ("1.55", "linux", "false")


async def test_a01_ping_answers_with_and_without_a_body(api: ApiClient) -> None:
    answer = await api.request("GET", "/_ping")
    assert (answer.status, answer.body) == (200, b"OK")
    assert answer.headers["Cache-Control"] == "no-cache, no-store, must-revalidate"
    assert (answer.headers["Pragma"], answer.headers["Swarm"]) == ("no-cache", "inactive")
    head = await api.request("HEAD", "/v1.40/_ping")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "0")
    assert head.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_a01_success_has_dockers_statuses_and_no_body(api: ApiClient) -> None:
    await api.create("p")
    for method, path, body, status in (
        ("POST", "/plugins/p/set", ["DEBUG=1"], 204),
        ("POST", "/plugins/p/set", None, 204),
        ("POST", "/plugins/p/enable?timeout=30", None, 200),
        ("POST", "/plugins/p/disable", None, 200),
        ("POST", "/plugins/p/enable?timeout=0", None, 200),
        ("DELETE", "/plugins/p?force=1", None, 200),
    ):
        answer = await api.request(method, path, body)
        assert (answer.status, answer.body) == (status, b"")
        assert "Content-Type" not in answer.headers


@pytest.mark.parametrize(("flag", "is_forced"), [("1", True), ("yes", True), ("0", False), ("%20No%20", False)])
async def test_a01_flags_are_read_as_docker_reads_them(api: ApiClient, flag: str, is_forced: bool) -> None:
    await api.create("p")
    await api.request("POST", "/plugins/p/enable")
    answer = await api.request("DELETE", f"/plugins/p?force={flag}")
    assert answer.status == (200 if is_forced else 409)


# ---------------------------------------------------------------------------------------- lookups, objects, filters

NAMES = ["localhost:5000/a/json:v1", "x/enable:latest", "deadbeef:latest", "set:latest", "privileges:latest"]


@pytest.mark.parametrize("name", NAMES)
async def test_a03_case_091_a_plugin_is_found_by_every_form_of_its_name_and_id(api: ApiClient, name: str) -> None:
    id = await api.create(name)
    other = await api.create("other")
    forms = {name, name.removesuffix(":latest"), id, id[:12], quote(name, safe="")}
    for form in forms:
        assert (await api.request("GET", f"/plugins/{form}/json")).json["Id"] == id
        assert (await api.request("POST", f"/plugins/{form}/enable?timeout=0")).status == 200
        assert (await api.request("GET", f"{OWN}/{form}/holders")).json == []
        assert (await api.request("POST", f"/v1.30/plugins/{form}/disable")).status == 200
    if id[0] != other[0]:
        assert (await api.request("GET", f"/plugins/{id[0]}/json")).json["Id"] == id
    assert (await api.request("DELETE", f"/plugins/{quote(name, safe='')}")).status == 200
    assert (await api.request("GET", f"/plugins/{name}/json")).status == 404


async def test_a03_a_beginning_of_several_ids_is_refused(api: ApiClient) -> None:
    ids = [await api.create(f"p{number}") for number in range(17)]
    first = next(id[0] for id in ids if sum(other[0] == id[0] for other in ids) > 1)
    answer = await api.request("GET", f"/plugins/{first}/json")
    assert (answer.status, answer.message) == (400, f'multiple plugins found for "{first}"')


async def test_a04_no_list_of_a_plugin_is_null_and_our_part_stands_apart(api: ApiClient) -> None:
    await api.create("p", {"entrypoint": ["/p"], "interface": {"socket": "p.sock", "types": None}, "env": None})
    document = (await api.request("GET", "/plugins/p/json")).json
    assert list(document) == ["Config", "Enabled", "Id", "Name", "PluginReference", "Settings", "Moorage"]
    config, settings = document["Config"], document["Settings"]
    lists = [
        *(config[key] for key in ("Entrypoint", "Env", "Mounts")),
        *(config["Args"][key] for key in ("Settable", "Value")),
        *(config["Linux"][key] for key in ("Capabilities", "Devices")),
        config["Interface"]["Types"],
        *settings.values(),
        *(document["Moorage"][key] for key in ("Holders", "Privileges", "Warnings")),
    ]
    assert all(isinstance(each, list) for each in lists)
    assert "DockerVersion" not in config
    assert document["Moorage"]["State"] == "disabled"
    assert document["Moorage"].pop("Processes") == []  # only where one plugin is requested
    assert (await api.request("GET", "/plugins")).json == [document]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ("", ["both:latest", "log:latest"]),
        ("null", ["both:latest", "log:latest"]),
        ('{"enabled":{"true":true}}', ["log:latest"]),
        ('{"enabled":["0"]}', ["both:latest"]),
        ('{"capability":{"volumedriver":true}}', ["both:latest"]),
        ('{"capability":["logdriver"]}', ["both:latest", "log:latest"]),
        ('{"capability":["volumedriver","authz"]}', ["both:latest"]),
        ('{"capability":["authz"]}', []),
        ('{"capability":["logdriver"],"enabled":["1"]}', ["log:latest"]),
    ],
)
async def test_a01_plugins_are_filtered_in_both_forms_and_by_any_of_their_types(
    api: ApiClient, filters: str, names: list[str]
) -> None:
    await api.create("both")
    await api.create("log", CONFIG | {"interface": {"types": ["docker.logdriver/1.0"], "socket": "p.sock"}})
    await api.request("POST", "/plugins/log/enable")
    found = (await api.request("GET", f"/plugins?filters={quote(filters, safe='')}")).json
    assert [each["Name"] for each in found] == names


async def test_c04_a_secret_is_set_by_our_call_and_never_shown(api: ApiClient) -> None:
    await api.create("p")
    answer = await api.request("POST", f"{OWN}/p/set", {"assignments": [], "secrets": ["DEBUG=s3cr3t"]})
    assert answer.status == 204
    shown = (await api.request("GET", "/plugins/p/json")).body
    assert b"s3cr3t" not in shown
    assert b"DEBUG=********" in shown


async def test_a01_info_names_what_is_enabled_by_what_it_can_do(api: ApiClient) -> None:
    await api.create("p")
    assert (await api.request("GET", "/info")).json["Plugins"]["Volume"] == []
    await api.request("POST", "/plugins/p/enable")
    info = (await api.request("GET", "/info")).json
    assert (info["Plugins"]["Volume"], info["Plugins"]["Log"]) == (["p:latest"], ["p:latest"])
    assert (await api.request("GET", "/moorage/v1/info")).json["Namespace"] == "plugins.moby"
    version = (await api.request("GET", "/version")).json
    assert (version["ApiVersion"], version["MinAPIVersion"]) == ("1.55", "1.24")
    assert [each["Name"] for each in version["Components"]] == ["Engine", "containerd"]


# ---------------------------------------------------------------------------------------- events, logs, calls, holders


async def event_actions(api: ApiClient, filters: dict[str, Any]) -> list[str]:
    """The actions that GET /events reports of the past, with these filters."""
    until = time.time() + 0.01
    answer = await api.request("GET", f"/events?since=1&until={until:.6f}&filters={quote(json.dumps(filters))}")
    return [json.loads(line)["Action"] for line in answer.body.splitlines()]


@pytest.mark.parametrize(
    ("filters", "actions"),
    [
        ({}, ["create", "enable", "create"]),
        ({"type": {"plugin": True}}, ["create", "enable", "create"]),
        ({"type": ["container"]}, []),
        ({"event": ["create"]}, ["create", "create"]),
        ({"event": ["enable", "disable"]}, ["enable"]),
        ({"plugin": ["q:latest"]}, ["create"]),
        ({"plugin": ["p"]}, ["create", "enable"]),
        ({"plugin": ["ID"]}, ["create", "enable"]),
        ({"plugin": ["p"], "event": ["enable"]}, ["enable"]),
        ({"scope": ["local"]}, ["create", "enable", "create"]),
        ({"scope": ["swarm"]}, []),
        ({"label": ["name=q:latest"]}, ["create"]),
        ({"label": ["nonsense"]}, []),
        ({"container": ["p"]}, []),
    ],
    ids=str,
)
async def test_m13_events_of_the_past_are_filtered_and_end(
    api: ApiClient, filters: dict[str, Any], actions: list[str]
) -> None:
    id = await api.create("p")
    await api.request("POST", "/plugins/p/enable")
    await api.create("q")
    if filters.get("plugin") == ["ID"]:
        filters = {"plugin": [id[:10]]}
    assert await event_actions(api, filters) == actions


async def test_m13_events_come_as_they_happen_in_dockers_form(api: ApiClient) -> None:
    async with api.open("GET", "/v1.41/events?filters=%7B%22type%22%3A%7B%22plugin%22%3Atrue%7D%7D") as response:
        assert response.headers["Content-Type"] == "application/json"
        id = await api.create("p")
        event = json.loads(await response.content.readline())
    assert event["time"] == event["timeNano"] // 10**9
    del event["time"], event["timeNano"]
    actor = {"ID": id, "Attributes": {"name": "p:latest"}}
    assert event == {"Type": "plugin", "Action": "create", "Actor": actor, "scope": "local"}


async def test_a01_a_client_may_request_lines_of_json(api: ApiClient) -> None:
    async with api.open("GET", "/events", Accept="application/jsonl, */*;q=0.1") as response:
        assert response.headers["Content-Type"] == "application/jsonl"


async def test_a05_output_is_followed_line_by_line_until_the_client_leaves(
    api: ApiClient, backend: FakeBackend
) -> None:
    await api.create("a/b:1")
    for text in ("one", "two", "three"):
        backend.write("a/b:1", text)
    lines = [json.loads(each) for each in (await api.request("GET", f"{OWN}/a/b:1/logs")).body.splitlines()]
    assert [(each["stream"], each["text"]) for each in lines] == [("stdout", text) for text in ("one", "two", "three")]
    async with api.open("GET", f"{OWN}/a%2Fb:1/logs?tail=1&follow=1") as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        assert json.loads(await response.content.readline())["text"] == "three"
        backend.write("a/b:1", "four")
        assert json.loads(await response.content.readline())["text"] == "four"
        assert backend.followers == 1
        response.close()
    await eventually(lambda: backend.followers == 0)


async def test_a05_a_call_goes_through_with_body_and_status(api: ApiClient) -> None:
    await api.create("p")
    await api.request("POST", "/plugins/p/enable")
    answer = await api.request("POST", f"{OWN}/p/call?method=Echo&timeout=2", b'{"Name":"v"}')
    assert (answer.status, answer.body, answer.headers["X-Plugin-Status"]) == (200, b'{"Name":"v"}', "200")
    answer = await api.request("POST", f"{OWN}/p/call?method=/VolumeDriver.Nonsense", b"x")
    assert (answer.status, answer.body, answer.headers["X-Plugin-Status"]) == (200, b"x", "404")


async def test_a05_a_policy_is_changed_line_by_line(api: ApiClient) -> None:
    await api.create("p")
    await api.request("PUT", f"{OWN}/p/policy", {"restarts": "on-failure", "most": 3})
    await api.request("PUT", f"{OWN}/p/policy", {"stop_timeout": 2.5, "restarts": None})
    policy = (await api.request("GET", f"{OWN}/p/policy")).json
    assert {**policy, "Restarts": "on-failure", "Most": 3, "StopTimeout": 2.5} == policy
    assert (await api.request("PUT", f"{OWN}/p/policy", {**policy, "Most": 4})).json == {**policy, "Most": 4}


async def test_x04_confinement_is_part_of_the_policy_and_what_it_widens_is_shown(api: ApiClient) -> None:
    await api.create("p")
    before = (await api.request("GET", f"{OWN}/p/policy")).json
    assert (before["Seccomp"], before["NewPrivileges"], before["Pids"]) == ("default", False, 2048)
    change = {"memory_bytes": 64 << 20, "cpus": 0.5, "pids": 64, "rlimits": {"nofile": [1024, 4096]}}
    after = (await api.request("PUT", f"{OWN}/p/policy", change)).json
    assert (after["MemoryBytes"], after["Cpus"], after["Pids"]) == (64 << 20, 0.5, 64)
    assert after["Rlimits"] == {**before["Rlimits"], "nofile": [1024, 4096]}
    more = (await api.request("GET", "/plugins/p/json")).json["Moorage"]
    assert (more["Policy"], more["Widenings"]) == (after, [])
    await api.request("PUT", f"{OWN}/p/policy", {"Seccomp": "unconfined", "new_privileges": True})
    more = (await api.request("GET", "/plugins/p/json")).json["Moorage"]
    assert {each["Name"]: each["Value"] for each in more["Widenings"]} == {
        "seccomp": ["unconfined"],
        "new privileges": ["true"],
    }


async def test_m17_a_holder_keeps_a_plugin_until_it_is_released(api: ApiClient) -> None:
    await api.create("p")
    await api.request("POST", "/plugins/p/enable")
    made = await api.request("POST", f"{OWN}/p/holders", {"owner": "volume v1"})
    assert (made.status, made.json["Owner"], set(made.json)) == (201, "volume v1", {"Token", "Owner", "Since"})
    refused = await api.request("POST", "/plugins/p/disable")
    assert (refused.status, refused.message) == (409, "plugin p:latest is in use by volume v1")
    assert [each["Owner"] for each in (await api.request("GET", f"{OWN}/p/holders")).json] == ["volume v1"]
    assert (await api.request("DELETE", f"{OWN}/p/holders/{made.json['Token']}")).status == 204
    assert (await api.request("POST", "/plugins/p/disable")).status == 200


async def test_m17_an_attached_holder_lasts_as_long_as_its_connection(api: ApiClient, backend: FakeBackend) -> None:
    await api.create("p")
    await api.request("POST", "/plugins/p/enable")
    async with api.open("POST", f"{OWN}/p/holders?attached=1", {"owner": "me"}) as response:
        assert json.loads(await response.content.readline())["Owner"] == "me"
        assert len(backend.get("p").holders) == 1
        response.close()
    await eventually(lambda: backend.get("p").holders == ())


# ---------------------------------------------------------------------------------------- clients that break off


async def test_d02_a_client_that_breaks_off_its_upload_has_made_nothing(api: ApiClient, backend: FakeBackend) -> None:
    stream = await anyio.connect_unix(api.socket)
    head = b"POST /plugins/create?name=p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    await stream.send(head + b"5\r\nhello\r\n")
    await anyio.wait_all_tasks_blocked()
    await stream.aclose()
    await eventually(lambda: backend.undone == ["p:latest"])
    assert backend.plugins == {}


async def test_d02_a_client_that_leaves_after_its_upload_cancels_what_it_requested(
    api: ApiClient, backend: FakeBackend
) -> None:
    backend.stuck = True
    body, stream = package(CONFIG), await anyio.connect_unix(api.socket)
    await stream.send(b"POST /plugins/create?name=p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    await stream.send(body)
    await anyio.wait_all_tasks_blocked()
    await stream.aclose()
    await eventually(lambda: backend.undone == ["p:latest"])


async def test_a05_a_stream_that_fails_half_way_is_broken_off(
    api: ApiClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    id = await api.create("p")
    backend.write("p", "one")
    async with api.open("GET", f"{OWN}/p/logs?follow=1") as response:
        await response.content.readline()
        backend.lines[id] = backend.lines[id]  # the same list, into which nonsense comes
        backend.lines[id].append("nonsense")  # type: ignore[arg-type]  # makes the handler fail
        backend.write("p", "two")
        with pytest.raises(Exception, match=r"(?i)payload|closed|reset|transfer"):
            await response.content.read()


# ---------------------------------------------------------------------------------------- the socket, start and end


async def test_a01_the_socket_belongs_to_the_group_and_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.sock"
    group = "root" if os.geteuid() == 0 else None
    async with serve_api(FakeBackend(), path, group):
        found = await anyio.Path(path).stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
    assert [each async for each in anyio.Path(path.parent).iterdir()] == []


async def test_a01_what_a_killed_engine_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serve_api(FakeBackend(), path, None), api_client(path) as client:
        assert (await client.request("GET", "/_ping")).status == 200


async def test_m11_where_another_engine_answers_a_second_one_refuses(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    async with serve_api(FakeBackend(), path, None), api_client(path) as client:
        with pytest.raises(errors.Conflict, match="another program listens"):
            async with serve_api(FakeBackend(), path, None):
                raise AssertionError("started")
        assert (await client.request("GET", "/_ping")).status == 200


@pytest.mark.parametrize("kind", ["group", "file", "long"])
async def test_a01_a_socket_that_cannot_be_made_is_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x" * 120 if kind == "long" else "m.sock")
    if kind == "file":
        await anyio.Path(path).write_text("precious")
    with pytest.raises(errors.Invalid, match="cannot serve the API"):
        async with serve_api(FakeBackend(), path, "no-such-group" if kind == "group" else None):
            raise AssertionError("started")
    if kind == "file":
        assert await anyio.Path(path).read_text() == "precious"


async def test_m18_the_end_waits_for_no_stream_and_no_slow_client(tmp_path: Path) -> None:
    backend, path = FakeBackend(), tmp_path / "m.sock"
    async with api_client(path) as client:
        with anyio.fail_after(limit(10)):
            async with serve_api(backend, path, None):
                await client.create("p")
                await client.request("POST", "/plugins/p/enable")
                for _ in range(2000):
                    backend.write("p", "x" * 5000)
                slow = await anyio.connect_unix(path)  # reads nothing of its ten megabytes
                await slow.send(f"GET {OWN}/p/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                events = await client.session.get("http://x/events")
                attached = await client.session.post(f"http://x{OWN}/p/holders?attached=1", json={"owner": "me"})
                await attached.content.readline()
                backend.stuck = True
                create = await anyio.connect_unix(path)
                body = package(CONFIG)
                head = b"POST /plugins/create?name=q HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                await create.send(head % len(body) + body)
                await eventually(lambda: backend.followers == 1)
        assert await events.content.read() == b""
        assert b" 503 " in (await create.receive()).splitlines()[0]
        assert backend.undone == ["q:latest"]
        assert backend.get("p").holders == ()
        for each in (slow, create):
            await each.aclose()
